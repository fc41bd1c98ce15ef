"""An interval holds what other clips of the same kind give."""

import numpy as np
import pytest

from sora_jax.evaluation.distances import frechet_distance, kernel_distance
from sora_jax.evaluation.intervals import around, earth_mover, frechet_interval, mean_interval


def rows(seed, shift=0.0, count=60):
    return np.random.default_rng(seed).normal(size=(count, 6)) + shift


def test_an_interval_of_a_distance_is_as_wide_as_other_sets_say():
    found = [frechet_interval(rows(seed), rows(seed + 100, 1.0), np.random.default_rng(0)) for seed in range(3)]
    others = [frechet_distance(rows(seed), rows(seed + 500, 1.0)) for seed in range(200)]
    assert np.mean([one.high - one.low for one in found]) == pytest.approx(2 * 1.96 * np.std(others), rel=0.3)
    assert all(one.low < one.value < one.high for one in found)
    assert found[0].value == frechet_distance(rows(0), rows(100, 1.0))


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_the_interval_of_a_kernel_distance_holds_what_more_samples_give(shift):
    truth = kernel_distance(rows(1, count=2000), rows(2, shift, count=2000)).value
    held = []
    for seed in range(10, 50):
        found = around(*kernel_distance(rows(seed), rows(seed + 100, shift)))
        held.append(found.low <= truth <= found.high)
    assert np.mean(held) >= 0.85


def test_the_mean_of_clips_has_the_interval_of_the_textbook():
    found = mean_interval(np.array([1.0, 2.0, 3.0, 4.0]))
    assert (found.value, found.high - found.low) == pytest.approx((2.5, 2 * 1.96 * 1.2910 / 2), rel=1e-3)
    assert around(0.1, 1.0, least=0.0).low == 0


def test_earth_is_moved_as_far_as_the_sets_lie_apart():
    assert earth_mover(np.array([0.0, 1.0]), np.array([3.0, 4.0])) == pytest.approx(3)
    assert earth_mover(np.array([0.0, 1.0]), np.array([1.0, 0.0])) == 0
    assert earth_mover(np.array([0.0, 0.0, 3.0]), np.array([0.0])) == pytest.approx(1)
