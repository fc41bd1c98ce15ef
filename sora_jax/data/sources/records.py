"""Clips in ArrayRecord files: a few large files instead of many small ones, any record of which is read alone.

Records come in pairs. The first is JSON, `{"file": "dogs/a.mp4", "bytes": 48213, "caption": "a dog runs"}`: a name
whose ending says that it is one of a clip, the length of the second record, and a text or a list of texts ("captions"
is the same) with the weights that `caption_tables` describes. The second is the media file as it is. So captions are
listed without reading any video. The container is https://github.com/google/array_record.
"""

import contextlib
import functools
import json
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Unpack

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from sora_jax.core.errors import StorageError, UserError
from sora_jax.data.clips import BadClip, Clip
from sora_jax.data.media import video_io
from sora_jax.data.media.file_kinds import MEDIA_SUFFIXES, suffix_of
from sora_jax.data.sources.base import digest
from sora_jax.data.sources.caption_lookup import settle_captions
from sora_jax.data.sources.caption_tables import Written, captions_under, parse_json, weighted
from sora_jax.data.sources.decoded import DecodedSource, SourceLimits
from sora_jax.data.sources.remote import AnyPath, is_folder, is_there, list_folder, passed_over, place, reaching
from sora_jax.data.tokens import clean_captions

SUFFIX = ".arrayrecord"
_READ_AT_ONCE = 1000
# What array_record raises for damage and for files that are not its own.
_READING_ERRORS = (RuntimeError, ValueError, OSError)


class Sample(NamedTuple):
    """A media file to be written: its name, whose ending says what it is, its bytes and its captions.

    `weights`, numbers above 0, say how often each caption is drawn next to the others; None: all alike.
    """

    file: str
    data: bytes
    captions: Sequence[str]
    weights: Sequence[float] | None = None


class _Header(NamedTuple):
    """What the first record of a pair says; captions are not cleaned."""

    file: str
    size: int
    captions: list[Written]


class _Entry(NamedTuple):
    """Where a sample lies: the file's number in the source and the number of the media record."""

    path: int
    record: int
    file: str
    size: int
    captions: tuple[str, ...]
    weights: tuple[float, ...] | None


def write_records(path: str | os.PathLike, samples: Iterable[Sample]) -> int:
    """Returns how many samples were written to the ArrayRecord file `path`, which appears when it is whole.

    Raises `UserError` for another ending than .arrayrecord and for a sample that could not be read back;
    `StorageError` where the disk refuses.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise UserError(f"cannot write {path}: the ending must be {SUFFIX}")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    number = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
        for number, sample in enumerate(samples, start=1):
            writer.write(_header(number, sample))
            writer.write(sample.data)
        writer.close()
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        raise StorageError(f"cannot write {path}: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    return number


def _header(number: int, sample: Sample) -> bytes:
    """Returns the first record of sample `number`; raises `UserError` where it could not be read back."""
    place = f"sample {number}, {sample.file!r},"
    if suffix_of(sample.file) not in MEDIA_SUFFIXES:
        raise UserError(f"{place} must end in one of {sorted(MEDIA_SUFFIXES)}")
    if isinstance(sample.captions, str):
        raise UserError(f"{place} has captions that must be a list of texts")
    header: dict[str, Any] = {"file": sample.file, "bytes": len(sample.data), "captions": list(sample.captions)}
    header |= {} if sample.weights is None else {"weights": list(sample.weights)}
    try:
        weighted(header["captions"], header)
    except ValueError as error:
        raise UserError(f"{place} {error}") from error
    return json.dumps(header).encode()


class RecordSource(DecodedSource):
    """Captioned videos and images in one `.arrayrecord` file, or in all of a folder and its subfolders.

    Clips come in the order of files and records. The table `captions`, if there is one, has others for the clips that
    it names, as `source_id` does, and for windows of them. `uncaptioned` lists those without captions, `missing` what
    the table names and is not there, `linked` folders behind links, which are passed over. `damaged` says in
    sentences what else could not be used: a
    damaged file, a pair whose first record is damaged or not as the top of this module says. A damaged media record is
    a bad clip when it is asked for. `path` may begin with gs://: array_record itself reads from there.

    Raises `UserError` when `path` does not exist, holds no such file, or no captioned clip is left.
    """

    def __init__(
        self, path: str | os.PathLike, *, captions: str | os.PathLike | None = None, **limits: Unpack[SourceLimits]
    ):
        super().__init__(**limits)
        with reaching(path):
            root = place(path, schemes=("gs",))
            self._paths, self.linked = _find(root)
            self._root = root if is_folder(root) else root.parent
        self._entries: list[_Entry] = []
        self.damaged: list[str] = []
        for number in range(len(self._paths)):
            self._list_clips(number)
        settled = settle_captions(
            list(map(self.source_id, range(len(self._entries)))),
            [(entry.captions, entry.weights) for entry in self._entries],
            {},
            table=captions,
            required=self.captions_required,
        )
        for number, (texts, weights) in enumerate(settled.captions):
            self._entries[number] = self._entries[number]._replace(captions=texts, weights=weights)
        self._entries = [self._entries[number] for number in settled.kept]
        self._windows, self.captions_required = settled.windows, settled.required
        self.retold = settled.retold
        self.uncaptioned, self.missing = settled.uncaptioned, settled.missing
        if not self._entries:
            first = next(iter(self.damaged + self.uncaptioned), "they are empty")
            raise UserError(
                f"the {len(self._paths)} {SUFFIX} files of {os.fspath(path)} hold no captioned clip (the first "
                f"problem: {first}): write them with sora_jax.data.sources.records.write_records, or as docs/data.md "
                "says"
            )

    def __len__(self) -> int:
        return len(self._entries)

    def _read(self, index: int, **options: Any) -> Clip:
        entry, name = self._entries[index], self.source_id(index)
        video_io.check_bytes(entry.size, name)
        try:
            data = bytes(_reader(self._paths[entry.path]).read([entry.record])[0])
        except _READING_ERRORS as error:
            raise BadClip(name, f"record {entry.record} cannot be read: {str(error)[:120]}") from error
        if len(data) != entry.size:
            raise BadClip(name, f"record {entry.record} has {len(data)} bytes where {entry.size} were announced")
        pixels_THWC, fps = self._reader.read_bytes(data, name, **options)
        return Clip(pixels_THWC=pixels_THWC, fps=fps, captions=entry.captions, weights=entry.weights, source_id=name)

    def _captioned(self, index: int) -> bool:
        return bool(self._entries[index].captions)

    def size(self, index: int) -> int:
        """Returns the bytes of a clip's media file, as they are announced."""
        return self._entries[index].size

    def source_id(self, index: int) -> str:
        """Returns the record file's name, a slash and the clip's, after its record number where that is taken."""
        entry = self._entries[index]
        return f"{self._label(entry.path)}/{entry.file}"

    def origin(self, index: int) -> str:
        """Returns a digest of the clip's announced size and its captions and weights."""
        entry = self._entries[index]
        return digest(entry.size, entry.captions, entry.weights, *self._facts_of_windows(index))

    def _label(self, number: int) -> str:
        return self._paths[number].relative_to(self._root).as_posix()

    def _list_clips(self, number: int) -> None:
        """Adds the clips of one file to the entries, captioned or not, and what is wrong with others to `damaged`."""
        label = self._label(number)
        try:
            count = _reader(self._paths[number]).num_records()
            if not count:
                # A damaged file opens without a word and seems empty; only reading says what is wrong.
                _reader(self._paths[number]).read([0])
                self.damaged.append(f"{label} holds no record: it is empty, or cut off")
        except _READING_ERRORS as error:
            self.damaged.append(f"{label} holds no record that can be read: {str(error)[:120]}")
            return
        if count % 2:
            self.damaged.append(f"{label} has {count} records, an odd number: the last is passed over")
        numbers, names = list(range(0, count - 1, 2)), set[str]()
        for start in range(0, len(numbers), _READ_AT_ONCE):
            for record, header in _read_headers(self._paths[number], numbers[start : start + _READ_AT_ONCE]):
                if isinstance(header, str):
                    self.damaged.append(f"{label}: record {record} {header}")
                    continue
                name = header.file
                while name in names:
                    name = f"{record}:{name}"
                names.add(name)
                captions, weights = clean_captions(header.captions)
                self._entries.append(_Entry(number, record + 1, name, header.size, captions, weights))


