"""A heap of files as a source of windows: the same clips however often the scan was stopped, and every drop named."""

import dataclasses
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sora_jax.core.errors import DataError, UserError
from sora_jax.data.clips import BadClip
from sora_jax.data.curation.measures import CurationConfig
from sora_jax.data.curation.source import KEPT_FILE, TABLE_FILE, CuratedSource, VideoFiles
from sora_jax.data.media.video_io import read_clip
from sora_jax.data.media.writer import write_clip
from sora_jax.data.sources.base import FolderSource, Source, fingerprint
from sora_jax.data.sources.records import RecordSource, Sample, write_records
from sora_jax.data.sources.webdataset import TarSource
from sora_jax.experiment import datasets
from sora_jax.experiment.settings import read_settings

ON = CurationConfig(
    shots=True,
    shot_ratio=3.0,
    shot_change=15.0,
    windows_per_file=9,
    min_frames=4,
    letterbox="crop",
    min_brightness=10.0,
    max_brightness=None,
    max_black_share=None,
    max_static_share=0.5,
    min_motion=None,
    max_motion=None,
    min_sharpness=None,
    duplicate_bits=10,
    table=None,
)
HEIGHT, WIDTH, MOST = 48, 64, 10


def scene(seed: int, frames: int, *, step: int = 2) -> np.ndarray:
    """Returns coarse blobs on a ground of a brightness of their own, which move to the right."""
    random = np.random.default_rng(seed)
    noise = random.integers(0, 90, (4, 6, 3)) + 150 * (seed % 2)
    image = Image.fromarray(noise.astype(np.uint8)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    return np.stack([np.roll(np.asarray(image), step * t, axis=1) for t in range(frames)])


@pytest.fixture
def folder(tmp_path):
    """Two shots; the same re-encoded and under bars; a still; a black clip; an image; a damaged file."""
    two = np.concatenate([scene(1, 13), scene(2, 23)])
    files = {
        "a_two_shots.webp": two,
        "b_again.gif": two[:13],
        "c_black.mp4": scene(4, 8) // 90,
        "d_image.png": scene(5, 1),
        "e_still.mp4": scene(7, 8, step=0),
        "f_barred.webp": np.pad(scene(9, 8), ((0, 0), (12, 12), (0, 0), (0, 0))),
        "g_short.webp": scene(11, 3),
    }
    folder = tmp_path / "heap"
    for name, pixels in files.items():
        write_clip(folder / name, pixels, fps=8.0)
    (folder / "h_damaged.mp4").write_bytes(b"not a video")
    return folder


class Counted(FolderSource):
    """A folder that remembers which files were opened."""

    def __init__(self, folder):
        super().__init__(folder, captions_required=False)
        self.opened = []

    def _read(self, index, **options):
        self.opened.append(self.source_id(index))
        return super()._read(index, **options)


def curated(folder, config=ON, *, max_frames=MOST, directory=None, **options):
    heap = Counted(folder)
    directory = folder.parent / "curation" if directory is None else directory
    source = CuratedSource(heap, config, max_frames=max_frames, directory=directory, **options)
    return source, sorted(set(heap.opened))


def ids(source: Source) -> list[str]:
    return [source.source_id(index) for index in range(len(source))]


def test_a_heap_becomes_windows_and_every_drop_has_its_numbers(folder):
    source, _ = curated(folder)
    assert ids(source) == [
        "a_two_shots.webp#0-9",
        "a_two_shots.webp#13-22",
        "a_two_shots.webp#23-32",
        "d_image.png#0-0",
        "f_barred.webp#0-7",
        "h_damaged.mp4",
    ]
    lines = (folder.parent / "curation" / "skipped.jsonl").read_text().splitlines()
    dropped = {line["source_id"]: line["reason"] for line in map(json.loads, lines)}
    assert dropped == source.dropped
    assert sorted(dropped) == ["b_again.gif#0-9", "c_black.mp4#0-7", "e_still.mp4#0-7", "g_short.webp"]
    assert "of 256 bits from a_two_shots.webp#0-9, not over duplicate_bits = 10" in dropped["b_again.gif#0-9"]
    assert dropped["c_black.mp4#0-7"].endswith("of 255 is under min_brightness = 10")
    assert dropped["e_still.mp4#0-7"] == "share 1.000 of frames that do not change is over max_static_share = 0.5"
    assert dropped["g_short.webp"] == "its longest shot of 3 frames is under min_frames = 4"
    assert source.summary() == (
        "5 of 8 windows of 8 files kept, 1 dropped by min_brightness, 1 dropped by max_static_share, "
        "1 dropped by min_frames, 1 dropped by duplicate_bits"
    )


def test_windows_are_the_frames_of_the_file_without_bars(folder):
    source, _ = curated(folder)
    whole, fps = read_clip(folder / "a_two_shots.webp")
    clip = source[2]
    np.testing.assert_array_equal(clip.pixels_THWC, whole[23:33])
    assert (clip.fps, clip.source_id) == (fps, "a_two_shots.webp#23-32")
    assert source[4].pixels_THWC.shape == (8, HEIGHT, WIDTH, 3)
    with pytest.raises(BadClip, match=r"h_damaged\.mp4: cannot be decoded"):
        source[5]


def test_a_scan_goes_on_where_it_was_stopped_in_the_middle_of_a_line(folder):
    first, opened = curated(folder)
    assert opened == sorted(path.name for path in folder.iterdir())
    table = folder.parent / "curation" / TABLE_FILE
    lines = table.read_bytes().splitlines(keepends=True)
    assert len(lines) == 8
    table.write_bytes(b"".join(lines[:4]) + lines[4][:60])
    again, opened = curated(folder)
    assert opened == ["e_still.mp4", "f_barred.webp", "g_short.webp", "h_damaged.mp4"]
    assert (ids(again), fingerprint(again), again.dropped) == (ids(first), fingerprint(first), first.dropped)
    assert curated(folder)[1] == []


def test_a_scan_that_fails_keeps_what_it_found(folder):
    def stop(done: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        curated(folder, progress=stop)
    _, opened = curated(folder)
    assert opened == ["d_image.png", "e_still.mp4", "f_barred.webp", "g_short.webp", "h_damaged.mp4"]


def test_only_what_is_new_is_scanned(folder):
    before, _ = curated(folder)
    write_clip(folder / "e_still.mp4", scene(13, 12), fps=8.0)
    write_clip(folder / "bb_new.webp", scene(15, 9), fps=8.0)
    after, opened = curated(folder)
    assert opened == ["bb_new.webp", "e_still.mp4"]
    assert set(ids(after)) == {*ids(before), "bb_new.webp#0-8", "e_still.mp4#0-9"}
    assert fingerprint(after) != fingerprint(before)


def test_a_threshold_scans_nothing_anew_and_how_windows_are_cut_everything(folder):
    before, _ = curated(folder)
    looser, opened = curated(folder, dataclasses.replace(ON, max_static_share=None))
    assert opened == []
    assert set(ids(looser)) - set(ids(before)) == {"e_still.mp4#0-7"}
    assert fingerprint(looser) != fingerprint(before)
    for changed, most in ((dataclasses.replace(ON, windows_per_file=2), MOST), (ON, 7)):
        other, opened = curated(folder, changed, max_frames=most)
        assert len(opened) == 8
        assert fingerprint(other) != fingerprint(before)
    assert curated(folder)[1] == [], "lines of other configs stay"


def test_windows_are_counted_in_frames_of_the_rate_by_choice(folder):
    before, _ = curated(folder)
    heap = FolderSource(folder, captions_required=False, fps=4.0)
    resampled = CuratedSource(heap, ON, max_frames=MOST, fps=4.0, directory=folder.parent / "curation")
    assert ids(resampled)[:3] == ["a_two_shots.webp#0-6", "a_two_shots.webp#7-16", "d_image.png#0-0"]
    whole, _ = read_clip(folder / "a_two_shots.webp")
    np.testing.assert_array_equal(resampled[1].pixels_THWC, whole[14:34:2])
    assert resampled[1].fps == 4.0
    assert fingerprint(resampled) != fingerprint(before)
    assert curated(folder)[1] == [], "what was measured at another rate stays"


def test_a_table_may_be_shared_and_a_second_process_writes_nothing(folder, tmp_path):
    config = dataclasses.replace(ON, table=str(tmp_path / "shared"))
    curated(folder, config, directory=tmp_path / "one")
    assert curated(folder, config, directory=tmp_path / "two")[1] == []
    assert not (tmp_path / "one" / TABLE_FILE).exists()
    assert len(curated(folder, directory=tmp_path / "three", writes=False)[0]) == 6
    assert not (tmp_path / "three").exists()


def test_when_nothing_is_left_it_is_said(folder):
    with pytest.raises(UserError, match=r"none of 8 windows of 8 files, 1 of them damaged \(.*min_brightness first"):
        curated(folder, dataclasses.replace(ON, min_brightness=255.0))


def test_files_that_cannot_be_decoded_are_not_blamed_on_thresholds(tmp_path):
    for name in ("a.mp4", "b.gif"):
        (tmp_path / "clips").mkdir(exist_ok=True)
        (tmp_path / "clips" / name).write_bytes(b"torn")
    with pytest.raises(DataError, match=r"none of 2 files can be decoded; the first is a\.mp4: cannot be decoded: "):
        curated(tmp_path / "clips")


def test_without_shots_and_windows_a_clip_is_what_it_was(folder):
    config = dataclasses.replace(ON, shots=False, windows_per_file=1, min_frames=1, duplicate_bits=None)
    source, _ = curated(folder, config, max_frames=7)
    plain = FolderSource(folder, captions_required=False, max_frames=7)
    kept = {name.split("#")[0]: index for index, name in enumerate(ids(source))}
    for index in (0, 1, 3, 6):
        name = plain.source_id(index)
        np.testing.assert_array_equal(source[kept[name]].pixels_THWC, plain[index].pixels_THWC)


def in_a_tar(files: list[Path], path: Path) -> VideoFiles:
    with tarfile.open(path, "w") as tar:
        for file in files:
            tar.add(file, file.name)
            caption = tarfile.TarInfo(f"{file.stem}.txt")
            caption.size = len(file.stem)
            tar.addfile(caption, io.BytesIO(file.stem.encode()))
    return TarSource(path)


def in_records(files: list[Path], path: Path) -> VideoFiles:
    write_records(path, [Sample(file.name, file.read_bytes(), [file.stem]) for file in files])
    return RecordSource(path)


@pytest.mark.parametrize(("pack", "name"), [(in_a_tar, "heap.tar"), (in_records, "heap.arrayrecord")])
def test_packed_files_give_the_windows_drops_and_reasons_of_the_same_files_in_a_folder(
    folder: Path, pack: Callable[[list[Path], Path], VideoFiles], name: str
):
    plain, _ = curated(folder)
    heap = pack(sorted(folder.iterdir()), folder.parent / name)

    def packed(directory: Path) -> CuratedSource:
        return CuratedSource(heap, ON, max_frames=MOST, directory=directory)

    source = packed(folder.parent / "packed")
    assert ids(source) == [f"{name}/{window}" for window in ids(plain)]
    dropped = {f"{name}/{window}": reason for window, reason in plain.dropped.items()}
    assert {window: reason.replace(f"{name}/", "") for window, reason in source.dropped.items()} == dropped
    assert source.summary() == plain.summary()
    for index in range(5):
        mine, other = source[index], plain[index]
        np.testing.assert_array_equal(mine.pixels_THWC, other.pixels_THWC)
        assert (mine.fps, mine.captions) == (other.fps, (other.source_id.split(".")[0],))
    with pytest.raises(BadClip, match=r"h_damaged\.mp4: cannot be decoded"):
        source[5]
    table = (folder.parent / "packed" / TABLE_FILE).read_bytes()
    assert ids(packed(folder.parent / "packed")) == ids(source)
    assert (folder.parent / "packed" / TABLE_FILE).read_bytes() == table, "nothing is scanned again"


@pytest.fixture
def config(toy_config, folder):
    config = toy_config()
    (folder / "captions.jsonl").write_text(
        "\n".join(json.dumps({"file": path.name, "caption": "blobs"}) for path in sorted(folder.iterdir()))
    )
    config.data.source, config.data.path = "folder", str(folder)
    return config


def test_off_by_default_nothing_changes(config, tmp_path):
    settings = read_settings(config)
    (collection,) = datasets.open_collections(settings)
    assert datasets.curate(collection, settings.data, tmp_path / "none") is collection
    assert not (tmp_path / "none").exists()


def test_a_run_reads_its_thresholds_from_the_config(config, tmp_path, capsys):
    config.data.curation.max_static_share = 0.5
    config.data.curation.windows_per_file = 2
    settings = read_settings(config)
    (collection,) = datasets.open_collections(settings)
    source = datasets.curate(collection, settings.data, tmp_path / "curation").source
    assert "b_again.gif#10-12" in ids(source)
    assert "e_still.mp4#0-4" not in ids(source)
    assert source[0].captions == ("blobs",)
    assert "curation: " in capsys.readouterr().out


def test_a_run_curates_a_tar_as_it_does_a_folder(config, folder, tmp_path):
    config.data.curation.max_static_share = 0.5
    settings = read_settings(config)
    (collection,) = datasets.open_collections(settings)
    plain = datasets.curate(collection, settings.data, tmp_path / "a").source
    in_a_tar(sorted(folder.glob("*_*")), tmp_path / "heap.tar")
    config.data.source, config.data.path = "webdataset", str(tmp_path / "heap.tar")
    settings = read_settings(config)
    (collection,) = datasets.open_collections(settings)
    packed = datasets.curate(collection, settings.data, tmp_path / "b").source
    assert ids(packed) == [f"heap.tar/{name}" for name in ids(plain)]


def test_a_drawn_world_needs_no_curation(toy_config):
    config = toy_config()
    config.data.curation.letterbox = "crop"
    with pytest.raises(UserError, match=r"data\.curation is for clips in files: data\.source 'shapes'"):
        read_settings(config)


def test_windows_are_listed_captioned_and_trained_on_with_captions_of_their_own(folder, caplog):
    scanned, _ = curated(folder)
    directory = folder.parent / "curation"
    rows = [json.loads(line) for line in (directory / KEPT_FILE).read_text().splitlines()]
    kept = [name for name in ids(scanned) if name != "h_damaged.mp4"]
    assert rows == [{"file": name, "caption": []} for name in kept]
    for row, text in zip(rows, ("walks", "runs"), strict=False):
        row["caption"] = [text]
    rows.append({"file": "a_two_shots.webp#2-5", "caption": "of another cut"})
    table = folder.parent / "mine.jsonl"
    table.write_text("\n".join(map(json.dumps, [*rows, {"file": "d_image.png", "caption": "whole"}])))

    def opened() -> CuratedSource:
        heap = FolderSource(folder, captions=table)
        with pytest.raises(BadClip, match=r"captions of windows only: set data\.curation as"):
            heap[0]
        return CuratedSource(heap, ON, max_frames=MOST, directory=directory)

    source = opened()
    captions = {name: source[index].captions for index, name in enumerate(ids(source))}
    assert captions == {kept[0]: ("walks",), kept[1]: ("runs",), "d_image.png#0-0": ("whole",)}
    assert source.dropped[kept[2]] == "has no caption, and neither has its file"
    assert "1 dropped by captions" in source.summary()
    assert "1 captions of windows that are not cut now, such as a_two_shots.webp#2-5" in caplog.text
    before = fingerprint(source)
    table.write_text(table.read_text().replace("walks", "walked"))
    assert fingerprint(opened()) != before
