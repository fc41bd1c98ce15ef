"""The image tower of CLIP as public image-to-video models read it: the states before its last block.

Shapes: B images, H W C pixels, M tokens of an image (the class, then the patches), E width, Q values of a patch.
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from sora_jax.core.compiling import run_often
from sora_jax.core.distributed import to_host
from sora_jax.core.errors import UserError
from sora_jax.core.mesh import MeshConfig, make_mesh
from sora_jax.core.rng import Rngs
from sora_jax.core.sharding import put_whole
from sora_jax.core.tree import Params, abstract_model, merge_model
from sora_jax.models.interop.json_files import check_heads, read_config
from sora_jax.models.interop.weights import HostParams, listed, read_shapes, read_weights
from sora_jax.nn.linear import Linear, truncated_normal
from sora_jax.nn.norm import LayerNorm
from sora_jax.nn.stack import scan_blocks, stack_blocks

# How an image becomes the square that the tower sees.
ImageFit = Literal["squash", "crop"]
# Of the pixels that CLIP was trained on, in [0, 1].
_MEAN_C = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
_STD_C = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
# Of torch's bicubic kernel, which the original sampler squashes with.
_CUBIC = -0.75
_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}
_GIVE = "give the folder image_encoder of the model, or its CLIP vision weights as one .safetensors file"
_WIDEST_HEAD = 80  # of the huge tower, 1280 over 16 heads; all smaller ones have heads of 64
_FILES = ("model.safetensors", "pytorch_model.safetensors")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTowerConfig:
    """Shape of the tower, of the blocks that are used: all but the last.

    Attributes:
      width: E.
      depth: Blocks.
      heads: Attention heads.
      mlp_width: Hidden width of the feed-forward.
      patch: Side of a patch, px.
      side: Of the image, px.
      activation: Of the feed-forward, "gelu" (exact) or "quick_gelu".
    """

    width: int
    depth: int
    heads: int
    mlp_width: int
    patch: int
    side: int
    activation: str

    @property
    def tokens(self) -> int:
        """M: the patches and the class."""
        return (self.side // self.patch) ** 2 + 1


class _Block(nnx.Module):
    """Pre-norm self-attention over the tokens of an image, then a feed-forward."""

    def __init__(self, config: ImageTowerConfig, *, rngs: Rngs):
        width = config.width
        self.norm1 = LayerNorm(width, eps=1e-5)
        self.to_q = Linear(width, width, axes=("embed", "heads"), rngs=rngs)
        self.to_k = Linear(width, width, axes=("embed", "heads"), rngs=rngs)
        self.to_v = Linear(width, width, axes=("embed", "heads"), rngs=rngs)
        self.to_out = Linear(width, width, axes=("heads", "embed"), rngs=rngs)
        self.norm2 = LayerNorm(width, eps=1e-5)
        self.mlp_in = Linear(width, config.mlp_width, axes=("embed", "mlp"), rngs=rngs)
        self.mlp_out = Linear(config.mlp_width, width, axes=("mlp", "embed"), rngs=rngs)
        self.config = config

    def __call__(self, x_BME: jax.Array) -> jax.Array:
        heads, y = self.config.heads, self.norm1(x_BME)
        mixed = jax.nn.dot_product_attention(
            self.to_q.to_heads(y, heads), self.to_k.to_heads(y, heads), self.to_v.to_heads(y, heads)
        )
        x_BME = x_BME + self.to_out.from_heads(mixed)
        return x_BME + self.mlp_out(_ACTIVATIONS[self.config.activation](self.mlp_in(self.norm2(x_BME))))


class ImageTower(nnx.Module):
    """Normalised pixels -> the states that go into the last block of CLIP's image tower."""

    def __init__(self, config: ImageTowerConfig, *, rngs: Rngs):
        width, values = config.width, 3 * config.patch**2

        def drawn(shape: tuple[int, ...]) -> jax.Array:
            return truncated_normal(rngs.params(), shape, shape[0] ** -0.5)

        self.patch_embedding = nnx.Param(drawn((values, width)), axes=(None, "embed"))
        self.class_embedding = nnx.Param(drawn((width,)), axes=("embed",))
        self.position_embedding = nnx.Param(drawn((config.tokens, width)), axes=(None, "embed"))
        self.norm = LayerNorm(width, eps=1e-5)
        self.blocks = stack_blocks(lambda r: _Block(config, rngs=r), config.depth, rngs)
        self.config = config

    def __call__(self, pixels_BHWC: jax.Array) -> jax.Array:
        """Returns states_BME, float32, of float32 pixels as `fit_image` makes them."""
        patch = self.config.patch
        side = self.config.side // patch
        images = pixels_BHWC.shape[0]
        patches = pixels_BHWC.reshape(images, side, patch, side, patch, 3).transpose(0, 1, 3, 2, 4, 5)
        x_BME = patches.reshape(images, side**2, -1) @ self.patch_embedding[...]
        first_B1E = jnp.broadcast_to(self.class_embedding[...], (images, 1, self.config.width))
        x_BME = jnp.concatenate([first_B1E, x_BME], axis=1) + self.position_embedding[...]
        return scan_blocks(self.blocks, self.norm(x_BME), lambda block, x: block(x), remat="none")


