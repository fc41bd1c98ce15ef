"""A single row gives what it gives among others, without the dimension of rows inside."""

import jax.numpy as jnp
import numpy as np

from sora_jax.nn.single_row import by_token


def test_a_single_row_is_computed_without_its_dimension():
    seen = []

    def scaled(x, y):
        seen.append(x.shape)
        return x * jnp.sum(y, axis=-1, keepdims=True)

    x, y = (np.random.default_rng(seed).normal(size=(2, 3, 4)).astype(np.float32) for seed in (0, 1))
    both = by_token(scaled, jnp.asarray(x), jnp.asarray(y))
    alone = by_token(scaled, jnp.asarray(x[:1]), jnp.asarray(y[:1]))
    np.testing.assert_allclose(both[:1], alone, rtol=1e-6)
    assert (alone.shape, seen) == ((1, 3, 4), [(2, 3, 4), (3, 4)])
