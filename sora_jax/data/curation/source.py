"""A heap of raw videos as a source of clips worth training on.

Files are scanned once: shots, windows, scores. What was found is kept in a table, a line a file, appended as the scan
goes. Thresholds and duplicates are applied to the table when it is read, so that changing them scans nothing.

  windows.jsonl    {"file", "bytes", "key", "windows": [{"first", "last", "size", "scores"}], "longest", "bad"}; `bad`
                   says why the file cannot be decoded, or is null. A line counts for a file of that name and size and
                   for that key, a sha256 of what the windows depend on; among several the last one counts.
  skipped.jsonl    {"source_id", "reason"} of each window that is dropped, as the thresholds are now
  kept.jsonl       {"file", "caption": []} of each window that is kept: to be filled in, and used as a table of captions
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from absl import logging

from sora_jax.core.errors import CommandError, DataError, UserError
from sora_jax.core.printable import printable
from sora_jax.data.clips import BadClip, Clip, with_pixels
from sora_jax.data.curation.duplicates import find_duplicates
from sora_jax.data.curation.letterbox import crop_bars
from sora_jax.data.curation.measures import SMALL_SIDE, CurationConfig, Scores, measure, refuse
from sora_jax.data.curation.shots import cut_windows, find_shots, load_detector
from sora_jax.data.shards.files import storage
from sora_jax.data.shards.skipped import SKIPPED_FILE, end_last_line
from sora_jax.data.sources.base import Source, digest, read_ahead

TABLE_FILE = "windows.jsonl"
KEPT_FILE = "kept.jsonl"
_NO_CAPTION = "has no caption, and neither has its file"


@runtime_checkable
class VideoFiles(Source, Protocol):
    """Files, and windows of them; every `data.sources.decoded.DecodedSource` is one."""

    def window(self, index: int, first: int, last: int) -> Clip:
        """Returns frames `first` to `last`, both included, at their native size."""
        ...

    def thumbnails(self, index: int, *, short_side: int) -> Clip:
        """Returns all frames, small."""
        ...

    def lacks_caption(self, index: int, first: int, last: int) -> bool:
        """Returns whether a window would have no caption though captions are required."""
        ...

    def captioned_windows(self, index: int) -> frozenset[tuple[int, int]]:
        """Returns the first and last frames of the windows of a file that have captions of their own."""
        ...

    def size(self, index: int) -> int | None:
        """Returns the bytes of the file, or another number that changes when the file does."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """Frames `first` to `last`, both included, of `size` = (rows, columns) px, and what was measured of them."""

    first: int
    last: int
    size: tuple[int, int]
    scores: Scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileEntry:
    """What a scan found in a file: its windows, the frames of its longest shot; or why it is bad."""

    windows: tuple[Window, ...]
    longest: int
    bad: str | None


class CurationTable:
    """What scans of a heap found, by file; it grows a line at a time and goes on after a kill.

    `add` writes to disk unless `writes` is False. Lines of other keys, and files that are no longer there, stay.
    """

    def __init__(self, directory: Path, key: str, *, writes: bool):
        self._path = directory / TABLE_FILE
        self._key = key
        self._writes = writes
        if writes:
            with storage(self._path):
                directory.mkdir(parents=True, exist_ok=True)
                end_last_line(self._path)
        self._entries: dict[tuple[str, int | None], FileEntry] = {}
        for line in self._path.read_bytes().splitlines() if self._path.exists() else []:
            with contextlib.suppress(ValueError):  # a line torn by a killed writer is written again
                row = json.loads(line)
                if row["key"] == key:
                    self._entries[row["file"], row["bytes"]] = _entry_of(row)

    def __contains__(self, file: tuple[str, int | None]) -> bool:
        """Whether a file of this name and this many bytes was scanned."""
        return file in self._entries

    def __getitem__(self, file: tuple[str, int | None]) -> FileEntry:
        return self._entries[file]

    def add(self, file: tuple[str, int | None], entry: FileEntry) -> None:
        """Records at once what was found in a file."""
        self._entries[file] = entry
        if self._writes:
            row = {"file": file[0], "bytes": file[1], "key": self._key, **dataclasses.asdict(entry)}
            with storage(self._path), self._path.open("a") as table:
                table.write(json.dumps(row) + "\n")


def _entry_of(row: dict[str, Any]) -> FileEntry:
    windows = tuple(
        Window(
            first=window["first"],
            last=window["last"],
            size=tuple(window["size"]),
            scores=Scores(
                **{
                    **window["scores"],
                    "bars": tuple(window["scores"]["bars"]),
                    "colour": tuple(window["scores"]["colour"]),
                }
            ),
        )
        for window in row["windows"]
    )
    return FileEntry(windows=windows, longest=row["longest"], bad=row["bad"])


def scan_file(heap: VideoFiles, index: int, config: CurationConfig, *, max_frames: int) -> FileEntry:
    """Returns the windows of a file with their scores."""
    try:
        if config.windowed:
            small = heap.thumbnails(index, short_side=SMALL_SIDE).pixels_THWC
            shots = [(0, len(small) - 1)]
            if config.shots:
                shots = find_shots(small, ratio=config.shot_ratio, change=config.shot_change)
        else:
            shots = [(0, len(heap[index].pixels_THWC) - 1)]
        # An image is one frame, and none too few.
        min_frames = 1 if shots == [(0, 0)] else config.min_frames
        pieces = cut_windows(shots, max_frames=max_frames, min_frames=min_frames, at_most=config.windows_per_file)
        windows = []
        for first, last in pieces:
            clip = heap.window(index, first, last)
            scores = measure(clip, crop=config.letterbox == "crop")
            height, width = clip.pixels_THWC.shape[1:3]
            windows.append(Window(first=first, last=last, size=(height, width), scores=scores))
    except BadClip as bad:
        return FileEntry(windows=(), longest=0, bad=bad.reason)
    return FileEntry(windows=tuple(windows), longest=max(last - first + 1 for first, last in shots), bad=None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Place:
    """An entry of a curated source: a window of a file, or None for a bad file, with the reason."""

    file: int
    window: Window | None
    bad: str | None = None


class CuratedSource:
    """The windows of a heap's files that pass, in the order of files; random access.

    The source id of a window is `name#first-last`. Bad files stay in the list under their own name, so that they are
    still named, and counted against `max_bad_share`, by what prepares them. `dropped` maps each window that was
    measured and left out to the reason; this is also written to `skipped.jsonl` of `directory`, and the windows that
    are kept to `kept.jsonl`. A window has captions of its own (`FILE#FIRST-LAST` in a table), else those of its file.

    `fps` is the rate to which the heap resamples faster videos; windows are counted in the frames that it gives.
    Files that the table lacks are scanned first, `readers` at a time; `progress` is called after each with how many are
    known.

    Raises `UserError` when thresholds leave nothing, or when shots are asked for without what finds them; `DataError`
    when no file can be decoded.
    """

    def __init__(
        self,
        heap: VideoFiles,
        config: CurationConfig,
        *,
        max_frames: int,
        fps: float | None = None,
        readers: int = 1,
        directory: Path,
        writes: bool = True,
        progress: Callable[[int], None] = lambda done: None,
    ):
        if config.shots:
            load_detector()
        self._heap = heap
        self._crop = config.letterbox == "crop"
        resampled = {} if fps is None else {"fps": fps}
        made_with = json.dumps({**config.measured_with(), "max_frames": max_frames, **resampled}, sort_keys=True)
        key = hashlib.sha256(made_with.encode()).hexdigest()
        table = CurationTable(Path(config.table) if config.table else directory, key, writes=writes)
        self.dropped: dict[str, str] = {}
        self.windows = 0
        self._places: list[_Place] = []
        files = [(heap.source_id(index), heap.size(index)) for index in range(len(heap))]
        unknown = [index for index, file in enumerate(files) if file not in table]
        if unknown:
            scan = functools.partial(scan_file, heap, config=config, max_frames=max_frames)
            with read_ahead(scan, unknown, readers=readers) as entries:
                for done, (index, entry) in enumerate(zip(unknown, entries, strict=True), start=1):
                    table.add(files[index], entry)
                    progress(len(files) - len(unknown) + done)
        for index, file in enumerate(files):
            self._check_captions(index, table[file])
            self._judge(index, table[file], config)
        if config.duplicate_bits is not None:
            self._drop_duplicates(config.duplicate_bits)
        self._key = key
        if writes:
            self._write_lists(directory)
        if not any(place.window for place in self._places):
            raise self._nothing_left(directory / SKIPPED_FILE)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Clip:
        place = self._places[index]
        if place.window is None:
            raise BadClip(self.source_id(index), place.bad or "")
        window = place.window
        try:
            clip = self._heap.window(place.file, window.first, window.last)
        except BadClip as bad:
            raise BadClip(self.source_id(index), bad.reason) from bad
        if self._crop:
            clip = with_pixels(clip, functools.partial(crop_bars, bars=window.scores.bars))
        return dataclasses.replace(clip, source_id=self.source_id(index))

    def source_id(self, index: int) -> str:
        """Returns `name#first-last`, or the file's name where it cannot be decoded."""
        place = self._places[index]
        return self._window_id(place.file, place.window) if place.window else self._heap.source_id(place.file)

    def origin(self, index: int) -> str:
        """Returns a digest of the file's own, of how windows were cut and of the bars that are cropped."""
        place = self._places[index]
        bars = place.window.scores.bars if place.window and self._crop else None
        return digest(self._heap.origin(place.file), self._key, bars)

    def _window_id(self, file: int, window: Window) -> str:
        return f"{self._heap.source_id(file)}#{window.first}-{window.last}"

    def _check_captions(self, index: int, entry: FileEntry) -> None:
        """Tells of captions that are of windows which are not cut, as with other lengths or another rate."""
        cut = {(window.first, window.last) for window in entry.windows}
        lost = sorted(self._heap.captioned_windows(index) - cut)
        if lost:
            name = f"{self._heap.source_id(index)}#{lost[0][0]}-{lost[0][1]}"
            logging.warning("%d captions of windows that are not cut now, such as %s", len(lost), printable(name))

    def _judge(self, file: int, entry: FileEntry, config: CurationConfig) -> None:
        """Adds the windows of a file that pass, or drops them."""
        self.windows += len(entry.windows)
        if entry.bad is not None:
            self._places.append(_Place(file=file, window=None, bad=entry.bad))
        elif not entry.windows:
            reason = f"its longest shot of {entry.longest} frames is under min_frames = {config.min_frames}"
            self.dropped[self._heap.source_id(file)] = reason
        for window in entry.windows:
            reason = refuse(window.scores, window.size, config)
            if reason is None and self._heap.lacks_caption(file, window.first, window.last):
                reason = _NO_CAPTION
            if reason is None:
                self._places.append(_Place(file=file, window=window))
            else:
                self.dropped[self._window_id(file, window)] = reason

    def _drop_duplicates(self, bits: int) -> None:
        placed = [(place, place.window) for place in self._places if place.window is not None]
        found = find_duplicates(
            [place.file for place, _ in placed],
            [window.scores.digest for _, window in placed],
            [window.scores.likeness for _, window in placed],
            [window.scores.colour for _, window in placed],
            bits=bits,
        )
        gone = set()
        for number, (original, apart) in found.items():
            place, window = placed[number]
            first, first_window = placed[original]
            reason = f"differs by {apart} of 256 bits from {self._window_id(first.file, first_window)}, not over "
            self.dropped[self._window_id(place.file, window)] = f"{reason}duplicate_bits = {bits}"
            gone.add(id(place))
        self._places = [place for place in self._places if id(place) not in gone]

    def _nothing_left(self, listed: Path) -> CommandError:
        """Returns the error of a heap of which no window is left; `listed` names those that were dropped."""
        files, bad = len(self._heap), len(self._places)
        first = f"{self._heap.source_id(self._places[0].file)}: {self._places[0].bad}" if bad else ""
        if not self.dropped:
            return DataError(f"none of {files} files can be decoded; the first is {first}: repair or replace them")
        damaged = f", {bad} of them damaged (the first is {first})" if bad else ""
        reason, number = collections.Counter(map(_threshold_of, self.dropped.values())).most_common(1)[0]
        return UserError(
            f"curation leaves none of {self.windows} windows of {files} files{damaged}: loosen the thresholds in "
            f"data.curation, {reason} first, which drops {number}; {listed} names each window with its reason"
        )

    def _write_lists(self, directory: Path) -> None:
        rows = [json.dumps({"source_id": name, "reason": reason}) for name, reason in self.dropped.items()]
        names = [self._window_id(place.file, place.window) for place in self._places if place.window is not None]
        tables = {SKIPPED_FILE: rows, KEPT_FILE: [json.dumps({"file": name, "caption": []}) for name in names]}
        for name, lines in tables.items():
            path = directory / name
            temporary = path.with_name(f"{name}.tmp")
            with storage(path):
                directory.mkdir(parents=True, exist_ok=True)
                temporary.write_text("".join(f"{line}\n" for line in lines))
                temporary.replace(path)

    def summary(self) -> str:
        """Returns one line: how many windows there were, and how many were dropped for what."""
        reasons = collections.Counter(_threshold_of(reason) for reason in self.dropped.values())
        kept = sum(place.window is not None for place in self._places)
        words = "".join(f", {count} dropped by {name}" for name, count in reasons.most_common())
        return f"{kept} of {self.windows} windows of {len(self._heap)} files kept{words}"


def _threshold_of(reason: str) -> str:
    """Returns the key that a reason names, "letterbox" where it names none; "captions" of a window without."""
    if reason == _NO_CAPTION:
        return "captions"
    return reason.split(" = ")[0].split()[-1] if " = " in reason else "letterbox"
