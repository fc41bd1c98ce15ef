"""CLIP as scores read it: images and texts as points of one space (arXiv 2103.00020).

The weights are those of a whole CLIP as transformers saves one, a folder with model.safetensors, config.json and
tokenizer.json. The towers are those of `models/vision/clip.py` and `models/text/clip.py`; here are the last block, the
last norms and the projections that these leave out.

Letters: N images or texts, H W C pixels, K tokens, D width of the space.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from sora_jax.core.compiling import run_often
from sora_jax.core.distributed import to_host
from sora_jax.core.errors import UserError
from sora_jax.core.mesh import MeshConfig, make_mesh
from sora_jax.core.rng import Rngs
from sora_jax.core.tree import Params, abstract_model, merge_model
from sora_jax.models.interop.weights import HostParams, pick, read_headers, read_weights
from sora_jax.models.text.files import EncoderFiles
from sora_jax.models.text.network import load
from sora_jax.models.text.towers import CLIP, read_clip_text
from sora_jax.models.vision.clip import (
    ImageTower,
    ImageTowerConfig,
    describe_image_encoder,
    fit_image,
    image_tower_file,
    image_tower_shapes,
    read_image_tower,
)
from sora_jax.nn.norm import layer_norm

MARKER = "visual_projection.weight"
_TEXT_PROJECTION = "text_projection.weight"
_LAST_NORM = tuple(f"vision_model.post_layernorm.{part}" for part in ("weight", "bias"))
_POSITIONS = "text_model.embeddings.position_embedding.weight"
_EPSILON = 1e-5
_TEXTS_AT_ONCE = 32
_REMEDY = "give the folder of a whole CLIP as docs/evaluation.md says"


class ClipImages:
    """The image tower, its last norm and its projection.

    Attributes:
      config: The shape of the tower, all blocks included.
      weights: float32 on the host, by name; `features` takes them.
      width: D.
    """

    def __init__(self, path: str | Path):
        """Reads a folder or a file with config.json beside it; UserError where a part is missing."""
        file = image_tower_file(Path(path))
        if not file.with_name("config.json").is_file():
            raise UserError(f"{file} has no config.json beside it, which says the heads and the activation; {_REMEDY}")
        config = describe_image_encoder(path, activation="quick_gelu")
        self.config = ImageTowerConfig(**{**vars(config), "depth": config.depth + 1})
        found = read_weights(file)
        self.width = found[MARKER].shape[0] if MARKER in found else 0
        wanted: dict[str, tuple[int, ...]] = {
            **image_tower_shapes(self.config, found),
            **dict.fromkeys(_LAST_NORM, (self.config.width,)),
            MARKER: (self.width, self.config.width),
        }
        whole = pick(found, wanted, what=str(file), remedy=_REMEDY)
        self.weights: HostParams = read_image_tower(self.config, whole) | {
            name: whole[name] for name in (*_LAST_NORM, MARKER)
        }

    def fit(self, frame_NHWC: np.ndarray) -> np.ndarray:
        """Returns uint8 frames of any size as the tower reads them: the shorter side scaled, the centre taken."""
        return np.stack([fit_image(frame, side=self.config.side, fit="crop") for frame in frame_NHWC])

    def features(self) -> Callable[[Params, jax.Array], jax.Array]:
        """Returns (weights, frames as `fit` gives them) -> float32 (N, D), of no special length."""
        structure, _, _ = abstract_model(lambda key: ImageTower(self.config, rngs=Rngs(key)))

        def apply(weights: Params, frame_NHWC: jax.Array) -> jax.Array:
            params = {name: value for name, value in weights.items() if name not in (*_LAST_NORM, MARKER)}
            state_NE = merge_model(structure, params)(frame_NHWC)[:, 0]
            scale, bias = (weights[name] for name in _LAST_NORM)
            return (layer_norm(state_NE, _EPSILON) * scale + bias) @ weights[MARKER].T

        return apply


class ClipTexts:
    """The text tower and its projection: texts -> points of the space, on one device of this process.

    Attributes:
      width: D.
      positions: Tokens that the tower reads; the end of a longer text is left out.
    """

    def __init__(self, path: str | Path):
        """Reads a folder or a file; UserError where the tower, its config.json or its tokenizer is missing."""
        files = EncoderFiles(path)
        weights = read_clip_text(files)
        stored = read_headers(files.files[0]).get(_TEXT_PROJECTION)
        if stored is None or len(stored.shape) != 2 or stored.shape[1] != weights.width:
            raise UserError(f"{path} has no {_TEXT_PROJECTION} of a text tower {weights.width} wide; {_REMEDY}")
        structure, shapes, _ = abstract_model(weights.build)
        device = jax.local_devices()[0]
        self._mesh = make_mesh(MeshConfig(data=1, fsdp=1, sequence=1, tensor=1), [device])
        self._on = jax.sharding.SingleDeviceSharding(device)
        self._params = load(weights, shapes, dtype=np.dtype(np.float32), place=self._on)
        self._projection = jax.device_put(np.asarray(stored.open(), np.float32), self._on)
        self._pieces = CLIP.pieces(files)
        begin, end = (self._pieces.number(*tokens) for tokens in (CLIP.before, CLIP.after))
        if begin is None or end is None:
            raise UserError(f"{path}: the tokenizer lacks {CLIP.before[0]} or {CLIP.after[0]}; {_REMEDY}")
        self._begin, self._end = begin, end
        self.width, self.positions = stored.shape[0], weights.tensors[_POSITIONS].shape[0]

        def apply(params: Params, projection: jax.Array, token_BK: jax.Array, length_B: jax.Array) -> jax.Array:
            with jax.default_matmul_precision("highest"):
                states_BKE = merge_model(structure, params)(token_BK, length_B)
                last_BE = jax.vmap(lambda states, length: states[length - 1])(states_BKE, length_B)
                return last_BE @ projection.T

        self._apply = jax.jit(apply, compiler_options=run_often())

    def count(self, text: str) -> int:
        """Returns the tokens of the whole text, those around it included: those beyond `positions` are not read."""
        return 2 + len(self._pieces.split(CLIP.cleaning.clean(text)))

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Returns float32 (N, D), of no special length."""
        found = [np.zeros((0, self.width), np.float32)]
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            now = texts[start : start + _TEXTS_AT_ONCE]
            token_BK = np.zeros((_TEXTS_AT_ONCE, self.positions), np.int32)
            length_B = np.ones(_TEXTS_AT_ONCE, np.int32)
            for row, text in enumerate(now):
                pieces = self._pieces.split(CLIP.cleaning.clean(text))[: self.positions - 2]
                length_B[row] = 2 + len(pieces)
                token_BK[row, : length_B[row]] = [self._begin, *pieces, self._end]
            with jax.set_mesh(self._mesh):
                given = jax.device_put((token_BK, length_B), self._on)
                found.append(to_host(self._apply(self._params, self._projection, *given))[: len(now)])
        return np.concatenate(found)
