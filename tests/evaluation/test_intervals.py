"""An interval holds what other clips of the same kind give."""

import numpy as np
import pytest

from sora_jax.evaluation.intervals import around, earth_mover, mean_interval


def test_the_mean_of_clips_has_the_interval_of_the_textbook():
    found = mean_interval(np.array([1.0, 2.0, 3.0, 4.0]))
    assert (found.value, found.high - found.low) == pytest.approx((2.5, 2 * 1.96 * 1.2910 / 2), rel=1e-3)
    assert around(0.1, 1.0, least=0.0).low == 0
    shares = mean_interval(np.array([1.0, 1.0, 0.5]), least=0.0, most=1.0)
    assert (shares.high, shares.low) == (1.0, pytest.approx(0.8333 - 1.96 / 6, abs=1e-3))


def test_earth_is_moved_as_far_as_the_sets_lie_apart():
    assert earth_mover(np.array([0.0, 1.0]), np.array([3.0, 4.0])) == pytest.approx(3)
    assert earth_mover(np.array([0.0, 1.0]), np.array([1.0, 0.0])) == 0
    assert earth_mover(np.array([0.0, 0.0, 3.0]), np.array([0.0])) == pytest.approx(1)
