"""What is shown of a verdict: every number of the table, every panel of the picture."""

import numpy as np
import pytest

from sora_jax.data.sources.shapes_prompts import case_of
from sora_jax.evaluation.evaluator import judge_clips
from sora_jax.evaluation.reconstruction import Damaged
from sora_jax.evaluation.show import table, verdicts_picture, worst_picture
from tests.evaluation.test_form import moving


def test_the_table_has_a_line_for_each_row_under_all_names():
    groups = [
        {"frames": "1", "size": "8x8", "clips": 3, "psnr": 31.234567},
        {"frames": "5", "size": "8x16", "clips": 1, "psnr": 20.0, "lpips": 0.125},
    ]
    lines = table([*groups, {"frames": "all", "size": "all", "clips": 4, "psnr": 28.5}]).splitlines()
    assert [line.split() for line in lines] == [
        ["frames", "size", "clips", "psnr", "lpips"],
        ["1", "8x8", "3", "31.23", "-"],
        ["5", "8x16", "1", "20", "0.125"],
        ["all", "all", "4", "28.5", "-"],
    ]
    assert len({len(line) for line in lines}) == 1


def damaged(frames, height, width, *, name="a.mp4", error=10):
    truth = np.random.default_rng(0).integers(0, 200, size=(frames, height, width, 3), dtype=np.uint8)
    return Damaged(name=name, shape=(frames, height, width), psnr=20.0, truth_FHWC=truth, made_FHWC=truth + error)


def test_truth_reconstruction_and_difference_lie_side_by_side():
    one = damaged(2, 100, 120)
    picture = worst_picture([one])
    for row in range(2):
        top = 16 + row * 104
        panels = [picture[top : top + 100, left : left + 120] for left in (4, 128, 252)]
        np.testing.assert_array_equal(panels[0], one.truth_FHWC[row])
        np.testing.assert_array_equal(panels[1], one.made_FHWC[row])
        assert (panels[2] == 128 + 4 * 10).all()
    assert (picture[:16] < 128).any(), "a line of text"


@pytest.mark.parametrize(
    ("height", "width", "shown"), [(16, 24, (64, 96)), (1024, 768, (384, 288)), (2, 2000, (1, 384))]
)
def test_small_frames_are_enlarged_and_large_ones_reduced(height, width, shown):
    picture = worst_picture([damaged(1, height, width, error=0)])
    assert picture.shape[0] == 16 + shown[0] + 2 * 4
    assert picture.shape[1] >= 3 * (shown[1] + 4) + 4
    assert (picture[16 : 16 + shown[0], 4 + 2 * (shown[1] + 4) :][: shown[0], : shown[1]] == 128).all()


def test_clips_of_any_name_and_size_share_a_picture():
    picture = worst_picture([damaged(3, 16, 16, name="日本/ñ.mp4" * 20), damaged(1, 30, 20)])
    assert picture.dtype == np.uint8
    assert picture.shape[0] == (16 + 3 * (96 + 4) + 4) + (16 + 120 + 4 + 4)


def test_samples_are_shown_large_with_the_scores_in_green_or_red():
    scene, clip = moving("circle", frames=12)
    other, _ = moving("square", frames=12)
    picture = verdicts_picture(judge_clips([case_of(scene), case_of(other)], [clip, clip]))
    row = 2 * 16 + 4 * 32 + 4
    assert picture.shape[0] == 2 * row
    enlarged = clip.repeat(4, axis=1).repeat(4, axis=2)
    for top in (32, row + 32):
        for place, frame in {0: 0, 8: 11}.items():
            left = 4 + place * (4 * 32 + 4)
            np.testing.assert_array_equal(picture[top : top + 128, left : left + 128], enlarged[frame])
    wrong = [(picture[top : top + 16] == (200, 30, 30)).all(axis=-1).any() for top in (0, row)]
    right = [(picture[top : top + 16] == (0, 110, 40)).all(axis=-1).any() for top in (0, row)]
    assert (wrong, right) == ([False, True], [True, True]), "the second has another shape"
