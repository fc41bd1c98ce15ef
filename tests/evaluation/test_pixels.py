"""PSNR and SSIM against slow references that follow the papers word by word."""

import math

import numpy as np
import pytest

from sora_jax.evaluation.pixels import psnr, ssim


def clip(seed=0, *, frames=2, height=13, width=14):
    """Returns a smooth picture with some noise, uint8."""
    noise = np.random.default_rng(seed)
    row, column = np.mgrid[:height, :width]
    wave = 128 + 60 * np.sin(row / 3.0)[None, ..., None] + 40 * np.cos(column / 2.0)[None, ..., None]
    return np.clip(wave + noise.normal(scale=10, size=(frames, height, width, 3)), 0, 255).astype(np.uint8)


def noisy(pixels, deviation, seed=1):
    noise = np.random.default_rng(seed).normal(scale=deviation, size=pixels.shape)
    return np.clip(np.round(pixels + noise), 0, 255).astype(np.uint8)


def slow_psnr(first, second):
    total = 0
    for a, b in zip(first.ravel().tolist(), second.ravel().tolist(), strict=True):
        total += (a - b) ** 2
    return 10 * math.log10(255**2 / (total / first.size))


def slow_ssim(first, second):
    """Window by window: a Gaussian of 1.5 px over 11 x 11, weighted moments, equation 13 of the paper."""
    side = min(11, *first.shape[1:3])
    centre = (side - 1) / 2
    weight = np.array(
        [[math.exp(-((i - centre) ** 2 + (j - centre) ** 2) / (2 * 1.5**2)) for j in range(side)] for i in range(side)]
    )
    weight /= weight.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for frame in range(first.shape[0]):
        for channel in range(3):
            for i in range(first.shape[1] - side + 1):
                for j in range(first.shape[2] - side + 1):
                    a, b = (x[frame, i : i + side, j : j + side, channel].astype(float) for x in (first, second))
                    mean_a, mean_b = (weight * a).sum(), (weight * b).sum()
                    variance_a = (weight * (a - mean_a) ** 2).sum()
                    variance_b = (weight * (b - mean_b) ** 2).sum()
                    covariance = (weight * (a - mean_a) * (b - mean_b)).sum()
                    top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
                    values.append(top / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)))
    return np.mean(values)


@pytest.mark.parametrize("deviation", [2, 20, 80])
def test_psnr_is_that_of_the_slow_reference(deviation):
    first = clip()
    second = noisy(first, deviation)
    assert psnr(first, second) == pytest.approx(slow_psnr(first, second), rel=1e-9)
    assert psnr(second, first) == psnr(first, second)


@pytest.mark.parametrize("size", [(13, 14), (11, 11), (8, 12), (16, 5)])
@pytest.mark.parametrize("deviation", [5, 50])
def test_ssim_is_that_of_the_slow_reference(size, deviation):
    first = clip(height=size[0], width=size[1])
    second = noisy(first, deviation)
    assert ssim(first, second) == pytest.approx(slow_ssim(first, second), rel=1e-6)
    assert ssim(second, first) == pytest.approx(ssim(first, second), rel=1e-9)


def test_known_values():
    black, white = np.zeros((1, 12, 12, 3), np.uint8), np.full((1, 12, 12, 3), 255, np.uint8)
    assert psnr(black, white) == pytest.approx(0.0)
    assert psnr(black, black + 1) == pytest.approx(48.1308, abs=1e-4)
    assert ssim(black, white) == pytest.approx(1e-4, rel=1e-3)


def test_equal_clips():
    pixels = clip()
    assert psnr(pixels, pixels.copy()) == float("inf")
    assert ssim(pixels, pixels.copy()) == pytest.approx(1.0)


def test_more_damage_lowers_both():
    pixels = clip(height=24, width=24)
    for measure in (psnr, ssim):
        values = [measure(pixels, noisy(pixels, deviation)) for deviation in (1, 4, 16, 64)]
        assert values == sorted(values, reverse=True)
        assert values[0] > values[-1] + 0.1


def test_a_shift_and_a_blur_lower_both():
    pixels = clip(height=24, width=24)
    shifted = np.roll(pixels, 2, axis=2)
    wide = np.pad(pixels.astype(float), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    blurred = np.mean([wide[:, i : i + 24, j : j + 24] for i in range(3) for j in range(3)], axis=0).astype(np.uint8)
    for damaged in (shifted, blurred):
        assert psnr(pixels, damaged) < 35
        assert ssim(pixels, damaged) < 0.95


def test_ssim_forgives_brightness_where_psnr_does_not():
    """Equal error in the mean square: a constant offset keeps the structure, noise does not."""
    pixels = clip(height=24, width=24)
    pixels = (50 + pixels * (150 / 255)).astype(np.uint8)
    offset = pixels + np.uint8(20)
    noise = pixels + np.random.default_rng(0).choice([-20, 20], size=pixels.shape)
    noise = noise.astype(np.uint8)
    assert psnr(pixels, offset) == pytest.approx(psnr(pixels, noise))
    assert ssim(pixels, offset) > ssim(pixels, noise) + 0.1
