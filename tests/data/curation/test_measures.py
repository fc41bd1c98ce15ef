"""Measures of clips whose truth is known, and the thresholds on them."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from sora_jax.core.errors import UserError
from sora_jax.data.clips import Clip
from sora_jax.data.curation import frames, letterbox, measures
from sora_jax.data.curation.measures import LIMITS, CurationConfig, Scores, assess, measure, refuse

OFF = CurationConfig(
    shots=False,
    shot_ratio=3.0,
    shot_change=15.0,
    windows_per_file=1,
    min_frames=2,
    letterbox=None,
    min_brightness=None,
    max_brightness=None,
    max_black_share=None,
    max_static_share=None,
    min_motion=None,
    max_motion=None,
    min_sharpness=None,
    duplicate_bits=None,
    table=None,
)
HEIGHT, WIDTH = 144, 216


def texture(seed: int = 0, *, low: int = 60, grain: int = 9) -> np.ndarray:
    """Returns smooth blobs of every colour, uint8 (H, W, 3) of at least `low`."""
    noise = np.random.default_rng(seed).integers(low, 256, (HEIGHT // grain, WIDTH // grain, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)).clip(low, 255)


def moving(frames: int, *, step: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Returns a texture that moves by `step` px a frame and comes in again on the other side."""
    return np.stack([np.roll(texture(seed), (step[0] * t, step[1] * t), axis=(0, 1)) for t in range(frames)])


def clip_of(pixels_THWC: np.ndarray, *, fps: float = 16.0) -> Clip:
    return Clip(pixels_THWC=pixels_THWC, fps=fps, captions=("x",), source_id="x")


@given(step=st.tuples(st.integers(-3, 3), st.integers(-3, 3)), fps=st.sampled_from([8.0, 16.0]))
@settings(max_examples=12)
def test_motion_is_the_speed_of_a_picture_that_moves(step, fps):
    speed = 100 * np.hypot(*step) * fps / HEIGHT
    assert measures.motion(moving(13, step=step), fps=fps) == pytest.approx(speed, rel=0.3, abs=0.5)


