"""A folder as a source of clips."""

import errno
import json
import os
import pathlib

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from sora_jax.core.errors import UserError
from sora_jax.data.clips import BadClip
from sora_jax.data.media.writer import write_clip
from sora_jax.data.sources.base import FolderSource, Source, fingerprint


def drawn(frames: int, value: int) -> np.ndarray:
    pixels_THWC = np.full((frames, 16, 24, 3), value, np.uint8)
    pixels_THWC[np.arange(frames), 0, np.arange(frames)] = 255
    return pixels_THWC


@pytest.fixture
def folder(tmp_path):
    write_clip(tmp_path / "z.gif", drawn(6, 50), fps=10.0)
    write_clip(tmp_path / "deep" / "er" / "a.png", drawn(1, 90), fps=1.0)
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    write_clip(tmp_path / "silent.gif", drawn(2, 10), fps=10.0)
    named = {"z.gif": "grey", "deep/er/a.png": "light", "broken.mp4": "lost", "gone.mp4": "nobody"}
    rows = [json.dumps({"file": name, "caption": caption}) for name, caption in named.items()]
    (tmp_path / "captions.jsonl").write_text("\n".join(rows))
    return tmp_path


def test_clips_come_sorted_with_their_captions(folder):
    source: Source = FolderSource(folder)
    assert [source.source_id(i) for i in range(len(source))] == ["broken.mp4", "deep/er/a.png", "z.gif"]
    clip = source[2]
    np.testing.assert_array_equal(clip.pixels_THWC, drawn(6, 50))
    assert (clip.fps, clip.captions, clip.source_id) == (pytest.approx(10), ("grey",), "z.gif")
    np.testing.assert_array_equal(source[1].pixels_THWC, drawn(1, 90))


def test_nothing_is_lost_in_silence(folder):
    source = FolderSource(folder)
    assert source.uncaptioned == ["silent.gif"]
    assert source.missing == ["gone.mp4"]
    with pytest.raises(BadClip) as caught:
        source[0]
    assert caught.value.source_id == "broken.mp4"
    assert "cannot be decoded" in caught.value.reason


def test_limits_reach_the_decoder(folder):
    assert len(FolderSource(folder, max_frames=4)[2].pixels_THWC) == 4
    with pytest.raises(BadClip, match="max_pixels"):
        FolderSource(folder, max_pixels=100)[2]


def test_captions_may_be_waived(folder):
    source = FolderSource(folder, captions_required=False)
    names = [source.source_id(i) for i in range(len(source))]
    assert names == ["broken.mp4", "deep/er/a.png", "silent.gif", "z.gif"]
    assert source[2].captions == ()


def test_fingerprint_follows_content_but_not_dates(folder):
    before = fingerprint(FolderSource(folder))
    os.utime(folder / "z.gif", (1, 1))
    assert fingerprint(FolderSource(folder)) == before
    captions = (folder / "captions.jsonl").read_text()
    (folder / "captions.jsonl").write_text(captions.replace("grey", "gray"))
    reworded = fingerprint(FolderSource(folder))
    write_clip(folder / "z.gif", drawn(7, 50), fps=10.0)
    regrown = fingerprint(FolderSource(folder))
    (folder / "z.gif").rename(folder / "silent.gif")
    (folder / "captions.jsonl").write_text(captions.replace("z.gif", "silent.gif"))
    renamed = fingerprint(FolderSource(folder))
    assert len({before, reworded, regrown, renamed}) == 4


def test_a_link_that_leads_nowhere_is_one_bad_clip(folder):
    (folder / "z.gif").unlink()
    (folder / "z.gif").symlink_to(folder / "nowhere.gif")
    source = FolderSource(folder)
    assert fingerprint(source)
    with pytest.raises(BadClip, match="is a link that leads nowhere"):
        source[2]


