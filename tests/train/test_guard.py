"""What is usual: running means and variances against numpy, limits, and settings that cannot be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.train.guard import ONLY_FINITE, Usual


def follow(seen_N2, window):
    usual = Usual.nothing()
    for seen_2 in seen_N2:
        usual = usual.after(jnp.asarray(seen_2, jnp.float32), window=window)
    return usual


def test_the_first_steps_give_their_mean_and_variance():
    seen_N2 = np.random.default_rng(0).normal(size=(20, 2)) * [1, 10] + [5, 50]
    usual = follow(seen_N2, window=20)
    np.testing.assert_allclose(usual.mean_2, seen_N2.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(usual.variance_2, seen_N2.var(axis=0), rtol=1e-4)


def test_old_steps_fade():
    seen_N2 = np.concatenate([np.full((50, 2), 9.0), np.random.default_rng(0).normal(size=(400, 2)) + 3])
    usual = follow(seen_N2, window=40)
    np.testing.assert_allclose(usual.mean_2, 3, atol=0.5)
    np.testing.assert_allclose(usual.variance_2, 1, atol=0.5)


def test_nothing_is_unusual_until_enough_is_known():
    known = follow(np.ones((9, 2)), window=10)
    assert np.all(np.isinf(known.limit_2(3.0, window=10)))
    known = follow(np.ones((10, 2)), window=10)
    np.testing.assert_allclose(known.limit_2(3.0, window=10), 1.03, rtol=1e-6)


def test_a_limit_is_so_many_deviations_over_the_mean():
    usual = Usual(count=jnp.asarray(5), mean_2=jnp.asarray([1.0, 2.0]), variance_2=jnp.asarray([4.0, 9.0]))
    np.testing.assert_allclose(jax.jit(lambda u: u.limit_2(2.0, window=5))(usual), [5, 8])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"max_skipped_steps": 0}, "max_skipped_steps must be at least 1, got 0"),
        ({"clip_deviations": -1.0}, "clip_deviations is -1: it must be more than 0, or None"),
        ({"on_spike": "skip"}, "on_spike 'skip' needs to know what a spike is"),
    ],
)
def test_settings_that_cannot_be_are_refused(changed, said):
    with pytest.raises(UserError, match=said):
        dataclasses.replace(ONLY_FINITE, **changed)
