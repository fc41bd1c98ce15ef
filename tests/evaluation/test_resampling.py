"""The baseline of an autoencoder uses the numbers it is given, and no more."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_jax.evaluation.pixels import psnr
from sora_jax.evaluation.resampling import resample, scaled_size


def smooth(frames, height, width):
    """A clip of slow waves in space and time."""
    t, y, x = np.meshgrid(*(np.linspace(0, 1, size) for size in (frames, height, width)), indexing="ij")
    waves = [np.sin(3 * x + t), np.cos(4 * y - t), np.sin(2 * x + 3 * y)]
    return np.rint(127.5 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)


@given(st.integers(1, 33), st.integers(8, 90), st.integers(8, 90), st.integers(3, 5000), st.sampled_from([1, 2, 4]))
def test_a_scaled_clip_holds_no_more_numbers_than_allowed(frames, height, width, values, time):
    size = scaled_size((frames, height, width, 3), values=values, time=time)
    assert 3 * np.prod(size) <= values
    assert np.all(np.array(size) >= 1)
    assert np.all(np.array(size) <= (frames, height, width))


def test_most_of_the_numbers_are_used_and_the_shape_is_kept():
    frames, height, width = scaled_size((17, 128, 224, 3), values=5 * 16 * 28 * 16, time=4)
    assert frames == 5
    assert 0.95 < 3 * frames * height * width / (5 * 16 * 28 * 16) <= 1
    assert abs(height / width - 128 / 224) < 0.03


def test_more_numbers_give_more_of_the_clip():
    clip = smooth(9, 40, 56)
    found = [psnr(clip, resample(clip, values=values)) for values in (60, 600, 6000)]
    assert found[0] < found[1] < found[2]
    assert found[2] > 35
    np.testing.assert_array_equal(resample(clip, values=clip.size), clip)


def test_a_clip_that_stands_still_spends_its_numbers_on_space():
    noise = np.random.default_rng(0).integers(0, 256, size=(1, 16, 16, 3), dtype=np.uint8)
    still = np.repeat(noise, 9, axis=0)
    assert psnr(still, resample(still, values=9 * 300)) > psnr(noise, resample(noise, values=300)) + 1


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 9, 13), (1, 1, 1)])
def test_any_shape_comes_back(shape):
    clip = smooth(*shape)
    made = resample(clip, values=max(3, clip.size // 10))
    assert made.shape == clip.shape
    assert made.dtype == np.uint8
