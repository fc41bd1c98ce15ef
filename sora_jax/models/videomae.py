"""The network of the content-debiased Fréchet video distance (arXiv 2404.12391): VideoMAE v2 (arXiv 2303.16727).

A vision transformer over tubes of two frames, trained to fill in hidden ones and then to tell actions whose objects do
not give them away, so that its features see motion. Names and layout are those of `vit_g_hybrid_pt_1200e_ssv2_ft.pth`
as safetensors; smaller fine-tuned ones of the family are read too.

Letters: B clips, T H W frames, rows, columns, C channels, M tokens, E width.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.core.errors import UserError
from sora_jax.models.interop.weights import pick, read_weights
from sora_jax.models.perceptual import NetworkWeights
from sora_jax.nn.norm import layer_norm

# Frames that the network looks at.
WINDOW = 16
MARKER = "blocks.0.attn.q_bias"
_SIDE = 224  # px
_TUBE = 2  # frames of a token
_EPSILON = 1e-6
# Attention heads by width, which the weights do not say: small, base, large, huge, giant.
_HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}
_REMEDY = "make it as docs/evaluation.md says"


def load_videomae(path: str | Path) -> dict[str, np.ndarray]:
    """Returns the weights of a safetensors file by their names, float32, without those of the classes.

    UserError if the file is absent, damaged, or holds no such network after fine-tuning.
    """
    weights = read_weights(path, remedy=_REMEDY)
    patches = weights["patch_embed.proj.weight"].shape if "patch_embed.proj.weight" in weights else ()
    if len(patches) != 5 or patches[0] not in _HEADS:
        raise UserError(f"{path} holds no VideoMAE of a width in {', '.join(map(str, _HEADS))}; {_REMEDY}")
    depth = len([name for name in weights if re.fullmatch(r"blocks\.\d+\.attn\.q_bias", name)])
    mlp_width = weights["blocks.0.mlp.fc1.bias"].size if "blocks.0.mlp.fc1.bias" in weights else 0
    wanted = shapes(width=patches[0], depth=depth, mlp_width=mlp_width, patch=patches[-1])
    return pick(weights, wanted, what=str(path), remedy=_REMEDY)


def shapes(*, width: int, depth: int, mlp_width: int, patch: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of all weights by their names, those of the classes left out."""
    found: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (width, 3, _TUBE, patch, patch),
        "patch_embed.proj.bias": (width,),
        "fc_norm.weight": (width,),
        "fc_norm.bias": (width,),
    }
    for number in range(depth):
        block = f"blocks.{number}"
        found |= {f"{block}.{norm}.{part}": (width,) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
        found |= {f"{block}.attn.{part}_bias": (width,) for part in "qv"}
        found |= {
            f"{block}.attn.qkv.weight": (3 * width, width),
            f"{block}.attn.proj.weight": (width, width),
            f"{block}.attn.proj.bias": (width,),
            f"{block}.mlp.fc1.weight": (mlp_width, width),
            f"{block}.mlp.fc1.bias": (mlp_width,),
            f"{block}.mlp.fc2.weight": (width, mlp_width),
            f"{block}.mlp.fc2.bias": (width,),
        }
    return found


def width_of(weights: Mapping[str, np.ndarray]) -> int:
    """Returns E."""
    return weights["fc_norm.weight"].size


def fit_videomae(clip_BTHWC: jax.Array) -> jax.Array:
    """Returns uint8 clips of any size as the network reads them: 224 x 224 px in [0, 1], float32.

    Bilinear without antialias, and no mean is taken off, as those whose numbers are compared do.
    """
    shape = (*clip_BTHWC.shape[:2], _SIDE, _SIDE, 3)
    scaled = jax.image.resize(clip_BTHWC.astype(jnp.float32), shape, "linear", antialias=False)
    return scaled / 255


def videomae_features(weights: NetworkWeights, clip_BTHWC: jax.Array) -> jax.Array:
    """Returns the normed mean over all tokens, float32 (B, E), of `WINDOW` frames.

    Of a longer clip it is the mean over windows side by side, the last of which ends with the clip.

    Args:
      weights: As `load_videomae` gives them.
      clip_BTHWC: Clips as `fit_videomae` gives them, of `WINDOW` frames or more.
    """
    frames = clip_BTHWC.shape[1]
    assert frames >= WINDOW, frames
    starts = [*range(0, frames - WINDOW, WINDOW), frames - WINDOW]
    found = [_window_features(weights, clip_BTHWC[:, start : start + WINDOW]) for start in starts]
    return jnp.mean(jnp.stack(found), axis=0)


def _window_features(weights: NetworkWeights, clip_BTHWC: jax.Array) -> jax.Array:
    kernel = jnp.asarray(weights["patch_embed.proj.weight"]).transpose(2, 3, 4, 1, 0)
    numbers = ("NDHWC", "DHWIO", "NDHWC")
    x = jax.lax.conv_general_dilated(clip_BTHWC, kernel, kernel.shape[:3], "VALID", dimension_numbers=numbers)
    x_BME = x.reshape(len(x), -1, x.shape[-1]) + weights["patch_embed.proj.bias"]
    x_BME = x_BME + _places(*x_BME.shape[1:])
    for number in range(sum(name.endswith(".attn.q_bias") for name in weights)):
        x_BME = _block(weights, f"blocks.{number}", x_BME)
    return _norm(weights, "fc_norm", jnp.mean(x_BME, axis=1))


def _block(weights: NetworkWeights, name: str, x_BME: jax.Array) -> jax.Array:
    width = x_BME.shape[-1]
    bias = jnp.concatenate([weights[f"{name}.attn.q_bias"], jnp.zeros(width), weights[f"{name}.attn.v_bias"]])
    y = _norm(weights, f"{name}.norm1", x_BME) @ jnp.asarray(weights[f"{name}.attn.qkv.weight"]).T + bias
    heads = _HEADS[width]
    query, key, value = jnp.split(y.reshape(*x_BME.shape[:2], 3 * heads, -1), 3, axis=2)
    mixed = jax.nn.dot_product_attention(query, key, value).reshape(x_BME.shape)
    x_BME = x_BME + _linear(weights, f"{name}.attn.proj", mixed)
    hidden = jax.nn.gelu(_linear(weights, f"{name}.mlp.fc1", _norm(weights, f"{name}.norm2", x_BME)), approximate=False)
    return x_BME + _linear(weights, f"{name}.mlp.fc2", hidden)


def _linear(weights: NetworkWeights, name: str, x: jax.Array) -> jax.Array:
    return x @ jnp.asarray(weights[f"{name}.weight"]).T + weights[f"{name}.bias"]


def _norm(weights: NetworkWeights, name: str, x: jax.Array) -> jax.Array:
    return layer_norm(x, _EPSILON) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _places(tokens: int, width: int) -> np.ndarray:
    """Returns float32 (M, E): sines and cosines of the place of each token in the flat order, which are not learned."""
    angle_ME = np.arange(tokens)[:, None] / 10000 ** (2 * (np.arange(width) // 2) / width)
    return np.where(np.arange(width) % 2, np.cos(angle_ME), np.sin(angle_ME)).astype(np.float32)
