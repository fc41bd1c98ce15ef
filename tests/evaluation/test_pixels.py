"""PSNR and SSIM against slow loops."""

import math

import numpy as np
import pytest

from sora_jax.evaluation.pixels import psnr, ssim


def clip(seed, frames=2, height=14, width=13):
    return np.random.default_rng(seed).integers(0, 256, size=(frames, height, width, 3), dtype=np.uint8)


def slow_ssim(first, second, size):
    """Wang et al. 2004: the mean over every place where a Gaussian window lies inside the frame."""
    first, second = first.astype(float), second.astype(float)
    line = [math.exp(-0.5 * ((i - (size - 1) / 2) / 1.5) ** 2) for i in range(size)]
    window = np.outer(line, line) / np.sum(np.outer(line, line))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    frames, height, width, channels = first.shape
    for t, c, top, left in np.ndindex(frames, channels, height - size + 1, width - size + 1):
        a, b = (x[t, top : top + size, left : left + size, c] for x in (first, second))
        mean_a, mean_b = np.sum(window * a), np.sum(window * b)
        variance_a, variance_b = np.sum(window * (a - mean_a) ** 2), np.sum(window * (b - mean_b) ** 2)
        covariance = np.sum(window * (a - mean_a) * (b - mean_b))
        luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
        values.append(luminance * (2 * covariance + c2) / (variance_a + variance_b + c2))
    return np.mean(values)


@pytest.mark.parametrize(("height", "width", "size"), [(14, 13, 11), (11, 12, 11), (8, 20, 8)])
def test_ssim_is_the_slow_one(height, width, size):
    first = clip(0, height=height, width=width)
    second = np.clip(first + np.random.default_rng(1).normal(scale=40, size=first.shape), 0, 255).astype(np.uint8)
    assert ssim(first, second) == pytest.approx(slow_ssim(first, second, size), abs=1e-9)
    assert 0.1 < ssim(first, second) < 0.99


def test_psnr_is_the_slow_one():
    first, second = clip(0), clip(1)
    error = sum((int(a) - int(b)) ** 2 for a, b in zip(first.ravel(), second.ravel(), strict=True)) / first.size
    assert psnr(first, second) == pytest.approx(20 * math.log10(255 / math.sqrt(error)))
    off_by_one = np.clip(first, 0, 254) + 1
    assert psnr(np.clip(first, 0, 254), off_by_one) == pytest.approx(48.13, abs=0.01)


def test_equal_clips_are_perfect():
    assert psnr(clip(0), clip(0)) == math.inf
    assert ssim(clip(0), clip(0)) == pytest.approx(1)


def test_both_are_symmetric_and_fall_with_damage():
    truth = clip(0) // 4 + 96
    noise = np.random.default_rng(2).normal(size=truth.shape)
    damaged = [np.clip(truth + scale * noise, 0, 255).astype(np.uint8) for scale in (2, 8, 32)]
    for measure in (psnr, ssim):
        values = [measure(truth, other) for other in damaged]
        assert values == sorted(values, reverse=True)
        assert measure(truth, damaged[1]) == pytest.approx(measure(damaged[1], truth))


def test_a_black_clip_against_a_white_one_is_worst():
    black, white = np.zeros((1, 12, 12, 3), np.uint8), np.full((1, 12, 12, 3), 255, np.uint8)
    assert psnr(black, white) == 0
    assert ssim(black, white) < 1e-3
