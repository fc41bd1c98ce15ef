"""What is in a directory of prepared shards: the files, their layout and their checks.

Letters: N samples, M captions, T H W C latents, k text tokens of a caption.

  header.json                 what the samples were made with (see `HEADER_KEYS`)
  empty_text.bin              the stored arrays of the empty text, where the text encoder stores any
  NAME-00000.arrayrecord      one record a sample
  NAME-00000.index.npz        lengths, source ids, origins and checksums of a shard, and the words of its captions; one
                              without it does not exist
  NAME.skipped.jsonl          lines {"source_id", "origin", "reason"}

A record is, little endian: uint32 crc32 of all that follows, uint32 length of the json, the json, the bfloat16 bytes of
the latent, those of the stored arrays of its captions, and those, bfloat16, of what a model is shown of the clip; the
empty text is a record of the second alone. Nothing is ever unpickled. Format 2 is format 3 without anything stored of a
text, format 3 is format 4 without anything that is shown.
"""

import contextlib
import dataclasses
import json
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from sora_jax.core.errors import DataError, StorageError, UserError
from sora_jax.data.tokens import Text
from sora_jax.data.words import words_of

FORMAT = 3
_SHOWN_FORMAT = 4  # of shards that also hold what a model is shown: an older program says that it cannot read them
_READ_FORMATS = (2, FORMAT, _SHOWN_FORMAT)
HEADER_FILE = "header.json"
EMPTY_TEXT_FILE = "empty_text.bin"
# What a header says, in words: fingerprints (of the autoencoder's weights, of the text encoder's name and version; of a
# frozen one also of its file of text tokens and of how texts are cleaned and cut; of how frames are shown), then lists
# of C floats, [temporal, spatial] strides, and C.
_WORDS = {
    "autoencoder": "autoencoder",
    "text_encoder": "text encoder",
    "tokenizer": "tokenizer",
    "cleaning": "cleaning of texts",
    "text_tokens": "length of texts",
    "shown": "way in which the model is shown frames",
    "latent_mean": "autoencoder's latent mean",
    "latent_scale": "autoencoder's latent scale",
    "strides": "autoencoder's strides",
    "channels": "autoencoder's channels",
}
HEADER_KEYS = frozenset(_WORDS)
OPTIONAL_KEYS = frozenset({"tokenizer", "cleaning", "text_tokens", "shown"})

_SHOWN = ("shown_THWC", "image_ME")

