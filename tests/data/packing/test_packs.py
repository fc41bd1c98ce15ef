"""Rows being filled: every clip in its place, padding elsewhere."""

import dataclasses

import numpy as np
import pytest

from sora_jax.data.packing.packs import PackLayout, stack_rows
from sora_jax.data.packing.plan import Budget
from sora_jax.data.tokens import BYTE_TOKENIZER
from sora_jax.video import shapes
from sora_jax.video.parts import ContextClip
from sora_jax.video.shown import Shown, ShownConfig

LAYOUT = PackLayout(
    budget=Budget(tokens=12, text_tokens=7, segments=3),
    patch=(1, 2, 1),
    channels=3,
    temporal_stride=4,
    time_rate=2.0,
    tokenizer=BYTE_TOKENIZER,
)


def text(caption):
    return BYTE_TOKENIZER.encode([caption])[0]


FIRST = {"sample": 7, "grid": (2, 1, 3), "fps": 8.0, "text": text("a red circle")}
SECOND = {"sample": 2, "grid": (1, 2, 2), "fps": 4.0, "text": text("")}


def tokens(grid, value):
    return np.full((shapes.count(grid), 6), value, np.float32)


def filled():
    row = LAYOUT.row()
    places = [row.put(**clip, tokens_LP=tokens(clip["grid"], value)) for clip, value in ((FIRST, 1.0), (SECOND, 2.0))]
    return row, places


def test_an_empty_row_is_padding_everywhere():
    arrays = LAYOUT.row().arrays
    assert arrays["tokens_BLP"].shape == (12, 6)
    for name, value in arrays.items():
        np.testing.assert_array_equal(value, -1 if name == "sample_BS" else 0)


def test_clips_lie_one_after_the_other():
    row, places = filled()
    assert places == [slice(0, 6), slice(6, 10)]
    arrays = row.arrays
    assert arrays["segment_BL"].tolist() == [1] * 6 + [2] * 4 + [0] * 2
    assert arrays["tokens_BLP"][:, 0].tolist() == [1] * 6 + [2] * 4 + [0] * 2
    np.testing.assert_array_equal(arrays["grid_BS3"], [(2, 1, 3), (1, 2, 2), (0, 0, 0)])
    assert arrays["sample_BS"].tolist() == [7, 2, -1]


def test_what_is_shown_lies_beside_the_tokens_of_its_clip_and_images_in_the_part_of_its_segment():
    config = ShownConfig(channels=2, last="must", image_tokens=2, image_width=5)
    row = dataclasses.replace(LAYOUT, shown=config).row()
    given = np.arange(2 * 2 * 3 * 2, dtype=np.float32).reshape(2, 2, 3, 2)
    kept = np.array([0, 2, 5])
    row.put(**SECOND, tokens_LP=None)
    there = row.put(**FIRST, tokens_LP=None, kept=kept, shown=Shown(given, np.full((4, 5), 3, np.float32)))
    arrays = row.arrays
    assert arrays["given_BLC"].shape == (12, 4)
    np.testing.assert_array_equal(arrays["given_BLC"][there], given.transpose(0, 2, 1, 3).reshape(6, 4)[kept])
    assert not np.delete(arrays["given_BLC"], there, axis=0).any()
    assert arrays["image_segment_BM"].tolist() == [0] * 4 + [2] * 4 + [0] * 4
    np.testing.assert_array_equal(arrays["image_BME"][:, 0], [0] * 4 + [3] * 4 + [0] * 4)


def test_nothing_is_shown_where_the_layout_has_no_place_for_it():
    assert not LAYOUT.row().arrays.keys() & {"given_BLC", "image_BME", "image_segment_BM"}
    plain = dataclasses.replace(LAYOUT, shown=ShownConfig(channels=2, last="may")).row().arrays
    assert "given_BLC" in plain
    assert "image_BME" not in plain


def test_positions_are_in_seconds_times_the_rate_and_in_patches():
    arrays = filled()[0].arrays
    # A token frame is 4 frames at 8 a second, half a second: 1 position at 2 a second.
    np.testing.assert_array_equal(arrays["time_step_BS"], [1, 2, 0])
    np.testing.assert_array_equal(arrays["position_BL3"][:6], [(t, 0, c) for t in (0, 1) for c in (0, 1, 2)])
    np.testing.assert_array_equal(arrays["position_BL3"][6:10], [(0, r, c) for r in (0, 1) for c in (0, 1)])


def test_a_layout_that_counts_frames_sets_those_of_every_clip_as_far_apart():
    layout = dataclasses.replace(LAYOUT, fps=16.0, parts=1)
    latent = np.zeros((2, 2, 3, 3), np.float32)
    for fps in (4.0, 16.0, 30.0):
        row, clip = layout.row(), FIRST | {"grid": (2, 1, 1), "fps": fps}
        # Beside it lies a clip of half as many frames in the same time.
        beside = ContextClip(latent_THWC=latent[:, :, :1], fps=fps / 2, role="low", scale=1)
        row.put(**clip, tokens_LP=None, context=[beside])
        assert row.arrays["time_step_BS"][0] == 0.5
        assert row.arrays["position_BL3"][:4, 0].tolist() == [0, 0.5, 0, 1]


def test_captions_lie_one_after_the_other_each_from_its_start_token():
    arrays = filled()[0].arrays
    assert arrays["text_segment_BK"].tolist() == [1, 1, 1, 1, 2, 0, 0]
    assert arrays["text_position_BK"].tolist() == [0, 1, 2, 3, 0, 0, 0]
    np.testing.assert_array_equal(arrays["text_BKQ"][:4], text("a red circle")["text_BKQ"])
    np.testing.assert_array_equal(arrays["text_BKQ"][4:], 0)


def test_without_tokens_there_is_room_for_noise():
    row = LAYOUT.row()
    assert row.put(**FIRST, tokens_LP=None) == slice(0, 6)
    np.testing.assert_array_equal(row.arrays["tokens_BLP"], 0)
    assert row.arrays["segment_BL"].tolist() == [1] * 6 + [0] * 6


def test_of_a_clip_only_kept_tokens_are_added_with_their_own_positions():
    whole, thin = LAYOUT.row(), LAYOUT.row()
    tokens_LP = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
    whole.put(**FIRST, tokens_LP=tokens_LP)
    assert thin.put(**FIRST, tokens_LP=tokens_LP, kept=np.array([0, 2, 5])) == slice(0, 3)
    for name in ("tokens_BLP", "position_BL3"):
        np.testing.assert_array_equal(thin.arrays[name][:3], whole.arrays[name][[0, 2, 5]])
        np.testing.assert_array_equal(thin.arrays[name][3:], 0)
    assert thin.arrays["segment_BL"].tolist() == [1] * 3 + [0] * 9
    for name in ("grid_BS3", "time_step_BS", "sample_BS", "text_BKQ", "text_segment_BK", "text_position_BK"):
        np.testing.assert_array_equal(thin.arrays[name], whole.arrays[name])


@pytest.mark.parametrize("clip", [SECOND | {"grid": (1, 1, 3)}, SECOND | {"grid": (1, 1, 1), "text": text("a b c")}])
def test_what_does_not_fit_is_a_fault_of_the_plan(clip):
    row, _ = filled()
    with pytest.raises(AssertionError):
        row.put(**clip, tokens_LP=None)


def test_rows_are_stacked_batch_first():
    pack = stack_rows([filled()[0], LAYOUT.row()])
    assert pack["tokens_BLP"].shape == (2, 12, 6)
    assert pack["segment_BL"].dtype == np.int32
    np.testing.assert_array_equal(pack["segment_BL"][1], 0)
