"""Cutting a clip to the model: the limits hold, and no more is lost than they demand."""

import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sora_jax.data.clips import SHORT_SIDE_TOKENS, BadClip, Clip, Fitted, covering, fit_clip


def blank(frames: int, height: int, width: int) -> Clip:
    # A broadcast view costs no memory, whatever its size.
    pixels_THWC = np.broadcast_to(np.zeros(3, np.uint8), (frames, height, width, 3))
    return Clip(pixels_THWC=pixels_THWC, fps=8.0, captions=("a clip",), source_id="some/clip.mp4")


def fit(
    clip: Clip, *, stride=(4, 16, 16), min_tokens=1, max_tokens=10**6, max_frames=None, square_crop=False
) -> Fitted:
    limits = {"min_tokens": min_tokens, "max_tokens": max_tokens, "max_frames": max_frames}
    return fit_clip(clip, stride=stride, square_crop=square_crop, **limits)


@given(
    frames=st.integers(1, 30),
    sides=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    stride=st.tuples(st.integers(1, 6), st.integers(1, 20), st.integers(1, 20)),
    max_tokens=st.integers(1, 200),
    max_frames=st.none() | st.integers(1, 30),
)
def test_limits_hold_and_little_is_lost(frames, sides, stride, max_tokens, max_frames):
    clip = blank(frames, *sides)
    time_stride, *side_strides = stride
    try:
        fitted = fit(clip, stride=stride, max_tokens=max_tokens, max_frames=max_frames)
    except BadClip:
        grid = [side // s for side, s in zip(sides, side_strides, strict=True)]
        elongation = max(grid) / min(grid) if min(grid) else np.inf
        assert min(grid) == 0 or elongation > max_tokens / 2
        return
    kept, *cut = fitted.clip.pixels_THWC.shape[:3]
    assert kept % time_stride == 1 % time_stride
    assert kept + fitted.trimmed_frames == frames
    assert kept <= (max_frames or frames)
    assert all(side % s == 0 for side, s in zip(cut, side_strides, strict=True))
    tokens = (1 + (kept - 1) // time_stride) * np.prod([c // s for c, s in zip(cut, side_strides, strict=True)])
    assert fitted.tokens == tokens <= max_tokens
    assert 0 < fitted.scale <= 1
    lost = (fitted.cropped_rows, fitted.cropped_columns)
    for side, left, gone, s in zip(sides, cut, lost, side_strides, strict=True):
        # What is left and what was cropped make up the scaled side: the aspect ratio is kept within a stride.
        assert 0 <= gone < s
        assert left + gone == pytest.approx(side * fitted.scale, abs=1)


def cuts(sides: tuple[int, int], stride: int) -> dict[Fraction, tuple[int, Fraction]]:
    """Returns by scale, of those that make a side exact, the tokens of a frame and the share of it that is cut."""
    found = {}
    for scale in {Fraction(stride * n, side) for side in sides for n in range(1, side // stride + 1)} | {Fraction(1)}:
        grid = [side * scale // stride for side in sides]
        if min(grid) > 0:
            tokens = math.prod(grid)
            found[scale] = tokens, 1 - tokens * stride**2 / (scale**2 * math.prod(sides))
    return found


@given(
    sides=st.tuples(st.integers(48, 200), st.integers(48, 200)),
    stride=st.sampled_from([7, 8, 16]),
    max_tokens=st.integers(8, 100),
)
def test_an_image_is_scaled_no_further_than_needed_to_keep_it_whole(sides, stride, max_tokens):
    fitted = fit(blank(1, *sides), stride=(4, stride, stride), max_tokens=max_tokens)
    found = {scale: cut for scale, (tokens, cut) in cuts(sides, stride).items() if tokens <= max_tokens}
    largest, scale = max(found), min(found, key=lambda scale: abs(float(scale) - fitted.scale))
    assert fitted.scale == pytest.approx(float(scale), rel=1e-6)
    assert fitted.cut == pytest.approx(float(found[scale]))
    larger = [cut for other, cut in found.items() if other > scale]
    assert all(cut > 0.02 and cut >= found[scale] for cut in larger), "size is given up for the picture alone"
    whole = any(cut <= 0.02 for other, cut in found.items() if 2 * other >= largest)
    if Fraction(1) in found:
        assert fitted.scale == 1, "within the limit the size stays"
    else:
        assert (fitted.cut <= 0.02) == whole, "it is whole where that leaves half of the size"
    assert fitted.scale >= 0.5 * float(largest) - 1e-9
    alike = [other for other, cut in found.items() if 2 * other >= largest and cut <= found[scale] - Fraction(1, 100)]
    assert fitted.scale == 1 or fitted.cut <= 0.02 or not alike, "nothing cuts a percent less"


COMMON = [(360, 640), (1080, 1920), (1920, 1080), (480, 854), (576, 720), (1000, 1000), (1080, 1440), (1080, 2560)]


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("sides", COMMON)
def test_common_sizes_keep_their_picture_within_two_percent_wherever_a_grid_does(stride, sides):
    for max_tokens in (16, 24, 48, 76, 96, 256):
        fitted = fit(blank(1, *sides), stride=(4, stride, stride), max_tokens=max_tokens)
        allowed = [cut for tokens, cut in cuts(sides, stride).values() if tokens <= max_tokens and cut <= 0.02]
        assert (fitted.cut <= 0.02) == bool(allowed), (max_tokens, fitted.cut, fitted.clip.pixels_THWC.shape)
        assert fitted.cut < 0.0633, "of 3 x 5 tokens of a wide picture that has no better ones"


def test_a_long_clip_that_is_made_smaller_to_stay_whole_has_more_time_for_it():
    fitted = fit(blank(401, 480, 640), max_tokens=96)
    assert fitted.clip.pixels_THWC.shape == (29, 48, 64, 3), "8 x 12 tokens, not 4 x 20 of which a sixteenth is cut"
    assert (fitted.tokens, fitted.cut) == (96, 0)


@pytest.mark.parametrize("stride", [4, 8, 16, 28, 32])
def test_a_wide_screen_keeps_its_picture_at_small_budgets(stride):
    for frames, max_tokens in ((9, 126), (9, 96), (1, 40), (17, 200), (17, 480)):
        for sides in ((360, 640), (640, 360), (720, 1280)):
            fitted = fit(blank(frames, *sides), stride=(4, stride, stride), max_tokens=max_tokens)
            _, height, width, _ = fitted.clip.pixels_THWC.shape
            assert fitted.cut < 0.05, (stride, frames, max_tokens, fitted.clip.pixels_THWC.shape)
            assert width / height == pytest.approx(sides[1] / sides[0], rel=0.05)


def test_the_grid_that_cuts_least_is_taken_and_what_is_cut_told_as_a_share():
    fitted = fit(blank(9, 360, 640), stride=(4, 8, 8), max_tokens=96)
    assert fitted.clip.pixels_THWC.shape[1:3] == (32, 56), "not 32x64, of which four rows in 36 are cut"
    assert (fitted.cropped_rows, fitted.cropped_columns) == (0, 0)
    assert fitted.cut == pytest.approx(1 - 56 / (640 * 32 / 360))
    assert fit(blank(1, 36, 64), stride=(4, 8, 8)).cut == pytest.approx(4 / 36), "within the limit the size stays"


def test_a_clip_within_the_limit_keeps_its_pixels():
    pixels_THWC = np.random.default_rng(0).integers(0, 256, (11, 37, 50, 3), np.uint8)
    clip = Clip(pixels_THWC=pixels_THWC, fps=12.5, captions=("a", "b"), source_id="x")
    fitted = fit(clip)
    np.testing.assert_array_equal(fitted.clip.pixels_THWC, pixels_THWC[:9, 2:34, 1:49])
    assert (fitted.trimmed_frames, fitted.cropped_rows, fitted.cropped_columns) == (2, 5, 2)
    assert (fitted.scale, fitted.tokens) == (1.0, 3 * 2 * 3)
    assert (fitted.clip.fps, fitted.clip.captions, fitted.clip.source_id) == (12.5, ("a", "b"), "x")


def test_scaling_is_isotropic_and_antialiased():
    # A disc stays a disc with the same centre, and a fine chequerboard turns grey instead of aliasing.
    rows, columns = np.mgrid[:120, :200]
    disc_HW = (rows - 59.5) ** 2 + (columns - 99.5) ** 2 < 40**2
    board_HW = (rows + columns) % 2 == 0
    pixels_THWC = (255 * np.stack([disc_HW, board_HW])[..., None].repeat(3, -1)).astype(np.uint8)
    clip = Clip(pixels_THWC=pixels_THWC, fps=1.0, captions=(), source_id="x")
    fitted = fit(clip, stride=(1, 8, 8), max_tokens=2 * 40)
    disc_HW, board_HW = fitted.clip.pixels_THWC[..., 0] / 255
    assert fitted.scale < 0.5
    spread = [np.sqrt(4 * np.average((i - i.mean()) ** 2, weights=disc_HW)) for i in np.indices(disc_HW.shape)]
    np.testing.assert_allclose(spread, 40 * fitted.scale, rtol=0.02)
    for index in np.indices(disc_HW.shape):
        assert np.average(index, weights=disc_HW) == pytest.approx(index.mean(), abs=0.1)
    np.testing.assert_allclose(board_HW[2:-2, 2:-2], 0.5, atol=0.02)


def test_a_scaled_clip_matches_pillow_where_nothing_is_cropped():
    pixels_THWC = np.random.default_rng(1).integers(0, 256, (1, 96, 128, 3), np.uint8)
    fitted = fit(Clip(pixels_THWC=pixels_THWC, fps=1.0, captions=(), source_id="x"), max_tokens=12)
    expected = Image.fromarray(pixels_THWC[0]).resize((64, 48), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(fitted.clip.pixels_THWC[0], np.asarray(expected))


def test_a_long_clip_loses_duration_before_it_gets_too_small_to_see():
    fitted = fit(blank(401, 160, 320), max_tokens=200)
    rows, columns = fitted.clip.pixels_THWC.shape[1] // 16, fitted.clip.pixels_THWC.shape[2] // 16
    assert min(rows, columns) == SHORT_SIDE_TOKENS
    assert fitted.tokens == 192
    assert fitted.trimmed_frames == 401 - 21


@given(
    frames=st.integers(1, 9),
    sides=st.tuples(st.integers(16, 90), st.integers(16, 90)),
    max_tokens=st.integers(1, 100),
)
def test_a_square_crop_fits_as_the_central_square_does(frames, sides, max_tokens):
    side = min(sides)
    whole = fit(blank(frames, *sides), max_tokens=max_tokens, square_crop=True)
    square = fit(blank(frames, side, side), max_tokens=max_tokens)
    assert whole.clip.pixels_THWC.shape == square.clip.pixels_THWC.shape
    assert (whole.tokens, whole.scale, whole.trimmed_frames) == (square.tokens, square.scale, square.trimmed_frames)
    for length, left, gone in zip(
        sides, whole.clip.pixels_THWC.shape[1:3], (whole.cropped_rows, whole.cropped_columns), strict=True
    ):
        assert left + gone == pytest.approx(length * whole.scale, abs=1)


@pytest.mark.parametrize("max_tokens", [10**6, 4])
def test_a_square_crop_keeps_the_pixels_of_the_middle(max_tokens):
    pixels_THWC = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), np.uint8)
    clip = Clip(pixels_THWC=pixels_THWC, fps=8.0, captions=(), source_id="a")
    middle = Clip(pixels_THWC=pixels_THWC[:, :, 16:80], fps=8.0, captions=(), source_id="a")
    cut = fit(clip, max_tokens=max_tokens, square_crop=True).clip.pixels_THWC
    # Pillow's filter reaches beyond the box that it is given, into what is cut off.
    inner = np.s_[:, :, 4:-4] if max_tokens == 4 else np.s_[:]
    np.testing.assert_array_equal(cut[inner], fit(middle, max_tokens=max_tokens).clip.pixels_THWC[inner])


def test_the_same_clip_under_a_higher_limit_loses_size_only():
    fitted = fit(blank(21, 160, 320), max_tokens=800)
    assert fitted.trimmed_frames == 0
    assert fitted.scale < 1


@pytest.mark.parametrize(
    ("clip", "limits", "words"),
    [
        (blank(9, 15, 40), {}, "15x40 pixels are smaller than one token of 16x16"),
        (blank(9, 32, 32), {"min_tokens": 13}, "give 12 tokens, under min_tokens = 13"),
        (blank(1, 16, 1600), {"max_tokens": 10}, "too elongated for one frame of max_tokens = 10"),
    ],
)
def test_unusable_clips_say_why(clip, limits, words):
    with pytest.raises(BadClip, match=words) as caught:
        fit(clip, **limits)
    assert caught.value.source_id == "some/clip.mp4"


def test_bad_clip_survives_the_way_from_a_worker_process():
    error = pickle.loads(pickle.dumps(BadClip("a.mp4", "is broken")))
    assert (error.source_id, error.reason, str(error)) == ("a.mp4", "is broken", "a.mp4: is broken")


@pytest.mark.parametrize("pixels", [np.zeros((2, 4, 4, 3)), np.zeros((4, 4, 3), np.uint8)])
def test_a_clip_is_made_of_bytes_in_four_axes(pixels):
    with pytest.raises(AssertionError):
        Clip(pixels_THWC=pixels, fps=1.0, captions=(), source_id="x")


def test_covering_keeps_the_middle_and_the_proportions():
    clip = np.zeros((1, 8, 16, 3), np.uint8)
    clip[:, :, 4:12] = 255
    assert covering(clip, (4, 4)).min() > 200, "white, but for the filter's reach"
    assert covering(clip, (8, 16)).tobytes() == clip.tobytes()
    assert covering(clip, (12, 24)).shape == (1, 12, 24, 3), "up as well"