@functools.lru_cache(maxsize=64)
def _open(path: AnyPath, *state: int) -> ArrayRecordReader:
    """Returns a reader of the file as it is now: numbers in `state` tell one state of it from another."""
    del state
    return ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")


def _reader(path: AnyPath) -> ArrayRecordReader:
    # Outside of the source, which then can be sent to other processes.
    if not isinstance(path, Path):
        return _open(path)
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):
        raise OSError("it is no file")  # a pipe would be waited for
    return _open(path, state.st_size, state.st_mtime_ns)


def _read_headers(path: AnyPath, numbers: list[int]) -> list[tuple[int, _Header | str]]:
    """Returns for each record number what it says, or what is wrong with it."""
    reader = _reader(path)
    try:
        return [(number, _parse(record)) for number, record in zip(numbers, reader.read(numbers), strict=True)]
    except _READING_ERRORS as error:
        if len(numbers) == 1:
            return [(numbers[0], f"is damaged: {str(error)[:120]}")]
        # One damaged record fails all that are read with it.
        return [row for number in numbers for row in _read_headers(path, [number])]


def _parse(record: bytes) -> _Header | str:
    """Returns what a first record says, or what is wrong with it."""
    try:
        header = parse_json(bytes(record))
    except ValueError:
        return f"is not JSON: it begins {bytes(record)[:40]!r}"
    known = isinstance(header, dict) and isinstance(header.get("file"), str) and isinstance(header.get("bytes"), int)
    if not known:
        return f'must hold "file" and "bytes": it begins {bytes(record)[:40]!r}'
    try:
        return _Header(
            header["file"], header["bytes"], weighted(captions_under(header, "caption", "captions") or [], header)
        )
    except ValueError as error:
        return str(error)


def _find(path: AnyPath) -> tuple[list[AnyPath], list[str]]:
    """Returns the record files that `path` stands for, sorted, and the folders behind links in which none is."""
    if not is_there(path):
        raise UserError(f"{path} does not exist: pass --config.data.path=FILE{SUFFIX} or a folder of such files")
    if not is_folder(path):
        return [path], []
    sizes, linked = list_folder(path)
    found = sorted(path / name for name in sizes if name.lower().endswith(SUFFIX))
    if not found:
        raise UserError(
            f"the folder {path} holds no {SUFFIX} file{passed_over(linked)}: see write_records in docs/data.md"
        )
    return found, linked
