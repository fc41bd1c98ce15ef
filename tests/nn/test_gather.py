"""Every way to read a table by token gives the same entries, and gradients that many tokens do not saturate."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.nn import gather


@pytest.mark.parametrize("way", ["gather_by_product", "gather_by_index"])
def test_every_way_gathers_the_same_and_adds_up_the_same_gradients(way):
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.normal(size=(2, 6, 8)), jnp.float32)
    level = jnp.asarray(rng.integers(0, 6, size=(2, 20)), jnp.int32)
    weights = rng.normal(size=(2, 20, 8)).astype(np.float32)

    def loss(gather, table):
        return jnp.sum(gather(table, level) * weights)

    other = getattr(gather, way)
    np.testing.assert_array_equal(other(table, level), gather.gather_level(table, level))
    expected, found = (jax.grad(functools.partial(loss, f))(table) for f in (gather.gather_level, other))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", ["gather_level", "gather_by_product", "gather_by_index"])
def test_gradients_of_many_tokens_are_added_up_in_float32(way):
    gather_level = getattr(gather, way)
    level = jnp.zeros((1, 4096), jnp.int32)
    ones = jax.grad(lambda table: jnp.sum(gather_level(table, level).astype(jnp.float32)))
    # bfloat16 stops counting at 256.
    np.testing.assert_array_equal(ones(jnp.zeros((1, 2, 1), jnp.bfloat16))[0, :, 0], [4096, 0])
