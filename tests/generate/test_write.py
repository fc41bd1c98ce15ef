"""Names of files from prompts, and sheets of clips."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_jax.generate.write import contact_sheet, file_stem, free_path, is_safe_name


@given(st.text(max_size=200))
def test_a_stem_is_always_a_safe_name(prompt):
    stem = file_stem(prompt)
    assert 1 <= len(stem) <= 80
    assert stem.isascii()
    assert stem.replace("_", "a").isalnum()
    assert not stem.startswith("_")
    assert file_stem(stem) == stem


@pytest.mark.parametrize(
    ("prompt", "stem"),
    [
        ("A red circle, moving right!", "a_red_circle_moving_right"),
        ("../../etc/passwd", "etc_passwd"),
        ("Ein Käfer", "ein_kafer"),
        ("赤い丸", "prompt"),
        ("", "prompt"),
        ("a" * 79 + " b", "a" * 79),
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
