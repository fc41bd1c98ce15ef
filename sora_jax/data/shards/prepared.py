"""Prepared shards: latents and texts of clips, written once and read by every stage.

Letters: N samples, M captions, T H W C latents. The files are described in `data/shards/files.py`.
"""

import dataclasses
import hashlib
import json
import os
import re
import struct
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from sora_jax.core.errors import DataError, UserError
from sora_jax.data.shards import files, records, skipped
from sora_jax.data.shards.catalogue import read_catalogue
from sora_jax.data.shards.files import HEADER_KEYS, OPTIONAL_KEYS, ClipKey, storage
from sora_jax.data.shards.records import Prepared
from sora_jax.data.shards.skipped import SKIPPED_FILE
from sora_jax.data.tokens import Tokenizer

_DIGITS = "[0-9]" * 6
_INDEX, _RECORDS = ".index.npz", ".arrayrecord"


class ShardWriter:
    """Writes samples to shards of `records_per_shard`, and goes on where an interrupted writer stopped.

    A shard appears under its name only when it is whole; what a killed writer had not yet committed is
    written again. `done` holds (source id, origin) of the clips that earlier writers of the directory (of any
    name) wrote or skipped: leave those out. Each process writes under its own `name`. As a context manager it
    commits the last shard on leaving, also when left by an exception, since every added record is complete.
    `tokenizer` counts the captions' tokens; where it stores arrays, samples bring them, and the first writer adds those
    of the empty text.

    Raises `UserError` when the directory holds shards made with something else, `StorageError` when the disk
    refuses, `DataError` when a latent is not finite.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        header: Mapping[str, Any],
        tokenizer: Tokenizer,
        name: str = "data",
        records_per_shard: int = 512,
    ):
        assert HEADER_KEYS - OPTIONAL_KEYS <= header.keys() <= HEADER_KEYS, sorted(header.keys() ^ HEADER_KEYS)
        assert records_per_shard > 0, records_per_shard
        self._directory = Path(directory)
        self._name = name
        self._records_per_shard = records_per_shard
        self._channels = header["channels"]
        self._context = tuple(header.get("context", {}))
        self._tokenizer = tokenizer
        self._entries: list[files.Entry] = []
        self._writer: ArrayRecordWriter | None = None
        with storage(self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)
            files.write_header(self._directory, header)
            for leftover in self._directory.glob(f"{name}-{_DIGITS}.*.tmp"):
                leftover.unlink()
            skipped.end_last_line(self._skipped())
        self._empty_text = tokenizer.encode([""])[0] if tokenizer.stored else None
        if self._empty_text is not None:
            with storage(self._directory):
                files.write_empty_text(self._directory, self._empty_text)
        indices = self._directory.glob(f"{name}-{_DIGITS}.index.npz")
        numbers = [int(path.name.removeprefix(f"{name}-").split(".")[0]) for path in indices]
        self._number = 1 + max(numbers, default=-1)
        self.done = frozenset({*files.read_written(self._directory), *skipped.read_skipped(self._directory)})

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, sample: Prepared) -> None:
        """Adds a sample with a raw latent; a sample without captions gets the empty one."""
        assert sample.latent_THWC.ndim == 4, sample.latent_THWC.shape
        assert sample.latent_THWC.shape[-1] == self._channels, (sample.latent_THWC.shape, self._channels)
        assert sample.fps > 0, sample.fps
        if not np.all(np.isfinite(sample.latent_THWC)):
            raise DataError(f"the latent of {sample.source_id} is not finite: check the autoencoder")
        assert sample.shown_THWC is None or sample.shown_THWC.shape == sample.latent_THWC.shape, sample.source_id
        assert sample.weights is None or len(sample.weights) == len(sample.captions), sample.weights
        if not sample.captions:
            texts = None if self._empty_text is None else (self._empty_text,)
            sample = dataclasses.replace(sample, captions=("",), weights=None, texts=texts)
        lengths = list(map(self._tokenizer.count, sample.captions))
        assert (sample.texts is not None) == self._tokenizer.stored, sample.source_id
        for length, text in zip(lengths, sample.texts or (), strict=self._tokenizer.stored):
            assert {len(array) for array in text.values()} == {length}, (sample.source_id, length)
        record = records.encode_record(sample)
        with storage(self._path("arrayrecord")):
            self._open_writer().write(record)
        self._entries.append(files.Entry.of(sample, crc=records.checksum(record), text_tokens=lengths))
        if len(self._entries) == self._records_per_shard:
            self.close()

    def skip(self, clip: ClipKey, reason: str) -> None:
        """Records at once that a source's clip is left out, and why."""
        path = self._skipped()
        with storage(path), path.open("ab") as file:
            file.write(skipped.skip_line(clip, reason))

    def close(self) -> None:
        """Commits the shard being written, if any; the writer may go on with the next one."""
        if self._writer is None:
            return
        records, index = self._path("arrayrecord"), self._path("index.npz")
        with storage(records):
            self._writer.close()
            self._writer = None
            # The index comes last: without it the shard does not exist.
            files.commit(self._path("arrayrecord.tmp"), records)
            files.write_index(self._path("index.npz.tmp"), self._entries, context=self._context)
            files.commit(self._path("index.npz.tmp"), index)
        self._entries = []
        self._number += 1

    def _open_writer(self) -> ArrayRecordWriter:
        if self._writer is None:
            # Random access reads one record at a time, and bfloat16 noise does not compress.
            path = self._path("arrayrecord.tmp")
            self._writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        return self._writer

    def _skipped(self) -> Path:
        return self._directory / f"{self._name}.{SKIPPED_FILE}"

    def _path(self, suffix: str) -> Path:
        return self._directory / f"{self._name}-{self._number:06d}.{suffix}"


