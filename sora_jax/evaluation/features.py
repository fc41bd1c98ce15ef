"""The networks whose features compare sets of clips, and texts with clips, from a user's files or random.

A file says by the names of its tensors which network it holds. The name of a network is that of its scores, and random
features are called "random": no number looks like a published one that it is not.

Letters: T H W frames, rows, columns of a clip, N rows of features, D their width.
"""

import collections
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sora_jax.core.compiling import run_often
from sora_jax.core.distributed import to_host
from sora_jax.core.errors import UserError
from sora_jax.core.mesh import MeshConfig, make_mesh
from sora_jax.core.sharding import put_whole
from sora_jax.models import clip_scores, i3d, inception, open_nsfw, random_features, videomae
from sora_jax.models.clip_scores import ClipImages, ClipTexts
from sora_jax.models.interop.onnx_weights import read_onnx
from sora_jax.models.interop.weights import read_shapes
from sora_jax.video.pixels import to_float

_REMEDY = "make it as docs/evaluation.md says under Weights"
# Bytes of a file that are read at a time to digest it.
_READ_AT_ONCE = 2**24


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureNetwork:
    """A frozen network: uint8 clips -> rows of numbers, on the devices of this process.

    Attributes:
      name: Of the network, such as "inception"; scores end in it.
      of: What a row is of: a "frame", or a whole "clip".
      width: D.
      digest: sha256 in hex of the weights' file; of random weights, of these.
      fewest_frames: That a clip must have.
      weights: By name, whole on every device.
      fit: uint8 items of one size, (B, T, H, W, 3) or (B, H, W, 3), -> what the network reads.
      apply: (weights, what `fit` returns) -> float32 (B, D).
      at_once: Items that a device looks at together, a power of two.
    """

    name: str
    of: Literal["frame", "clip"]
    width: int
    digest: str
    fewest_frames: int
    weights: Mapping[str, jax.Array]
    fit: Callable[[np.ndarray], np.ndarray | jax.Array]
    apply: Callable[[Mapping[str, jax.Array], jax.Array], jax.Array]
    at_once: int

    def __call__(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        """Returns float32 (N, D) of uint8 clips (T, H, W, 3) of any sizes, in their order.

        Of a network of clips there is one row for each, of a network of frames one for each frame. It is compiled for
        every size of the frames and, where it reads clips, every duration. AssertionError for a clip of fewer frames
        than `fewest_frames`.
        """
        groups: dict[tuple[int, ...], list[int]] = collections.defaultdict(list)
        items = [clip if self.of == "frame" else clip[None] for clip in clips]
        for number, one in enumerate(items):
            assert len(clips[number]) >= self.fewest_frames, (self.name, len(clips[number]), self.fewest_frames)
            groups[one.shape[1:]].append(number)
        found: dict[int, np.ndarray] = {}
        for numbers in groups.values():
            rows_ND = self._rows(np.concatenate([items[number] for number in numbers]))
            ends = np.cumsum([len(items[number]) for number in numbers])[:-1]
            found.update(zip(numbers, np.split(rows_ND, ends), strict=True))
        return np.concatenate([np.zeros((0, self.width), np.float32), *(found[number] for number in range(len(clips)))])

    def _rows(self, items: np.ndarray) -> np.ndarray:
        """Returns the rows of items of one size, in batches of few sizes: the last is filled up with its last item.

        What one device can look at together is not spread over more.
        """
        mesh, weights = _mesh(), self.weights
        if len(items) <= self.at_once:
            first = mesh.devices.flat[0]
            mesh = _mesh(first)
            weights = {name: _on(first, value) for name, value in weights.items()}
        found = []
        while len(items):
            size = mesh.size
            while size < min(len(items), mesh.size * self.at_once):
                size *= 2
            now, items = items[:size], items[size:]
            batch = np.concatenate([now, np.repeat(now[-1:], size - len(now), axis=0)])
            with jax.set_mesh(mesh):
                fitted = jax.device_put(self.fit(batch), NamedSharding(mesh, P("data")))
                found.append(to_host(self.apply(weights, fitted))[: len(now)])
        return np.concatenate(found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextFeatures:
    """Texts and frames as points of one space, which lie near where they belong together.

    Attributes:
      texts: Texts -> float32 (N, D); its `count` says the tokens of a text, of which `positions` are read.
      images: Frames -> rows of the same space; its name, width and digest are those of both.
    """

    texts: ClipTexts
    images: FeatureNetwork

    def cut(self, texts: Sequence[str]) -> int:
        """Returns how many of the texts lose their end."""
        return sum(self.texts.count(text) > self.texts.positions for text in texts)

    def cosines(self, texts: Sequence[str], clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns, for each text and its uint8 clip, the float32 cosine of the text with each frame, (T,)."""
        text_ND, rows = _unit(self.texts(texts)), _unit(self.images(clips))
        frames = np.split(rows, np.cumsum([len(clip) for clip in clips])[:-1])
        return [frame_TD @ text_D for text_D, frame_TD in zip(text_ND, frames, strict=True)]


def load_image_features(path: str | Path | None) -> FeatureNetwork:
    """Returns the network of frames in a file; None: random features.

    Raises UserError where the file is absent, damaged, or holds none of the networks that are known for images.
    """
    return _load(path, of="frame") if path is not None else _random("frame")


def load_video_features(path: str | Path | None) -> FeatureNetwork:
    """Returns the network of clips in a file; None: random features.

    Raises UserError where the file is absent, damaged, or holds none of the networks that are known for videos.
    """
    return _load(path, of="clip") if path is not None else _random("clip")


def load_text_features(path: str | Path) -> TextFeatures:
    """Returns the two towers of a CLIP: a folder as transformers saves it, or its file with what belongs beside it.

    Raises UserError where a tower, config.json or tokenizer.json is missing.
    """
    texts = ClipTexts(path)
    return TextFeatures(texts=texts, images=_load_clip(Path(path)))


def digest_of(path: Path) -> str:
    """Returns the sha256 in hex of a file, or of the weights in a folder."""
    found = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        with file.open("rb") as stream:
            while part := stream.read(_READ_AT_ONCE):
                found.update(part)
    return found.hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Kind:
    """A network that a file may hold: the option that takes it, a tensor that no other has, and how it is loaded."""

    of: Literal["frame", "clip"]
    marker: str
    load: Callable[[Path], FeatureNetwork]


def _load(path: str | Path, *, of: Literal["frame", "clip"]) -> FeatureNetwork:
    file = Path(path)
    names = read_onnx(file).weights if file.suffix == ".onnx" else read_shapes(file)
    held = [name for name, kind in _KINDS.items() if kind.marker in names]
    for name in held:
        if _KINDS[name].of == of:
            return _KINDS[name].load(file)
    wanted = " or ".join(name for name, kind in _KINDS.items() if kind.of == of)
    what = {"frame": "images", "clip": "videos"}[of]
    there = f"{held[0]}, which is none for {what}" if held else "no network that is known here"
    raise UserError(f"{file} holds {there}: give the weights of {wanted}; {_REMEDY}")


def _from_file(file: Path, name: str, weights: Mapping[str, np.ndarray], features: Any, **facts: Any) -> FeatureNetwork:
    """Returns the network of a file: of a frame at a time, where `facts` do not say otherwise."""
    usual = {"of": "frame", "fewest_frames": 1, "at_once": 8}
    found = {"name": name, "digest": digest_of(file), "weights": _on_devices(weights), "apply": _compiled(features)}
    return FeatureNetwork(**{**usual, **found, **facts})


def _load_i3d(file: Path) -> FeatureNetwork:
    fit = jax.jit(lambda clip: i3d.fit_i3d(to_float(clip)))
    facts = {"of": "clip", "width": i3d.FEATURES, "fewest_frames": i3d.FEWEST_FRAMES, "at_once": 1}
    return _from_file(file, "i3d", i3d.load_i3d(file), i3d.i3d_features, fit=fit, **facts)


def _load_videomae(file: Path) -> FeatureNetwork:
    weights, fit = videomae.load_videomae(file), jax.jit(videomae.fit_videomae)
    facts = {"of": "clip", "width": videomae.width_of(weights), "fewest_frames": videomae.WINDOW, "at_once": 1}
    return _from_file(file, "videomae", weights, videomae.videomae_features, fit=fit, **facts)


def _load_inception(file: Path) -> FeatureNetwork:
    weights, fit = inception.load_inception(file), jax.jit(inception.fit_inception)
    return _from_file(file, "inception", weights, inception.inception_features, fit=fit, width=inception.FEATURES)


def _load_clip(file: Path) -> FeatureNetwork:
    images = ClipImages(file)
    return _from_file(file, "clip", images.weights, images.features(), fit=images.fit, width=images.width)


def _load_open_nsfw(file: Path) -> FeatureNetwork:
    graph, fit = open_nsfw.load_open_nsfw(file), jax.jit(open_nsfw.fit_open_nsfw)
    features = functools.partial(open_nsfw.open_nsfw_features, graph)
    weights = open_nsfw.float_weights(graph)
    return _from_file(file, "open_nsfw", weights, features, fit=fit, width=open_nsfw.FEATURES)


def _random(of: Literal["frame", "clip"]) -> FeatureNetwork:
    clips = {"frame": lambda x: x[:, None], "clip": lambda x: x}[of]
    return FeatureNetwork(
        name="random",
        of=of,
        width=random_features.FEATURES,
        digest=random_features.random_digest(),
        fewest_frames=1,
        weights={},
        fit=clips,
        apply=_compiled(lambda _, x: random_features.random_features(to_float(x))),
        at_once=8,
    )


_KINDS: Mapping[str, _Kind] = {
    "inception": _Kind(of="frame", marker=inception.MARKER, load=_load_inception),
    "clip": _Kind(of="frame", marker=clip_scores.MARKER, load=_load_clip),
    "open_nsfw": _Kind(of="frame", marker=open_nsfw.MARKER, load=_load_open_nsfw),
    "i3d": _Kind(of="clip", marker=i3d.MARKER, load=_load_i3d),
    "videomae": _Kind(of="clip", marker=videomae.MARKER, load=_load_videomae),
}


def _compiled(features: Callable[[Any, jax.Array], jax.Array]) -> Callable[[Any, jax.Array], jax.Array]:
    """Returns the jitted function; distances are of small differences, so that products are in full precision."""

    def apply(weights: Any, x: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            return features(weights, x).astype(jnp.float32)

    return jax.jit(apply, compiler_options=run_often())


def _unit(rows_ND: np.ndarray) -> np.ndarray:
    return rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)


def _on_devices(weights: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    return {name: put_whole(value, _mesh()) for name, value in weights.items()}


def _on(device: Any, whole: jax.Array) -> jax.Array:
    """Returns what a device holds of an array that all hold whole; nothing is copied."""
    return next(shard.data for shard in whole.addressable_shards if shard.device == device)


def _mesh(device: Any = None) -> jax.sharding.Mesh:
    """Returns a mesh of a device or of all of this process: whoever asks may be at work on another."""
    devices = jax.local_devices() if device is None else [device]
    return make_mesh(MeshConfig(data=None, fsdp=1, sequence=1, tensor=1), devices)
