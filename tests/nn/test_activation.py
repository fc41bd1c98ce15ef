"""The nonlinearity: its numbers, and how little its gradient keeps."""

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.nn.activation import gelu


def test_value_and_gradient_are_those_of_the_tanh_approximation():
    x = np.linspace(-3, 3, 61)
    inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    slope = 0.5 * (1 + np.tanh(inner)) + 0.5 * x / np.cosh(inner) ** 2 * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)
    value, pull = jax.vjp(gelu, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(value, 0.5 * x * (1 + np.tanh(inner)), atol=1e-6)
    np.testing.assert_allclose(pull(jnp.ones(61))[0], slope, atol=1e-6)


def test_its_gradient_keeps_nothing_but_the_input():
    _, pull = jax.vjp(gelu, jnp.ones((8, 16)))
    kept = [leaf.shape for leaf in jax.tree.leaves(pull) if leaf.size > 1]
    assert kept == [(8, 16)]