class ImageEncoder:
    """A frozen image tower: uint8 images -> states. Its weights are read when the first image is encoded.

    Args:
      config: Its shape.
      read: Returns its parameters by name.
      fit: How images become the square that it sees: "squash" scales both sides to it as the samplers do that these
        models are published with; "crop" scales the shorter side and takes the centre, as transformers' processor.
    """

    def __init__(self, config: ImageTowerConfig, read: Callable[[], HostParams], *, fit: ImageFit = "squash"):
        self.config = config
        self.fit: ImageFit = fit
        self._read = read
        # One of its own: whoever asks may be at work on a mesh of all devices.
        self._mesh = make_mesh(MeshConfig(data=None, fsdp=1, sequence=1, tensor=1), jax.local_devices()[:1])
        structure, _, _ = abstract_model(lambda key: ImageTower(config, rngs=Rngs(key)))
        self._apply = jax.jit(
            lambda params, pixels: merge_model(structure, params)(pixels), compiler_options=run_often()
        )

    @functools.cached_property
    def _params(self) -> Params:
        return {name: put_whole(value, self._mesh) for name, value in self._read().items()}

    def encode(self, image_HWC: np.ndarray) -> np.ndarray:
        """Returns the states of an image, float32 (M, E)."""
        pixels_HWC = fit_image(image_HWC, side=self.config.side, fit=self.fit)
        with jax.set_mesh(self._mesh):
            return to_host(self._apply(self._params, put_whole(pixels_HWC[None], self._mesh)))[0]

    def fingerprint(self) -> str:
        """Returns a sha256 in hex of the weights and of how images are fitted."""
        digest = hashlib.sha256(f"{self.fit} {self.config}".encode())
        for name, value in sorted(self._read().items()):
            digest.update(name.encode() + value.tobytes())
        return digest.hexdigest()


