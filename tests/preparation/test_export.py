"""The windows that curation keeps, as files."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from sora_jax.data.curation.source import CuratedSource
from sora_jax.data.media.video_io import read_clip
from sora_jax.data.media.writer import write_clip
from sora_jax.data.sources.base import FolderSource
from sora_jax.data.sources.folder_captions import read_captions
from sora_jax.preparation.export import export_windows
from tests.data.curation.test_source import ON, scene


@pytest.fixture
def source(tmp_path) -> CuratedSource:
    heap = tmp_path / "heap"
    write_clip(heap / "sub" / "a.webp", scene(1, 14), fps=8.0)
    write_clip(heap / "b.png", scene(5, 1), fps=1.0)
    (heap / "torn.mp4").write_bytes(b"torn")
    config = dataclasses.replace(ON, shots=False, letterbox=None, duplicate_bits=None)
    opened = FolderSource(heap, captions_required=False)
    return CuratedSource(opened, config, max_frames=7, directory=tmp_path / "curation")


def test_windows_are_files_whose_captions_come_back(source, tmp_path, caplog):
    out = tmp_path / "out"
    assert export_windows(source, out) == 3
    names = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*"))
    assert names == ["b.png#0-0.png", "sub/a.webp#0-6.mp4", "sub/a.webp#7-13.mp4"]
    assert "not written: torn.mp4: cannot be decoded" in caplog.text
    pixels_THWC, fps = read_clip(out / "sub" / "a.webp#7-13.mp4")
    assert fps == pytest.approx(8)
    assert np.abs(pixels_THWC.astype(int) - scene(1, 14)[7:]).mean() < 4
    np.testing.assert_array_equal(np.asarray(Image.open(out / "b.png#0-0.png")), scene(5, 1)[0])
    assert export_windows(source, out) == 0, "what is there stays"
    for folder in (out, tmp_path / "heap"):  # beside the windows, and beside the file that they were cut from
        (folder / "sub" / "a.webp#7-13.txt").write_text("the second half")
    assert read_captions(out).by_file == {"sub/a.webp#7-13.mp4": ("the second half",)}
    assert read_captions(tmp_path / "heap").windows == {"sub/a.webp": {(7, 13): (("the second half",), None)}}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../../a.mp4#0-6", "leads out of the folder: ../../a.mp4#0-6"),
        ("a" * 250 + "#0-6", "would have 258 bytes, over the 255 that it may have"),
        ("a\0.mp4#0-6", "has a zero byte in it"),
    ],
)
def test_a_name_that_no_file_of_the_folder_can_have_is_not_written(source, tmp_path, caplog, monkeypatch, name, words):
    monkeypatch.setattr(source, "source_id", lambda index: name)
    assert export_windows(source, tmp_path / "out") == 0
    assert words in caplog.text
    assert not (tmp_path / "out").exists()


def test_two_windows_of_one_name_do_not_pass_for_one(source, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(source, "source_id", lambda index: "sub//a.mp4#0-6" if index else "sub/a.mp4#0-6")
    assert export_windows(source, tmp_path / "out") == 1
    assert caplog.text.count("is that of another window, too") == len(source) - 1


def test_a_percent_sign_in_a_name_is_no_number_of_a_frame(tmp_path):
    write_clip(tmp_path / "heap" / "a.png", scene(5, 1), fps=1.0)
    (tmp_path / "heap" / "a.png").rename(tmp_path / "heap" / "a%02d.png")
    config = dataclasses.replace(ON, shots=False, letterbox=None, duplicate_bits=None)
    opened = FolderSource(tmp_path / "heap", captions_required=False)
    source = CuratedSource(opened, config, max_frames=7, directory=tmp_path / "curation")
    assert export_windows(source, tmp_path / "out") == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a%02d.png#0-0.png"]
    assert export_windows(source, tmp_path / "out") == 0, "it is found again"
