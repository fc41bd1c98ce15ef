"""Records of prepared shards: one sample each, as bytes.

A record is, little endian: uint32 crc32 of all that follows, uint32 length of the json, the json, the bfloat16 bytes of
the latent, those of the stored arrays of its captions, and those, bfloat16, of what a model is shown of the clip and of
the latents of the clips beside it; the empty text is a record of the second alone. Nothing is ever unpickled.
"""

import dataclasses
import json
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from sora_jax.data.tokens import Text
from sora_jax.video.parts import ContextClip

_SHOWN = ("shown_THWC", "image_ME")
_LATENT = np.dtype(ml_dtypes.bfloat16)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """One sample: float32 `latent_THWC`, and what is known about the clip that it was made from.

    `latent_THWC` is raw when it is given to a writer and normalised when it comes from a `PreparedSet`.
    `pixel_shape` is the encoded clip's (frames, height, width), `trimmed_frames` how many were cut before
    that. `weights` says how often each caption is drawn; None: all alike. `origin` is the source's word for what
    the clip was made from (`data.sources.Source.origin`). `file_frames` are those of its file (`data.clips.Clip`),
    which only the index keeps. `texts` are the arrays of each caption, where the text encoder stores them
    (`Tokenizer.stored`). `shown_THWC` and `image_ME` are what the model is shown of it, where it is shown frames
    (`video/shown.py`): a latent as `latent_THWC`, of its shape, and tokens of images. `context` are clips beside it, by
    the names of their controls (`preparation/controls.py`), with latents as `latent_THWC`.
    """

    latent_THWC: np.ndarray
    fps: float
    captions: tuple[str, ...]
    source_id: str
    pixel_shape: tuple[int, int, int]
    trimmed_frames: int
    weights: tuple[float, ...] | None = None
    origin: str = ""
    file_frames: int | None = None
    texts: tuple[Text, ...] | None = None
    shown_THWC: np.ndarray | None = None
    image_ME: np.ndarray | None = None
    context: Mapping[str, ContextClip] | None = None


def encode_record(sample: Prepared) -> bytes:
    """Returns the record of a sample; latents and tokens of images are rounded to bfloat16."""
    apart = ("latent_THWC", "texts", "file_frames", "context", *_SHOWN)
    known = {f.name: getattr(sample, f.name) for f in dataclasses.fields(sample) if f.name not in apart}
    if known["weights"] is None:
        del known["weights"]
    known["latent_shape"] = sample.latent_THWC.shape
    arrays = sample.latent_THWC.astype(ml_dtypes.bfloat16).tobytes()
    if sample.texts is not None:
        known["texts"] = shapes_of(sample.texts)
        arrays += bytes_of(sample.texts)
    for name in _SHOWN:
        if (shown := getattr(sample, name)) is not None:
            known[name] = shown.shape
            arrays += shown.astype(ml_dtypes.bfloat16).tobytes()
    if sample.context is not None:
        known["context"] = {name: _told(clip) for name, clip in sample.context.items()}
        arrays += b"".join(clip.latent_THWC.astype(ml_dtypes.bfloat16).tobytes() for clip in sample.context.values())
    return sealed(known, arrays)


def _told(clip: ContextClip) -> dict[str, Any]:
    """Returns what a record says of a clip beside."""
    return {
        "latent_shape": clip.latent_THWC.shape,
        "fps": clip.fps,
        "role": clip.role,
        "scale": clip.scale,
        "drawn": dict(clip.drawn),
    }


def decode_record(record: bytes) -> Prepared:
    """Returns the sample of a record, its latent float32; raises `ValueError` when the checksum is wrong."""
    header, start = opened(record)
    latent_THWC, start = _array(record, start, _LATENT, header["latent_shape"])
    texts, end = texts_in(header["texts"], record, start) if "texts" in header else (None, start)
    shown: dict[str, np.ndarray] = {}
    for name in _SHOWN:
        if name in header:
            array, end = _array(record, end, _LATENT, header[name])
            shown[name] = array.astype(np.float32)
    context: dict[str, ContextClip] = {}
    for name, told in header.get("context", {}).items():
        array, end = _array(record, end, _LATENT, told.pop("latent_shape"))
        context[name] = ContextClip(latent_THWC=array.astype(np.float32), **told)
    if end != len(record):
        raise ValueError(f"it has {len(record)} bytes, and {end} by its shapes")
    return Prepared(
        latent_THWC=latent_THWC.astype(np.float32),
        fps=header["fps"],
        captions=tuple(header["captions"]),
        source_id=header["source_id"],
        pixel_shape=tuple(header["pixel_shape"]),
        trimmed_frames=header["trimmed_frames"],
        weights=tuple(header["weights"]) if "weights" in header else None,
        origin=header["origin"],
        texts=texts,
        shown_THWC=shown.get("shown_THWC"),
        image_ME=shown.get("image_ME"),
        context=context if "context" in header else None,
    )


def sealed(header: Mapping[str, Any], arrays: bytes) -> bytes:
    """Returns a record."""
    text = json.dumps(header).encode()
    body = struct.pack("<I", len(text)) + text + arrays
    return struct.pack("<I", zlib.crc32(body)) + body


def opened(record: bytes) -> tuple[dict[str, Any], int]:
    """Returns (json, where the arrays begin) of a record; raises `ValueError` when the checksum is wrong."""
    if zlib.crc32(record[4:]) != checksum(record):
        raise ValueError("its checksum does not match its contents")
    start = 8 + struct.unpack_from("<I", record, 4)[0]
    return json.loads(record[8:start]), start


def shapes_of(texts: Sequence[Text]) -> list[dict[str, tuple[str, tuple[int, ...]]]]:
    """Returns the dtype and the shape of every array."""
    return [{name: (array.dtype.name, array.shape) for name, array in text.items()} for text in texts]


def bytes_of(texts: Sequence[Text]) -> bytes:
    """Returns the bytes of every array."""
    return b"".join(np.ascontiguousarray(array).tobytes() for text in texts for array in text.values())


def texts_in(shapes: Sequence[Mapping[str, Any]], record: bytes, start: int) -> tuple[tuple[Text, ...], int]:
    """Returns the arrays, of these dtypes and shapes, whose bytes begin at `start`, and where they end."""
    texts = []
    for named in shapes:
        text: Text = {}
        for name, (dtype, shape) in named.items():
            text[name], start = _array(record, start, np.dtype(dtype), shape)
        texts.append(text)
    return tuple(texts), start


def _array(record: bytes, start: int, dtype: np.dtype, shape: Sequence[int]) -> tuple[np.ndarray, int]:
    """Returns the array whose bytes begin at `start`, and where they end."""
    end = start + math.prod(shape) * dtype.itemsize
    return np.frombuffer(memoryview(record)[start:end], dtype).reshape(shape), end


def checksum(record: bytes) -> int:
    """Returns the crc32 that a record carries."""
    return struct.unpack_from("<I", record)[0]