def fit_image(image_HWC: np.ndarray, *, side: int, fit: ImageFit) -> np.ndarray:
    """Returns float32 (side, side, 3), normalised by CLIP's mean and deviation, of a uint8 image."""
    height, width = image_HWC.shape[:2]
    if fit == "crop":
        # Of the shorter side, and of the other the whole pixels that keep the aspect.
        scaled = [max(side, side * length // min(height, width)) for length in (height, width)]
        picture = Image.fromarray(image_HWC).resize((scaled[1], scaled[0]), Image.Resampling.BICUBIC)
        top, left = ((length - side) // 2 for length in scaled)
        square = np.asarray(picture)[top : top + side, left : left + side].astype(np.float32) / 255
    else:
        rows, columns = _bicubic(height, side), _bicubic(width, side)
        square = np.einsum("yh,hwc,xw->yxc", rows, image_HWC.astype(np.float32) / 255, columns, optimize=True)
    return ((square - _MEAN_C) / _STD_C).astype(np.float32)


def _bicubic(length: int, side: int) -> np.ndarray:
    """Returns the float32 matrix (side, length) of torch's bicubic interpolation, which widens no kernel."""
    centre = (np.arange(side) + 0.5) * length / side - 0.5
    first = np.floor(centre).astype(int)
    matrix = np.zeros((side, length))
    for tap in range(-1, 3):
        distance = np.abs(centre - (first + tap))
        near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
        far = ((distance - 5) * distance + 8) * distance * _CUBIC - 4 * _CUBIC
        np.add.at(
            matrix,
            (np.arange(side), np.clip(first + tap, 0, length - 1)),
            np.where(distance <= 1, near, far),
        )
    return matrix.astype(np.float32)


def describe_image_encoder(path: str | Path, *, activation: str = "gelu") -> ImageTowerConfig:
    """Returns the shape of CLIP vision weights, from their head, and from config.json where it lies beside them.

    Args:
      path: The folder of an image encoder as transformers saves it, or one .safetensors file.
      activation: Of weights whose config.json does not say it.

    Raises:
      UserError: there are none, or the config asks for something else than is known here.
    """
    file = image_tower_file(Path(path))
    shapes = read_shapes(file)
    prefix = image_tower_prefix(shapes)
    layers = {int(match[1]) for name in shapes if (match := re.fullmatch(rf"{prefix}encoder\.layers\.(\d+)\..*", name))}
    needed = (f"{prefix}embeddings.patch_embedding.weight", f"{prefix}embeddings.position_embedding.weight")
    if not layers or any(name not in shapes for name in needed):
        raise UserError(f"{file} holds no image tower of CLIP ({needed[0]} and its layers); {_GIVE}")
    width, _, patch, _ = shapes[needed[0]]
    said = _said(file.parent / "config.json")
    activation = said.get("hidden_act", activation)
    if activation not in tuple(_ACTIVATIONS):
        raise UserError(
            f"{file.parent / 'config.json'}: hidden_act {activation!r} is none of {', '.join(_ACTIVATIONS)}"
        )
    head = _WIDEST_HEAD if width % _WIDEST_HEAD == 0 and width > 1024 else 64
    heads = said.get("num_attention_heads", max(1, width // head))
    check_heads(heads, width=width, what=str(file.parent))
    return ImageTowerConfig(
        width=width,
        depth=max(layers),  # the last of them is not used
        heads=heads,
        mlp_width=shapes[f"{prefix}encoder.layers.0.mlp.fc1.weight"][0],
        patch=patch,
        side=round((shapes[needed[1]][0] - 1) ** 0.5) * patch,
        activation=activation,
    )


def load_image_encoder(path: str | Path, *, fit: ImageFit = "squash") -> ImageEncoder:
    """Returns the image encoder of a folder or a .safetensors file, as `describe_image_encoder` takes them.

    Raises UserError where a tensor is missing or of another shape; the weights are read later.
    """
    config, file = describe_image_encoder(path), image_tower_file(Path(path))
    shapes = read_shapes(file)
    wanted = image_tower_shapes(config, shapes)
    if faults := [f"{name} is {shapes.get(name, 'missing')}" for name in wanted if shapes.get(name) != wanted[name]]:
        raise UserError(f"{file} does not hold the image tower that it begins: {listed(faults)}; {_GIVE}")
    return ImageEncoder(config, lambda: read_image_tower(config, read_weights(file)), fit=fit)


# (ours, the public name after the prefix); matrices are transposed
_LAYER = (
    ("norm1.scale", "layer_norm1.weight"),
    ("norm1.bias", "layer_norm1.bias"),
    *(
        (f"to_{one}.{ours}", f"self_attn.{one}_proj.{theirs}")
        for one in ("q", "k", "v", "out")
        for ours, theirs in (("kernel", "weight"), ("bias", "bias"))
    ),
    ("norm2.scale", "layer_norm2.weight"),
    ("norm2.bias", "layer_norm2.bias"),
    ("mlp_in.kernel", "mlp.fc1.weight"),
    ("mlp_in.bias", "mlp.fc1.bias"),
    ("mlp_out.kernel", "mlp.fc2.weight"),
    ("mlp_out.bias", "mlp.fc2.bias"),
)


def image_tower_shapes(config: ImageTowerConfig, names: Collection[str]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of what the tower takes of public weights of such names, by name."""
    prefix = image_tower_prefix(names)
    _, shapes, _ = abstract_model(lambda key: ImageTower(config, rngs=Rngs(key)))
    wanted: dict[str, tuple[int, ...]] = {
        f"{prefix}embeddings.class_embedding": (config.width,),
        f"{prefix}embeddings.patch_embedding.weight": (config.width, 3, config.patch, config.patch),
        f"{prefix}embeddings.position_embedding.weight": (config.tokens, config.width),
        f"{prefix}pre_layrnorm.weight": (config.width,),
        f"{prefix}pre_layrnorm.bias": (config.width,),
    }
    for ours, theirs in _LAYER:
        shape = tuple(shapes[f"blocks.{ours}"].shape[1:])
        wanted |= {f"{prefix}encoder.layers.{n}.{theirs}": shape[::-1] for n in range(config.depth)}
    return wanted


def read_image_tower(config: ImageTowerConfig, weights: HostParams) -> HostParams:
    """Returns the tower's parameters, float32, of public weights."""
    prefix = image_tower_prefix(weights)

    def of(name: str) -> np.ndarray:
        return np.asarray(weights[prefix + name], np.float32)

    params = {
        "class_embedding": of("embeddings.class_embedding"),
        "patch_embedding": of("embeddings.patch_embedding.weight").transpose(2, 3, 1, 0).reshape(-1, config.width),
        "position_embedding": of("embeddings.position_embedding.weight"),
        "norm.scale": of("pre_layrnorm.weight"),
        "norm.bias": of("pre_layrnorm.bias"),
    }
    for ours, theirs in _LAYER:
        params[f"blocks.{ours}"] = np.stack([of(f"encoder.layers.{n}.{theirs}").T for n in range(config.depth)])
    return params


def image_tower_prefix(names: Collection[str]) -> str:
    """Returns what the names begin with: transformers writes none since its version 5."""
    return "" if "embeddings.patch_embedding.weight" in names else "vision_model."


def image_tower_file(path: Path) -> Path:
    """Returns the file of weights of a folder, or the file itself."""
    for name in _FILES:
        if (path / name).is_file():
            return path / name
    return path if path.suffix else path / _FILES[0]


def _said(path: Path) -> dict[str, Any]:
    """Returns what a config says of the image tower; that of a whole CLIP has it in a group of its own."""
    said = read_config(path)
    tower = said.get("vision_config", {})
    if not isinstance(tower, dict):
        raise UserError(f"{path} is damaged (vision_config is {tower!r}); download it again")
    return said | tower