def test_motion_counts_what_moves_by_its_share_and_noise_not_at_all():
    still = moving(9, step=(0, 0))
    noise = np.random.default_rng(1).integers(-6, 7, still.shape)
    assert measures.motion(still, fps=16.0) == 0
    assert measures.motion((still + noise).clip(0, 255).astype(np.uint8), fps=16.0) == 0
    brighter = still * np.linspace(0.85, 1.0, 9)[:, None, None, None]
    assert measures.motion(brighter.astype(np.uint8), fps=16.0) < 1, "a camera that adapts to the light"
    whole = moving(9, step=(0, 2))
    half = np.concatenate([whole[:, : HEIGHT // 2], still[:, HEIGHT // 2 :]], axis=1)
    assert measures.motion(half, fps=16.0) == pytest.approx(measures.motion(whole, fps=16.0) / 2, rel=0.2)


@pytest.mark.parametrize("still", [0, 3, 8])
def test_static_share_counts_the_pairs_that_do_not_change(still):
    pixels = np.concatenate([moving(9 - still, step=(2, 1)), *[moving(9 - still, step=(2, 1))[-1:]] * still])
    assert measures.static_share(pixels) == pytest.approx(still / 8)


def test_a_small_thing_that_moves_is_not_static():
    pixels = moving(8, step=(0, 0)).copy()
    for t in range(8):
        pixels[t, 40:56, 10 + 16 * t : 26 + 16 * t] = 255
    assert measures.static_share(pixels) == 0


def test_sharpness_falls_with_blur_and_does_not_depend_on_size():
    sharp = Image.fromarray(texture(grain=4))
    found = []
    for sigma in (0.0, 1.0, 2.0, 4.0):
        blurred = np.asarray(sharp.filter(ImageFilter.GaussianBlur(sigma)))[None]
        found.append(measures.sharpness(frames.grey(blurred, short_side=144)))
    assert all(more > 2 * less for more, less in itertools.pairwise(found)), found
    assert found[-1] < 5
    larger = np.asarray(sharp.resize((2 * WIDTH, 2 * HEIGHT), Image.Resampling.NEAREST))[None]
    assert measures.sharpness(frames.grey(larger, short_side=144)) == pytest.approx(found[0], rel=0.05)
    assert measures.sharpness(np.zeros((1, 2, 2), np.uint8)) == 0


@given(black=st.integers(0, HEIGHT))
@settings(max_examples=8)
def test_brightness_and_black_share_follow_the_rows_that_are_black(black):
    pixels = np.full((2, HEIGHT, WIDTH, 3), 200, np.uint8)
    pixels[:, :black] = 0
    scores = measure(clip_of(pixels), crop=False)
    assert scores.brightness == pytest.approx(200 * (1 - black / HEIGHT), abs=2)
    assert scores.black_share == pytest.approx(black / HEIGHT, abs=0.01)


def barred(rows: int, columns: int, *, noise: int = 8) -> np.ndarray:
    pixels = moving(5, step=(1, 2)).copy()
    dark = np.random.default_rng(2).integers(0, noise, pixels.shape, dtype=np.uint8)
    inside = np.zeros((HEIGHT, WIDTH), bool)
    inside[rows : HEIGHT - rows, columns : WIDTH - columns] = True
    return np.where(inside[None, :, :, None], pixels, dark)


@given(rows=st.integers(0, 50), columns=st.integers(0, 70))
@settings(max_examples=20)
def test_bars_are_found_to_the_pixel(rows, columns):
    pixels = barred(rows, columns)
    assert letterbox.letterbox(pixels) == (rows, rows, columns, columns)
    cropped = letterbox.crop_bars(pixels, letterbox.letterbox(pixels))
    assert cropped.shape[1:3] == (HEIGHT - 2 * rows, WIDTH - 2 * columns)
    assert letterbox.letterbox(cropped) == (0, 0, 0, 0)


def test_dark_scenes_are_no_bars():
    night = moving(5, step=(0, 1)).copy()
    night[:, :50] = 3
    assert letterbox.letterbox(night) == (0, 0, 0, 0), "a sky has no counterpart below"
    room = np.full_like(night, 4)
    room[:, 50:90, 60:150] = 220
    assert letterbox.letterbox(room) == (0, 0, 0, 0), "most of the edge of what is lit is dark"
    assert letterbox.letterbox(np.zeros_like(night)) == (0, 0, 0, 0)
    captioned = barred(20, 0)
    captioned[:, -10:-6, 80:120] = 255
    assert letterbox.letterbox(captioned) == (0, 0, 0, 0), "text in a bar is part of the picture"


def test_bars_are_kept_cropped_or_a_reason_to_drop():
    clip = clip_of(barred(20, 0))
    kept, cropped = (assess(clip, dataclasses.replace(OFF, letterbox=choice)) for choice in (None, "crop"))
    assert kept.reason is cropped.reason is None
    assert kept.scores.black_share == pytest.approx(40 / HEIGHT, abs=0.02)
    assert cropped.scores.black_share == 0
    dropped = assess(clip, dataclasses.replace(OFF, letterbox="drop"))
    assert dropped.reason == "bars of 20 + 20 rows and 0 + 0 columns are over 0.02 of a side"
    assert assess(clip_of(barred(1, 0)), dataclasses.replace(OFF, letterbox="drop")).reason is None


SCORES = Scores(
    brightness=100.0,
    black_share=0.5,
    static_share=0.5,
    motion=10.0,
    sharpness=100.0,
    bars=(0, 0, 0, 0),
    colour=(1.0, 2.0, 3.0),
    likeness="00" * 32,
    digest="a",
)


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.key)
def test_each_threshold_drops_on_its_side_and_says_both_numbers(limit):
    score = getattr(SCORES, limit.score)
    over, under = 1.2 * score, 0.8 * score
    drops, keeps = (over, under) if limit.least else (under, over)
    reason = refuse(SCORES, (9, 9), dataclasses.replace(OFF, **{limit.key: drops}))
    assert reason is not None
    assert limit.words.format(score) in reason
    assert reason.endswith(f"{'under' if limit.least else 'over'} {limit.key} = {drops:g}")
    assert refuse(SCORES, (9, 9), dataclasses.replace(OFF, **{limit.key: keeps})) is None
    assert refuse(SCORES, (9, 9), dataclasses.replace(OFF, **{limit.key: score})) is None


def test_an_image_has_no_motion_and_is_not_dropped_for_it():
    config = dataclasses.replace(OFF, min_motion=1.0, max_static_share=0.0)
    verdict = assess(clip_of(texture()[None]), config)
    assert (verdict.scores.motion, verdict.scores.static_share, verdict.reason) == (None, None, None)
    assert assess(clip_of(moving(5, step=(0, 0))), config).reason is not None


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 1), (3, 2, 9), (2, 200, 3)])
def test_clips_of_any_size_are_measured(shape):
    scores = measure(clip_of(np.full((*shape, 3), 90, np.uint8)), crop=True)
    assert (scores.brightness, scores.bars) == (90, (0, 0, 0, 0))


def test_impossible_thresholds_are_told():
    for changes, words in (
        ({"windows_per_file": 0}, "windows_per_file is 0: it must be at least 1"),
        ({"max_static_share": 1.5}, r"max_static_share is 1\.5: it must be 0 to 1"),
        ({"duplicate_bits": 257}, "duplicate_bits is 257: it must be 0 to 256"),
        ({"shot_ratio": 0.0}, "must be more than 0"),
    ):
        with pytest.raises(UserError, match=words):
            dataclasses.replace(OFF, **changes)


def test_off_is_off():
    assert OFF.off
    on = {"shots": True, "windows_per_file": 2, "letterbox": "crop", "duplicate_bits": 0}
    on |= {limit.key: 0.5 for limit in LIMITS}
    for key, value in on.items():
        assert not dataclasses.replace(OFF, **{key: value}).off, key
    assert {field.name for field in dataclasses.fields(OFF)} - on.keys() == {
        "shot_ratio",
        "shot_change",
        "min_frames",
        "table",
    }
