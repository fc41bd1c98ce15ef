"""Names of files and sheets of clips."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_jax.generate.write import contact_sheet, file_stem, free_path


@given(st.text(max_size=200))
def test_a_stem_is_safe_on_every_file_system(prompt):
    stem = file_stem(prompt)
    assert re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", stem), stem
    assert len(stem) <= 80


@pytest.mark.parametrize(
    ("prompt", "stem"),
    [
        ("A red circle, moves right!", "a_red_circle_moves_right"),
        ("../../etc/passwd", "etc_passwd"),
        ("Café à la crème", "cafe_a_la_creme"),
        ("赤い円", "prompt"),
        ("", "prompt"),
        ("_ - _", "prompt"),
        ("x" * 100, "x" * 80),
        ("y" * 79 + " z", "y" * 79),
    ],
)
def test_a_stem_says_what_the_prompt_said(prompt, stem):
    assert file_stem(prompt) == stem


def test_a_taken_path_is_numbered():
    taken: set[Path] = set()
    for expected in ("a.mp4", "a_2.mp4", "a_3.mp4"):
        path = free_path(Path("out"), "a", ".mp4", taken)
        assert path == Path("out") / expected
        taken.add(path)
    assert free_path(Path("out"), "a", ".png", taken) == Path("out/a.png")
    assert free_path(Path("other"), "a", ".mp4", taken) == Path("other/a.mp4")


def noise(frames, height, width, seed):
    return np.random.default_rng(seed).integers(0, 250, size=(frames, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("count", "size", "columns", "rows"),
    [(1, (4, 4), 1, 1), (4, (4, 4), 2, 2), (5, (4, 4), 3, 2), (6, (2, 6), 2, 3), (6, (6, 2), 5, 2)],
)
@pytest.mark.parametrize("scale", [1, 3])
def test_a_sheet_shows_every_clip_in_its_cell(count, size, columns, rows, scale):
    clips = [noise(1 + number % 3, *size, seed=number) for number in range(count)]
    sheet = contact_sheet(clips, scale=scale)
    height, width = size[0] * scale, size[1] * scale
    frames = min(count, 3)
    assert sheet.shape == (frames, 2 + rows * (height + 2), 2 + columns * (width + 2), 3)
    assert sheet.dtype == np.uint8
    white = np.ones(sheet.shape, bool)
    for number, clip in enumerate(clips):
        top = 2 + (number // columns) * (height + 2)
        left = 2 + (number % columns) * (width + 2)
        for frame in range(frames):
            for row in range(height):
                for column in range(width):
                    pixel = clip[min(frame, len(clip) - 1), row // scale, column // scale]
                    assert (sheet[frame, top + row, left + column] == pixel).all()
                    white[frame, top + row, left + column] = False
    assert (sheet[white] == 255).all(), "gaps and empty cells"


def test_cells_are_as_large_as_the_largest_clip():
    clips = [noise(1, 2, 6, 0), noise(2, 6, 2, 1)]
    sheet = contact_sheet(clips, scale=1)
    assert sheet.shape == (2, 2 + 8, 2 + 2 * 8, 3)
    np.testing.assert_array_equal(sheet[1, 2:4, 2:8], clips[0][0])
    np.testing.assert_array_equal(sheet[:, 2:8, 10:12], clips[1])
    assert (sheet[:, 4:8, 2:8] == 255).all()
