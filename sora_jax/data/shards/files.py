"""What is in a directory of prepared shards: the files, their layout and their checks.

Letters: N samples, M captions, T H W C latents, k text tokens of a caption.

  header.json                 what the samples were made with (see `HEADER_KEYS`)
  empty_text.bin              the stored arrays of the empty text, where the text encoder stores any
  NAME-00000.arrayrecord      one record a sample
  NAME-00000.index.npz        lengths, source ids, origins and checksums of a shard, the words of its captions and how
                              they are spelled; one without it does not exist
  NAME.skipped.jsonl          lines {"source_id", "origin", "reason"}

Records are those of `data/shards/records.py`. Format 2 is format 3 without anything stored of a text, format 3 is
format 4 without anything that is shown, format 4 is format 5 without clips beside.
"""

import contextlib
import dataclasses
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sora_jax.core.errors import DataError, StorageError, UserError
from sora_jax.data.shards import records
from sora_jax.data.shards.records import Prepared
from sora_jax.data.tokens import Text
from sora_jax.data.words import spellings_of, words_of

FORMAT = 3
_SHOWN_FORMAT = 4  # of shards that also hold what a model is shown: an older program says that it cannot read them
_CONTEXT_FORMAT = 5  # of shards that also hold clips beside
_READ_FORMATS = (2, FORMAT, _SHOWN_FORMAT, _CONTEXT_FORMAT)
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
    "context": "way in which clips beside are made",
    "latent_mean": "autoencoder's latent mean",
    "latent_scale": "autoencoder's latent scale",
    "strides": "autoencoder's strides",
    "channels": "autoencoder's channels",
}
HEADER_KEYS = frozenset(_WORDS)
OPTIONAL_KEYS = frozenset({"tokenizer", "cleaning", "text_tokens", "shown", "context"})

ClipKey = tuple[str, str]  # a clip's source id and origin


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
    spellings: frozenset[str]
    file_frames: int | None
    context: Mapping[str, tuple[int, ...]]

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
            spellings=frozenset().union(*map(spellings_of, sample.captions)),
            file_frames=sample.file_frames,
            context={name: clip.latent_THWC.shape[:3] for name, clip in (sample.context or {}).items()},
        )


def context_grids(name: str) -> str:
    """Returns what the index calls the latent grids, zero where there is none, of the clips beside of one name."""
    return f"context_{name}_N3"


def write_index(path: Path, entries: Sequence[Entry], *, context: Collection[str] = ()) -> None:
    """Writes the index of a shard whose records are `entries`, in order; `context` names all clips beside."""
    beside: dict[str, Any] = {
        context_grids(name): np.array([entry.context.get(name, (0, 0, 0)) for entry in entries], np.int32)
        for name in context
    }
    made_from = json.dumps([[entry.source_id, entry.origin] for entry in entries]).encode()
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
            words=_noted(entry.words for entry in entries),
            spellings=_noted(entry.spellings for entry in entries),
            **beside,
        )


def _noted(sets: Iterable[frozenset[str]]) -> np.ndarray:
    """Returns the union of sets of texts as JSON, uint8."""
    return np.frombuffer(json.dumps(sorted(frozenset().union(*sets))).encode(), np.uint8)


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
        known = _CONTEXT_FORMAT if "context" in header else _SHOWN_FORMAT if "shown" in header else FORMAT
        written = {"format": known, **header}
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
        temporary.write_bytes(records.sealed({"texts": records.shapes_of([text])}, records.bytes_of([text])))
        commit(temporary, path)


def read_empty_text(directory: Path) -> Text | None:
    """Returns the stored arrays of the empty text; None where nothing of texts is stored; `DataError` on damage."""
    path = directory / EMPTY_TEXT_FILE
    if not path.exists():
        return None
    try:
        record = path.read_bytes()
        header, start = records.opened(record)
        return records.texts_in(header["texts"], record, start)[0][0]
    except (ValueError, TypeError, LookupError, OSError, struct.error) as error:
        raise DataError(
            f"{path} is damaged ({error}): restore it from a copy, or prepare in a new --workdir"
        ) from error


def check_same(
    directory: Path,
    header: Mapping[str, Any],
    expect: Mapping[str, Any],
    *,
    remedy: str = "prepare into a new directory, or go back to what it was prepared with",
) -> None:
    """Raises `UserError` naming everything in `expect` that differs, such as the autoencoder, and the remedy."""
    assert expect.keys() <= HEADER_KEYS, expect.keys()
    asked = json.loads(json.dumps(dict(expect)))
    changes = [
        f"the {words} changed from {header.get(key, 'none')} to {asked[key]}"
        for key, words in _WORDS.items()
        if key in asked and header.get(key) != asked[key]
    ]
    if changes:
        raise UserError(f"{directory} was prepared with something else: {'; '.join(changes)}: {remedy}")


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