ClipKey = tuple[str, str]  # a clip's source id and origin


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """One sample: float32 `latent_THWC`, and what is known about the clip that it was made from.

    `latent_THWC` is raw when it is given to a writer and normalised when it comes from a `PreparedSet`.
    `pixel_shape` is the encoded clip's (frames, height, width), `trimmed_frames` how many were cut before
    that. `weights` says how often each caption is drawn; None: all alike. `origin` is the source's word for what
    the clip was made from (`data.sources.Source.origin`). `file_frames` are those of its file (`data.clips.Clip`),
    which only the index keeps. `texts` are the arrays of each caption, where the text encoder stores them
    (`Tokenizer.stored`). `shown_THWC` and `image_ME` are what the model is shown of it, where it is shown frames
    (`video/shown.py`): a latent as `latent_THWC`, of its shape, and tokens of images.
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


def encode_record(sample: Prepared) -> bytes:
    """Returns the record of a sample; latents and tokens of images are rounded to bfloat16."""
    apart = ("latent_THWC", "texts", "file_frames", *_SHOWN)
    known = {f.name: getattr(sample, f.name) for f in dataclasses.fields(sample) if f.name not in apart}
    if known["weights"] is None:
        del known["weights"]
    known["latent_shape"] = sample.latent_THWC.shape
    arrays = sample.latent_THWC.astype(ml_dtypes.bfloat16).tobytes()
    if sample.texts is not None:
        known["texts"] = _shapes(sample.texts)
        arrays += _bytes(sample.texts)
    for name in _SHOWN:
        if (shown := getattr(sample, name)) is not None:
            known[name] = shown.shape
            arrays += shown.astype(ml_dtypes.bfloat16).tobytes()
    return _sealed(known, arrays)


def decode_record(record: bytes) -> Prepared:
    """Returns the sample of a record, its latent float32; raises `ValueError` when the checksum is wrong."""
    header, start = _opened(record)
    latent_THWC, start = _array(record, start, np.dtype(ml_dtypes.bfloat16), header["latent_shape"])
    texts, end = _texts(header["texts"], record, start) if "texts" in header else (None, start)
    shown: dict[str, np.ndarray] = {}
    for name in _SHOWN:
        if name in header:
            array, end = _array(record, end, np.dtype(ml_dtypes.bfloat16), header[name])
            shown[name] = array.astype(np.float32)
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
    )


def _sealed(header: Mapping[str, Any], arrays: bytes) -> bytes:
    """Returns a record."""
    text = json.dumps(header).encode()
    body = struct.pack("<I", len(text)) + text + arrays
    return struct.pack("<I", zlib.crc32(body)) + body


def _opened(record: bytes) -> tuple[dict[str, Any], int]:
    """Returns (json, where the arrays begin) of a record; raises `ValueError` when the checksum is wrong."""
    if zlib.crc32(record[4:]) != checksum(record):
        raise ValueError("its checksum does not match its contents")
    start = 8 + struct.unpack_from("<I", record, 4)[0]
    return json.loads(record[8:start]), start


def _shapes(texts: Sequence[Text]) -> list[dict[str, tuple[str, tuple[int, ...]]]]:
    """Returns the dtype and the shape of every array."""
    return [{name: (array.dtype.name, array.shape) for name, array in text.items()} for text in texts]


def _bytes(texts: Sequence[Text]) -> bytes:
    return b"".join(np.ascontiguousarray(array).tobytes() for text in texts for array in text.values())


def _texts(shapes: Sequence[Mapping[str, Any]], record: bytes, start: int) -> tuple[tuple[Text, ...], int]:
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """What the index keeps of a sample."""

    grid: tuple[int, ...]
    fps: float
    text_tokens: tuple[int, ...]
    weights: tuple[float, ...]
    trimmed_frames: int
    crc: int
    source_id: str
    origin: str
    words: frozenset[str]
    file_frames: int | None

    @classmethod
    def of(cls, sample: Prepared, *, crc: int, text_tokens: Sequence[int]) -> "Entry":
        """Returns the entry of a sample; its record carries the checksum `crc`, its captions have so many tokens."""
        return cls(
            grid=sample.latent_THWC.shape[:3],
            fps=sample.fps,
            text_tokens=tuple(text_tokens),
            weights=sample.weights or (1.0,) * len(sample.captions),
            trimmed_frames=sample.trimmed_frames,
            crc=crc,
            source_id=sample.source_id,
            origin=sample.origin,
            words=frozenset().union(*map(words_of, sample.captions)),
            file_frames=sample.file_frames,
        )


def write_index(path: Path, entries: Sequence[Entry]) -> None:
    """Writes the index of a shard whose records are `entries`, in order."""
    made_from = json.dumps([[entry.source_id, entry.origin] for entry in entries]).encode()
    words = json.dumps(sorted(frozenset().union(*(entry.words for entry in entries)))).encode()
    with path.open("wb") as file:
        np.savez(
            file,
            grid_N3=np.array([entry.grid for entry in entries], np.int32),
            fps_N=np.array([entry.fps for entry in entries], np.float32),
            captions_N=np.array([len(entry.text_tokens) for entry in entries], np.int32),
            text_tokens_M=np.array([n for entry in entries for n in entry.text_tokens], np.int32),
            weights_M=np.array([weight for entry in entries for weight in entry.weights], np.float64),
            trimmed_frames_N=np.array([entry.trimmed_frames for entry in entries], np.int32),
            file_frames_N=np.array([entry.file_frames or 0 for entry in entries], np.int64),
            crc_N=np.array([entry.crc for entry in entries], np.uint32),
            made_from=np.frombuffer(made_from, np.uint8),
            words=np.frombuffer(words, np.uint8),
        )


def read_words(directory: Path) -> set[str] | None:
    """Returns the words (`words_of`) of all captions in committed shards; None where a shard has not noted them."""
    found: set[str] = set()
    paths = index_paths(directory)
    for path in paths:
        index = read_index(path, only=("words",))
        if "words" not in index:
            return None
        found |= set(json.loads(index["words"].tobytes()))
    return found if paths else None


def read_written(directory: Path) -> dict[ClipKey, tuple[str, int]]:
    """Returns (name of the index, number of the record) of every clip in committed shards."""
    written = {}
    for path in index_paths(directory):
        for number, clip in enumerate(json.loads(read_index(path)["made_from"].tobytes())):
            written[tuple(clip)] = (path.name, number)
    return written


def index_paths(directory: Path) -> list[Path]:
    """Returns the indices of all committed shards, in the order of their samples."""
    return sorted(directory.glob("*.index.npz"))


def read_index(path: Path, *, only: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Returns the arrays of an index, or some of them; raises `DataError` that names it when it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files if only is None or name in only}
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, EOFError, OSError) as error:
        raise DataError(
            f"the index {path} is damaged ({error}): restore it from a copy, or prepare in a new --workdir"
        ) from error


def write_header(directory: Path, header: Mapping[str, Any]) -> None:
    """Writes the header, or checks that the one there is the same."""
    path = directory / HEADER_FILE
    if not path.exists():
        # The process id keeps writers of one directory from writing into each other's temporary file.
        temporary = directory / f"{HEADER_FILE}.{os.getpid()}.tmp"
        written = {"format": _SHOWN_FORMAT if "shown" in header else FORMAT, **header}
        temporary.write_text(json.dumps(written, indent=2) + "\n")
        commit(temporary, path)
    check_same(directory, read_header(directory), header)


def read_header(directory: Path) -> dict[str, Any]:
    """Returns the header; raises `UserError` when none of this format is there, `DataError` on damage."""
    path = directory / HEADER_FILE
    if not path.exists():
        raise UserError(f"{directory} holds no prepared data (no {HEADER_FILE}): run prepare first")
    try:
        header = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(
            f"{path} is damaged ({error}): restore it from a copy, or prepare in a new --workdir"
        ) from error
    if (found := header.pop("format", None)) not in _READ_FORMATS:
        first, last = _READ_FORMATS[0], _READ_FORMATS[-1]
        raise UserError(f"{path} is of format {found}, and {first} to {last} are read here: prepare in a new --workdir")
    return header


def write_empty_text(directory: Path, text: Text) -> None:
    """Writes the stored arrays of the empty text, where no other process has."""
    path = directory / EMPTY_TEXT_FILE
    if not path.exists():
        temporary = directory / f"{EMPTY_TEXT_FILE}.{os.getpid()}.tmp"
        temporary.write_bytes(_sealed({"texts": _shapes([text])}, _bytes([text])))
        commit(temporary, path)


def read_empty_text(directory: Path) -> Text | None:
    """Returns the stored arrays of the empty text; None where nothing of texts is stored; `DataError` on damage."""
    path = directory / EMPTY_TEXT_FILE
    if not path.exists():
        return None
    try:
        record = path.read_bytes()
        header, start = _opened(record)
        return _texts(header["texts"], record, start)[0][0]
    except (ValueError, TypeError, LookupError, OSError, struct.error) as error:
        raise DataError(
            f"{path} is damaged ({error}): restore it from a copy, or prepare in a new --workdir"
        ) from error


def check_same(directory: Path, header: Mapping[str, Any], expect: Mapping[str, Any]) -> None:
    """Raises `UserError` naming everything in `expect` that differs, such as the autoencoder."""
    assert expect.keys() <= HEADER_KEYS, expect.keys()
    asked = json.loads(json.dumps(dict(expect)))
    changes = [
        f"the {words} changed from {header.get(key, 'none')} to {asked[key]}"
        for key, words in _WORDS.items()
        if key in asked and header.get(key) != asked[key]
    ]
    if changes:
        raise UserError(
            f"{directory} was prepared with something else: {'; '.join(changes)}: "
            "prepare into a new directory, or go back to what it was prepared with"
        )


def commit(temporary: Path, path: Path) -> None:
    """Gives a finished file its name, once its bytes are on disk."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


@contextlib.contextmanager
def storage(path: Path) -> Iterator[None]:
    """Turns what the disk or the record writer refuses into a `StorageError` that names the path."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise StorageError(f"cannot write {path}: {error}") from error
