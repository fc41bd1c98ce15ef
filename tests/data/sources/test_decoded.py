"""What all sources of media files can be asked for: clips, windows of them and thumbnails."""

import re
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sora_jax.data.clips import BadClip
from sora_jax.data.media.video_io import read_clip
from sora_jax.data.media.writer import write_clip
from sora_jax.data.sources.base import FolderSource
from sora_jax.data.sources.decoded import DecodedSource
from sora_jax.data.sources.records import RecordSource, Sample, write_records
from sora_jax.data.sources.webdataset import TarSource
from sora_jax.data.tokens import MOST_CHARACTERS

NAMES = ("a.mp4", "b.gif", "c.png", "d.webp")


def drawn(frames: int, value: int) -> np.ndarray:
    pixels_THWC = np.full((frames, 16, 24, 3), value, np.uint8)
    pixels_THWC[np.arange(frames), 0, np.arange(frames)] = 255
    return pixels_THWC


def open_heap(kind: str, folder: Path, **limits: Any) -> DecodedSource:
    """Returns the files of a folder, and after them one that cannot be decoded, as a source of one kind."""
    if kind == "folder":
        return FolderSource(folder, **limits)
    path = folder.parent / f"heap.{kind}"
    if kind == "tar":
        with tarfile.open(path, "w") as tar:
            tar.add(folder, arcname=".")
        return TarSource(path, **limits)
    files = [file for file in sorted(folder.iterdir()) if file.suffix != ".txt"]
    samples = [Sample(file.name, file.read_bytes(), [file.with_suffix(".txt").read_text()]) for file in files]
    write_records(path, samples)
    return RecordSource(path, **limits)


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "open"
    for number, name in enumerate(NAMES):
        write_clip(folder / name, drawn(1 if name == "c.png" else 8, 40 * number), fps=10.0)
    (folder / "e.mp4").write_bytes(b"not a video")
    for path in list(folder.iterdir()):
        path.with_suffix(".txt").write_text(path.stem)
    return folder


def by_name(source: DecodedSource) -> dict[str, int]:
    return {Path(source.source_id(index)).name: index for index in range(len(source))}


@pytest.mark.parametrize("kind", ["folder", "tar", "arrayrecord"])
def test_windows_are_slices_of_the_whole_clip_and_thumbnails_all_of_it_small(folder, kind):
    source = open_heap(kind, folder, max_frames=2)
    numbers = by_name(source)
    assert len(source) == 5
    for name in NAMES:
        index = numbers[name]
        whole_THWC, fps = read_clip(folder / name)
        first, last = (0, 0) if len(whole_THWC) == 1 else (3, 5)
        window = source.window(index, first, last)
        np.testing.assert_array_equal(window.pixels_THWC, whole_THWC[first : last + 1])
        assert (window.captions, window.source_id) == ((Path(name).stem,), source.source_id(index))
        small = source.thumbnails(index, short_side=8)
        np.testing.assert_array_equal(small.pixels_THWC, read_clip(folder / name, short_side=8)[0])
        assert (small.pixels_THWC.shape, small.fps) == ((len(whole_THWC), 8, 12, 3), fps)
        assert source.size(index) == (folder / name).stat().st_size
        assert len(source[index].pixels_THWC) == min(2, len(whole_THWC))


@pytest.mark.parametrize("kind", ["folder", "tar", "arrayrecord"])
def test_clips_tell_how_many_frames_their_files_have(folder, kind):
    for limits, expected in (({}, 8), ({"max_frames": 2}, 8), ({"max_frames": 2, "fps": 5.0}, 4)):
        source = open_heap(kind, folder, **limits)
        numbers = by_name(source)
        found = {name: source[numbers[name]].file_frames for name in NAMES}
        assert found == {name: 1 if name == "c.png" else expected for name in NAMES}
        assert source.window(numbers["a.mp4"], 0, 1).file_frames is None


@pytest.mark.parametrize("kind", ["folder", "tar", "arrayrecord"])
def test_captions_are_cleaned_and_limited_alike(folder, kind):
    dirty = "\ufeff\ufeffa\u200b  dog\x00runs\n"
    written = {"a": dirty, "b": "x" * (MOST_CHARACTERS + 5), "c": "\u200b \u200d", "d": "ok"}
    for name, text in written.items():
        (folder / f"{name}.txt").write_text(text)
    source = open_heap(kind, folder)
    captions = {Path(source.source_id(index)).stem: source[index].captions for index in range(len(source) - 1)}
    assert captions == {"a": ("a dog runs",), "b": ("x" * MOST_CHARACTERS,), "d": ("ok",)}


@pytest.mark.parametrize("kind", ["folder", "tar", "arrayrecord"])
def test_what_cannot_be_read_is_named_as_the_source_does(folder, kind):
    source, tight = open_heap(kind, folder), open_heap(kind, folder, max_pixels=2000)
    index, damaged = by_name(source)["b.gif"], by_name(source)["e.mp4"]
    for read, number, reason in (
        (lambda: source.window(index, 8, 9), index, "has no frames after the first 8"),
        (lambda: tight.window(index, 0, 7), index, "exceed max_pixels = 2000"),
        (lambda: source.thumbnails(damaged, short_side=8), damaged, "cannot be decoded"),
    ):
        with pytest.raises(BadClip, match=reason) as caught:
            read()
        assert caught.value.source_id == source.source_id(number)


def bytes_read() -> int:
    """Returns how many bytes this process has read so far, from wherever."""
    found = re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())
    assert found
    return int(found.group(1))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel counts what is read on Linux only")
def test_a_window_in_a_tar_is_read_without_its_neighbours(folder):
    with (folder / "a_neighbour.bin").open("wb") as file:
        file.truncate(2**24)
    source = open_heap("tar", folder)
    index = by_name(source)["d.webp"]
    source.window(index, 0, 1)
    before = bytes_read()
    for first in range(7):
        source.window(index, first, first + 1)
    size = source.size(index)
    assert size is not None
    assert bytes_read() - before < 7 * (size + 10_000) < 2**20
