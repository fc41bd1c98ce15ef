"""Norms against their definitions in float64, and that statistics are float32 whatever comes in."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_jax.nn.norm import LayerNorm, RMSNorm, layer_norm

DIM = 8


def slow_layer_norm(x, eps=1e-6):
    x = np.asarray(x, np.float64)
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)


def slow_rms_norm(x, eps=1e-6):
    x = np.asarray(x, np.float64)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


def values(seed=0, *, scale=1.0, offset=0.0):
    return (offset + scale * np.random.default_rng(seed).normal(size=(3, DIM))).astype(np.float32)


@settings(deadline=None, max_examples=25)
@given(scale=st.sampled_from([1e-3, 1.0, 1e4]), offset=st.sampled_from([0.0, 5.0]), seed=st.integers(0, 9))
def test_norms_match_their_definition(scale, offset, seed):
    x = values(seed, scale=scale, offset=offset * scale)
    np.testing.assert_allclose(layer_norm(jnp.asarray(x)), slow_layer_norm(x), atol=2e-5)
    np.testing.assert_allclose(RMSNorm(DIM)(jnp.asarray(x)), slow_rms_norm(x), atol=2e-5)


def test_learned_scale_and_offset_are_applied():
    x = values(1)
    rms, full = RMSNorm(DIM), LayerNorm(DIM)
    gain, offset = jnp.arange(1.0, DIM + 1), jnp.linspace(-1, 1, DIM)
    rms.scale.set_value(gain)
    full.scale.set_value(gain)
    full.bias.set_value(offset)
    np.testing.assert_allclose(rms(jnp.asarray(x)), slow_rms_norm(x) * gain, atol=1e-4)
    np.testing.assert_allclose(full(jnp.asarray(x)), slow_layer_norm(x) * gain + offset, atol=1e-4)


@pytest.mark.parametrize("norm", [layer_norm, LayerNorm(DIM), RMSNorm(DIM)])
def test_a_constant_or_zero_position_stays_finite(norm):
    for x in (np.zeros((1, DIM), np.float32), np.full((1, DIM), 7.0, np.float32)):
        assert np.isfinite(norm(jnp.asarray(x))).all()


def test_statistics_of_bfloat16_are_float32():
    # Around 100 bfloat16 steps by 0.5: sums in it would lose most of the spread.
    x = jnp.asarray(values(2, scale=2.0, offset=100.0), jnp.bfloat16)
    assert layer_norm(x).dtype == jnp.float32
    np.testing.assert_allclose(layer_norm(x), slow_layer_norm(x), atol=1e-4)
    for norm, slow in ((LayerNorm(DIM), slow_layer_norm), (RMSNorm(DIM), slow_rms_norm)):
        found = norm(x)
        assert found.dtype == jnp.bfloat16
        np.testing.assert_array_equal(found, jnp.asarray(slow(x), jnp.float32).astype(jnp.bfloat16))
