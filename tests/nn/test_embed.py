"""Sinusoids against a loop over single frequencies."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.nn.embed import sinusoid


@pytest.mark.parametrize("max_period", [10_000.0, 1_000.0])
def test_matches_a_slow_loop(max_period):
    x = np.array([[0.0, 0.5, 3.0], [17.25, 500.0, 999.0]], np.float32)
    expected = np.zeros((2, 3, 8))
    for index in np.ndindex(*x.shape):
        for i in range(4):
            angle = float(x[index]) * max_period ** (-i / 4)
            expected[index][i], expected[index][4 + i] = math.cos(angle), math.sin(angle)
    np.testing.assert_allclose(sinusoid(jnp.asarray(x), 8, max_period=max_period), expected, atol=2e-4)


def test_features_are_float32_from_any_dtype():
    whole = jnp.arange(5)
    for x in (whole, whole.astype(jnp.bfloat16)):
        found = sinusoid(x, 6)
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, sinusoid(whole.astype(jnp.float32), 6))


def test_neighbouring_noise_levels_are_told_apart():
    levels = np.linspace(0, 1000, 1001, dtype=np.float32)
    features = np.asarray(sinusoid(jnp.asarray(levels), 32))
    assert np.linalg.norm(np.diff(features, axis=0), axis=-1).min() > 0.1