class PreparedSet:
    """All samples in one or more directories of shards, by index; thread safe.

    The samples of a directory are those that its catalogue names, in that order; without a catalogue all in committed
    shards, in the order of their names. `header` is what the shards were made with, the same in every directory, and
    `empty_text` the stored arrays of the empty text, None where nothing of texts is stored.
    In the order of samples: `directory_N` int32 the number of the directory, `grid_N3` int32 latent sizes (t, h, w),
    `fps_N` float32, `trimmed_frames_N` int32, `file_frames_N` int64 the frames in its file, 0 where that is not known
    (None where older shards noted none), and of each caption `text_tokens_M` int32 and `weights_M` float64, those
    of sample i from `caption_start_N1[i]` up to `caption_start_N1[i + 1]`. `context_grids` are, by name, latent sizes
    of clips beside, int32 (N, 3), zero where a sample has none.

    Raises `UserError` when a directory holds no prepared samples, or one made with something else than the first,
    `DataError` when an index is damaged.
    """

    def __init__(self, *directories: str | os.PathLike):
        self.header = files.read_header(Path(directories[0]))
        self.empty_text = files.read_empty_text(Path(directories[0]))
        self._shards: list[Path] = []
        parts = [self._list_samples(Path(directory)) for directory in directories]
        shared = [name for name in parts[0] if all(name in part for part in parts)]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in shared}
        self.directory_N = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part["crc_N"]) for part in parts])
        self.grid_N3 = joined["grid_N3"]
        self.fps_N = joined["fps_N"]
        self.trimmed_frames_N = joined["trimmed_frames_N"]
        self.file_frames_N = joined.get("file_frames_N")
        self.text_tokens_M = joined["text_tokens_M"]
        self.weights_M = joined["weights_M"]
        names = self.header.get("context", {})
        self.context_grids = {name: joined[files.context_grids(name)] for name in names}
        self.caption_start_N1 = np.concatenate([[0], np.cumsum(joined["captions_N"], dtype=np.int64)])
        self._shard_N, self._record_N, self._crc_N = joined["shard_N"], joined["record_N"], joined["crc_N"]
        self._mean_C = np.array(self.header["latent_mean"], np.float32)
        self._scale_C = np.array(self.header["latent_scale"], np.float32)
        self._close_readers()

    def _close_readers(self) -> None:
        self._readers: dict[Path, ArrayRecordReader] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Returns the set without its open files: it is pickled for worker processes."""
        return {name: value for name, value in vars(self).items() if name not in ("_readers", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._close_readers()

    @classmethod
    def open(cls, directories: Sequence[str | os.PathLike], expect: Mapping[str, str]) -> "PreparedSet":
        """Returns the set, if it was made with what `expect` says ("autoencoder", "text_encoder", "tokenizer").

        Fingerprints that `expect` leaves out are not compared. Raises `UserError` that names what changed.
        """
        prepared = cls(*directories)
        files.check_same(Path(directories[0]), prepared.header, expect)
        return prepared

    def __len__(self) -> int:
        return len(self._crc_N)

    def __getitem__(self, index: int) -> Prepared:
        """Returns a sample with its latents normalised, (latent - mean) / scale for each channel.

        Raises `DataError` that names the shard and the record when the record is damaged.
        """
        sample = self.raw(index)
        shown, context = sample.shown_THWC, sample.context
        if context is not None:
            context = {
                name: dataclasses.replace(clip, latent_THWC=(clip.latent_THWC - self._mean_C) / self._scale_C)
                for name, clip in context.items()
            }
        return dataclasses.replace(
            sample,
            latent_THWC=(sample.latent_THWC - self._mean_C) / self._scale_C,
            shown_THWC=None if shown is None else (shown - self._mean_C) / self._scale_C,
            context=context,
        )

    def raw(self, index: int) -> Prepared:
        """Returns a sample with its latent as the writer was given it, rounded to bfloat16; raises as indexing does."""
        path, record_number = self._shards[self._shard_N[index]], int(self._record_N[index])
        try:
            record = self._reader(path).read([record_number])[0]
            if records.checksum(record) != self._crc_N[index]:
                raise ValueError("it is not the record that the index was written for")
            return records.decode_record(record)
        except (LookupError, RuntimeError, TypeError, ValueError, OSError, struct.error) as error:
            raise DataError(
                f"record {record_number} of shard {path} is damaged ({error}): "
                "restore the shard from a copy, or prepare in a new --workdir"
            ) from error

    def source_ids(self) -> list[str]:
        """Returns the source id of each sample, as the indices have it."""
        indices = [path.with_name(path.name.replace(_RECORDS, _INDEX)) for path in self._shards]
        made_from = [json.loads(files.read_index(path, only=("made_from",))["made_from"].tobytes()) for path in indices]
        return [made_from[shard][record][0] for shard, record in zip(self._shard_N, self._record_N, strict=True)]

    def _list_samples(self, directory: Path) -> dict[str, np.ndarray]:
        """Returns what the indices know of a directory's samples, and where in `_shards` their records lie."""
        files.check_same(directory, files.read_header(directory), self.header)
        catalogue = read_catalogue(directory)
        paths = [directory / name for name in catalogue.indices] if catalogue else files.index_paths(directory)
        if not paths:
            left_out = len(skipped.read_skipped(directory))
            raise UserError(
                f"{directory} holds no prepared samples and {left_out} skipped clips (see {SKIPPED_FILE}): "
                "prepare in a new --workdir"
            )
        indices = [files.read_index(path) for path in paths]
        counts = [len(index["crc_N"]) for index in indices]
        # Those of samples and captions, and no texts; older indices lack one.
        shared = set(indices[0]).intersection(*indices)
        names = [name for name in indices[0] if re.search(r"_[NM]\d?$", name) and name in shared]
        records = {name: np.concatenate([index[name] for index in indices]) for name in names}
        records["shard_N"] = np.repeat(np.arange(len(paths), dtype=np.int32) + len(self._shards), counts)
        records["record_N"] = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])
        self._shards += [path.with_name(path.name.replace(_INDEX, _RECORDS)) for path in paths]
        if catalogue is None:
            return records
        first = np.cumsum([0, *counts[:-1]])
        return _choose(records, first[catalogue.shard_N] + catalogue.record_N)

    @property
    def text_lengths(self) -> list[list[int]]:
        """Returns for each sample the number of text tokens of each of its captions."""
        return [part.tolist() for part in np.split(self.text_tokens_M, self.caption_start_N1[1:-1])]

    def fingerprint(self) -> str:
        """Returns a sha256 in hex of the header, the lengths and the checksum of every record, in order."""
        digest = hashlib.sha256(json.dumps(self.header, sort_keys=True).encode())
        for array in (self._crc_N, self.grid_N3, self.text_tokens_M, self.caption_start_N1):
            digest.update(np.ascontiguousarray(array).tobytes())
        for name, array in sorted((self.empty_text or {}).items()):
            digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def clips_fingerprint(self) -> str:
        """Returns a sha256 in hex of what stays the same where captions alone change: clips, sizes, rates, header."""
        digest = hashlib.sha256(json.dumps([self.header, self.source_ids()], sort_keys=True).encode())
        for array in (self.grid_N3, self.fps_N):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def _reader(self, path: Path) -> ArrayRecordReader:
        with self._lock:
            if path not in self._readers:
                options = "readahead_buffer_size:0,max_parallelism:0"
                self._readers[path] = ArrayRecordReader(str(path), options)
            return self._readers[path]


def _choose(records: Mapping[str, np.ndarray], chosen_N: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the arrays of some records, by their numbers, with the captions of each."""
    counts_N = records["captions_N"][chosen_N]
    starts_N = (np.cumsum(records["captions_N"]) - records["captions_N"])[chosen_N]
    caption_M = np.arange(counts_N.sum()) + np.repeat(starts_N - np.cumsum(counts_N) + counts_N, counts_N)
    picked = {name: array[chosen_N] for name, array in records.items() if not name.endswith("_M")}
    return picked | {name: array[caption_M] for name, array in records.items() if name.endswith("_M")}