def test_a_link_is_followed_within_the_folder_only(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    write_clip(outside / "z.gif", drawn(6, 50), fps=10.0)
    (outside / "token.txt").write_text("a secret")
    (folder / "in.gif").symlink_to("z.gif")
    (folder / "out.gif").symlink_to(outside / "z.gif")
    (folder / "up.gif").symlink_to("../" * 20 + str(outside / "z.gif"))
    (folder / "whole").symlink_to(outside)
    names = ("in.gif", "out.gif", "up.gif", "whole/z.gif", "../outside/z.gif", str(outside / "z.gif"))
    lines = [json.dumps({"file": name, "caption": "text"}) for name in names]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    source = FolderSource(folder)
    assert [source.source_id(index) for index in range(len(source))] == ["in.gif", "out.gif", "up.gif"]
    assert len(source[0].pixels_THWC) == 6
    for index in (1, 2):
        with pytest.raises(BadClip, match="a link that leads nowhere, or out of the folder: make it a hard link"):
            source[index]
    assert set(source.missing) == {"whole/z.gif", "../outside/z.gif", str(outside / "z.gif")}
    (folder / "captions.jsonl").unlink()
    (folder / "in.txt").symlink_to(outside / "token.txt")  # what a stranger may not have read is no caption
    (folder / "z.txt").write_text("a circle")
    source = FolderSource(folder)
    assert [source.source_id(index) for index in range(len(source))] == ["z.gif"]
    assert "in.gif" in source.uncaptioned
    (folder / "captions.csv").symlink_to(outside / "token.txt")
    with pytest.raises(UserError, match=r"captions\.csv is a link that leads nowhere, or out of the folder"):
        FolderSource(folder)


def test_what_cannot_be_read_is_named_with_the_reason(folder, monkeypatch):
    read = pathlib.Path.read_bytes

    def refuse(path: pathlib.Path) -> bytes:
        if path.name in ("captions.jsonl", "z.txt"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(pathlib.Path, "read_bytes", refuse)
    (folder / "z.txt").write_text("a circle")
    (folder / "told.jsonl").write_text((folder / "captions.jsonl").read_text())
    said = r"/{} cannot be read \(Permission denied\): make it readable"
    with pytest.raises(UserError, match=said.format("captions.jsonl")):
        FolderSource(folder)
    with pytest.raises(UserError, match=said.format("captions.jsonl")):
        FolderSource(folder, captions="captions.jsonl")
    (folder / "captions.jsonl").unlink()
    with pytest.raises(UserError, match=said.format("z.txt")):
        FolderSource(folder)


def test_pipes_are_not_waited_for(folder):
    (folder / "captions.jsonl").unlink()
    (folder / "z.txt").write_text("a circle")
    for name in ("silent.txt", "pipe.gif"):
        os.mkfifo(folder / name)
    (folder / "pipe.txt").write_text("a pipe")
    source = FolderSource(folder)
    assert [source.source_id(index) for index in range(len(source))] == ["pipe.gif", "z.gif"]
    assert "silent.gif" in source.uncaptioned
    with pytest.raises(BadClip, match=r"pipe\.gif: is not a regular file"):
        source[0]
    os.mkfifo(folder / "captions.csv")
    with pytest.raises(UserError, match=r"captions\.csv is .* no regular file: put a copy there"):
        FolderSource(folder)


def test_windows_and_thumbnails_are_read_beyond_max_frames(folder):
    source = FolderSource(folder, max_frames=2)
    np.testing.assert_array_equal(source.window(2, 3, 4).pixels_THWC, drawn(6, 50)[3:5])
    small = source.thumbnails(2, short_side=8)
    assert (small.pixels_THWC.shape, small.source_id) == ((6, 8, 12, 3), "z.gif")
    assert source.thumbnails(1, short_side=99).pixels_THWC.shape == (1, 16, 24, 3)
    with pytest.raises(BadClip, match="has no frames after the first 6"):
        source.window(2, 6, 9)
    assert source.size(2) == (folder / "z.gif").stat().st_size


def test_what_lies_beside_a_clip_is_read_with_it_and_is_no_clip(folder):
    write_clip(folder / "z_depth.gif", drawn(6, 120), fps=10.0)
    write_clip(folder / "alone_depth.gif", drawn(6, 10), fps=10.0)
    before = FolderSource(folder, captions_required=False)
    assert {"z_depth.gif", "alone_depth.gif"} <= {before.source_id(i) for i in range(len(before))}, "unless asked for"
    source = FolderSource(folder, captions_required=False, kinds=("depth", "pose"), max_frames=4)
    names = [source.source_id(i) for i in range(len(source))]
    assert names == ["alone_depth.gif", "broken.mp4", "deep/er/a.png", "silent.gif", "z.gif"], "it is beside nothing"
    clip = source[4]
    assert clip.beside.keys() == {"depth"}
    np.testing.assert_array_equal(clip.beside["depth"], drawn(6, 120)[:4])
    np.testing.assert_array_equal(source.window(4, 2, 3).beside["depth"], drawn(6, 120)[2:4])
    assert source.thumbnails(4, short_side=8).beside == source[3].beside == {}
    origin = source.origin(4)
    write_clip(folder / "z_depth.gif", drawn(3, 121), fps=10.0)
    again = FolderSource(folder, captions_required=False, kinds=("depth",), max_frames=4)
    assert again.origin(4) != origin
    with pytest.raises(BadClip, match=r"z\.gif: is 4 x 16 x 24 and z_depth\.gif beside it 3 x 16 x 24"):
        again[4]
    write_clip(folder / "z_depth.gif", drawn(6, 120), fps=5.0)
    with pytest.raises(BadClip, match=r"z\.gif: has 10 frames per second and z_depth\.gif beside it 5"):
        again[4]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_column_names_what_lies_beside_a_clip(folder, ending, caplog):
    for name, value in {"deep/d.gif": 120, "z_depth.gif": 60, "p.gif": 70}.items():
        write_clip(folder / name, drawn(6, value), fps=10.0)
    columns = {
        "file": ["z.gif", "z.gif", "deep/er/a.png", "silent.gif"],
        "caption": ["grey", "dull", "light", "dark"],
        "control_depth": ["deep/d.gif", "z_depth.gif", "gone.gif", ""],
        "control_pose": ["", "p.gif", "", ""],
    }
    table = folder / f"captions.{ending}"
    (folder / "captions.jsonl").unlink()
    rows = list(zip(*columns.values(), strict=True))
    if ending == "jsonl":
        table.write_text("\n".join(json.dumps(dict(zip(columns, row, strict=True))) for row in rows))
    elif ending == "csv":
        table.write_text("\n".join(",".join(row) for row in (tuple(columns), *rows)))
    else:
        parquet.write_table(pyarrow.table(columns), table)
    plain = FolderSource(folder, captions_required=False)
    assert {"deep/d.gif", "p.gif"} <= {plain.source_id(i) for i in range(len(plain))}, "unless asked for"
    source = FolderSource(folder, kinds=("depth", "pose"))
    assert [source.source_id(i) for i in range(len(source))] == ["deep/er/a.png", "silent.gif", "z.gif"]
    assert source.uncaptioned == ["broken.mp4"]
    clip = source[2]
    assert clip.captions == ("grey", "dull")
    np.testing.assert_array_equal(clip.beside["depth"], drawn(6, 120), "before the file of that name")
    np.testing.assert_array_equal(clip.beside["pose"], drawn(6, 70))
    assert source[0].beside == source[1].beside == {}
    assert "1 files that tables name beside clips are not there, and these go without: gone.gif" in caplog.text


def test_a_table_beside_the_folder_names_files_too_and_no_number(folder, tmp_path_factory):
    write_clip(folder / "d.gif", drawn(6, 120), fps=10.0)
    table = tmp_path_factory.mktemp("told") / "told.jsonl"
    table.write_text('{"file": "z.gif#0-3", "caption": "cut", "control_depth": "d.gif"}')
    source = FolderSource(folder, captions=table, kinds=("depth",))
    at = [source.source_id(i) for i in range(len(source))].index("z.gif")
    np.testing.assert_array_equal(source.window(at, 0, 3).beside["depth"], drawn(6, 120)[:4])
    table.write_text('{"file": "z.gif", "caption": "cut", "control_depth": 7}')
    with pytest.raises(UserError, match=r"line 1 of .*told\.jsonl has the control_depth '7': give the name of a file"):
        FolderSource(folder, captions=table, kinds=("depth",))
