"""Names of files from prompts, and sheets of clips."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_jax.core.errors import StorageError
from sora_jax.generate.write import contact_sheet, file_stem, free_path, is_safe_name, settle


@given(st.text(max_size=200))
def test_a_stem_is_always_a_safe_name(prompt):
    stem = file_stem(prompt)
    assert 1 <= len(stem) <= 80
    assert len(stem.encode()) <= 90
    assert is_safe_name(stem)
    assert unicodedata.is_normalized("NFC", stem)
    assert all(c == "_" or c.isalnum() or unicodedata.category(c).startswith("M") for c in stem)
    assert not stem.startswith("_")
    assert not stem.endswith("_")


@pytest.mark.parametrize(
    ("prompt", "stem"),
    [
        ("A red circle, moving right!", "a_red_circle_moving_right"),
        ("../../etc/passwd", "etc_passwd"),
        ("Ein Ka\u0308fer", "ein_käfer"),
        ("赤い丸が、右へ動く", "赤い丸が_右へ動く"),
        ("красный круг", "красный_круг"),
        ("دائرة حمراء", "دائرة_حمراء"),
        ("लाल वृत्त", "लाल_वृत्त"),
        ("빨간 원", "빨간_원"),
        ("ＦＵＬＬ width", "full_width"),
        ("a\u202ered\u200b\u115f\ufe0fb", "a_red_b"),
        ("\u0308 🐕 ❤\ufe0f", "prompt"),
        ("🐕 runs", "runs"),
        ("", "prompt"),
        ("a" * 79 + " b", "a" * 79),
        ("丸" * 50, "丸" * 30),
    ],
)
def test_a_stem_reads_like_its_prompt(prompt, stem):
    assert file_stem(prompt) == stem


@pytest.mark.parametrize("name", ["a.mp4", "Käfer 赤い丸.webm", "frame_%04d.png", "a b(1).gif", "a" * 116 + ".mp4"])
def test_a_request_may_name_its_file(name):
    assert is_safe_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", "..", "../a.mp4", "/a.mp4", "b/a.mp4", "b\\a.mp4", ".a.mp4", "-rf.mp4"),
        *("a\0.mp4", "a\n.mp4", "\x1b[2J.mp4", "\ud800.mp4", "\u202e4pm.gif", "a" * 117 + ".mp4", "🐕" * 30 + ".mp4"),
    ],
)
def test_a_name_that_leaves_the_folder_or_cannot_be_typed_is_refused(name):
    assert not is_safe_name(name)


def test_a_taken_name_gets_a_number():
    folder, taken = Path("out"), set()
    for expected in ("a.mp4", "a_2.mp4", "a_3.mp4"):
        path = free_path(folder, "a", ".mp4", taken)
        assert path == folder / expected
        taken.add(path)
    assert free_path(folder, "a", ".png", taken) == folder / "a.png"


def settled(folder, content, name="a_seed0.mp4", taken=()):
    made = folder / ".made.mp4"
    made.write_text(content)
    path = settle(made, folder / name, taken)
    assert not made.exists()
    assert path.read_text() == content
    return path.name


def test_a_file_never_takes_the_place_of_one_of_other_content(tmp_path):
    (tmp_path / "a_seed0_3.mp4").mkdir()
    assert settled(tmp_path, "one") == "a_seed0.mp4"
    assert settled(tmp_path, "two") == "a_seed0_2.mp4"
    assert settled(tmp_path, "one") == "a_seed0.mp4", "what is there already is not written twice"
    assert settled(tmp_path, "two") == "a_seed0_2.mp4"
    assert settled(tmp_path, "three") == "a_seed0_4.mp4", "nor that of a folder"
    assert settled(tmp_path, "four", "a_seed0_2.mp4") == "a_seed0_5.mp4", "a number is not added to a number"
    assert settled(tmp_path, "five", taken=[tmp_path / "a_seed0_6.mp4"]) == "a_seed0_7.mp4"
    assert sorted(path.read_text() for path in tmp_path.iterdir() if path.is_file()) == sorted(
        ["one", "two", "three", "four", "five"]
    )


def test_a_link_keeps_its_place(tmp_path):
    os.symlink(tmp_path / "nowhere", tmp_path / "a_seed0.mp4")
    assert settled(tmp_path, "one") == "a_seed0_2.mp4"
    assert not (tmp_path / "nowhere").exists()


def test_a_name_that_the_disk_refuses_is_a_fault_of_storage(tmp_path):
    (tmp_path / "made").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        settle(tmp_path / "made", tmp_path / ("a" * 300), ())


def test_a_sheet_shows_every_clip_whole_and_holds_the_last_frame_of_short_ones():
    clips = [np.full((frames, 4, 6, 3), 40 * frames, np.uint8) for frames in (1, 3, 2, 1, 2)]
    for number, clip in enumerate(clips):
        clip[-1, 0, 0] = number
    sheet = contact_sheet(clips, scale=2)
    assert sheet.shape[0] == 3
    assert sheet.dtype == np.uint8
    columns = 2
    for number, clip in enumerate(clips):
        top, left = 2 + number // columns * 10, 2 + number % columns * 14
        cell = sheet[:, top : top + 8 : 2, left : left + 12 : 2]
        np.testing.assert_array_equal(cell[: len(clip)], clip)
        np.testing.assert_array_equal(cell[len(clip) :], np.repeat(clip[-1:], 3 - len(clip), axis=0))
        np.testing.assert_array_equal(sheet[:, top + 1 : top + 8 : 2, left + 1 : left + 12 : 2], cell)
    assert (sheet[:, :2] == 255).all(), "a white edge"


def test_a_sheet_of_clips_of_several_sizes_has_cells_for_the_largest():
    sheet = contact_sheet([np.zeros((1, 4, 4, 3), np.uint8), np.zeros((1, 8, 2, 3), np.uint8)], scale=1)
    assert (sheet == 0).all(axis=-1).sum() == 4 * 4 + 8 * 2
