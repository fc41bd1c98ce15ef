"""The guard: running means and variances against numpy, verdicts on steps, and settings that cannot be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.train.guard import ONLY_FINITE, LossStats, judge


def follow(seen_N2, window):
    stats = LossStats.nothing()
    for seen_2 in seen_N2:
        stats = stats.after(jnp.asarray(seen_2, jnp.float32), window=window)
    return stats


def test_the_first_steps_give_their_mean_and_variance():
    seen_N2 = np.random.default_rng(0).normal(size=(20, 2)) * [1, 10] + [5, 50]
    stats = follow(seen_N2, window=20)
    np.testing.assert_allclose(stats.mean_2, seen_N2.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(stats.variance_2, seen_N2.var(axis=0), rtol=1e-4)


def test_old_steps_fade():
    seen_N2 = np.concatenate([np.full((50, 2), 9.0), np.random.default_rng(0).normal(size=(400, 2)) + 3])
    stats = follow(seen_N2, window=40)
    np.testing.assert_allclose(stats.mean_2, 3, atol=0.5)
    np.testing.assert_allclose(stats.variance_2, 1, atol=0.5)


def test_nothing_is_unusual_until_enough_is_known():
    known = follow(np.ones((9, 2)), window=10)
    assert np.all(np.isinf(known.threshold_2(3.0, window=10)))
    known = follow(np.ones((10, 2)), window=10)
    np.testing.assert_allclose(known.threshold_2(3.0, window=10), 1.03, rtol=1e-6)


def test_a_limit_is_so_many_deviations_over_the_mean():
    stats = LossStats(count=jnp.asarray(5), mean_2=jnp.asarray([1.0, 2.0]), variance_2=jnp.asarray([4.0, 9.0]))
    np.testing.assert_allclose(jax.jit(lambda u: u.threshold_2(2.0, window=5))(stats), [5, 8])


KNOWN = LossStats(count=jnp.asarray(5), mean_2=jnp.asarray([1.0, 2.0]), variance_2=jnp.asarray([4.0, 9.0]))
STRICT = {"window": 5, "clip_deviations": 1.0, "spike_deviations": 2.0}  # a norm over 5, a spike over (5, 8)


@pytest.mark.parametrize(
    ("changed", "loss", "norm", "skips", "apply", "spiked", "scale", "observed_2"),
    [
        ({}, 4.0, 2.0, 0, True, False, 1.0, [4.0, 2.0]),
        ({}, 4.0, 6.0, 0, True, False, 5 / 6, [4.0, 6.0]),
        ({}, 9.0, 2.0, 0, True, True, 1.0, [5.0, 2.0]),
        ({"on_spike": "skip"}, 4.0, 10.0, 0, False, True, 0.5, [4.0, 8.0]),
        ({}, np.nan, 2.0, 0, False, False, 1.0, None),
        ({}, 4.0, np.inf, 0, False, False, 0.0, None),
        ({}, 4.0, 2.0, 10, False, False, 1.0, [4.0, 2.0]),
        ({"spike_deviations": None, "clip_deviations": None}, 99.0, 99.0, 9, True, False, 1.0, [99.0, 99.0]),
    ],
)
def test_the_verdict_on_a_step(changed, loss, norm, skips, apply, spiked, scale, observed_2):
    config = dataclasses.replace(ONLY_FINITE, **{**STRICT, **changed})
    verdict = judge(config, KNOWN, jnp.asarray(skips), loss=jnp.float32(loss), gradient_norm=jnp.float32(norm))
    assert (bool(verdict.apply), bool(verdict.spiked)) == (apply, spiked)
    assert float(verdict.clip_scale) == pytest.approx(scale)
    if observed_2 is not None:
        expected = KNOWN.after(jnp.asarray(observed_2), window=5)
        jax.tree.map(np.testing.assert_array_equal, verdict.stats, expected)


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
