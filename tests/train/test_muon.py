"""Muon against optax's: the same update, by either way of computing it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sora_jax.train.muon import of_kernel, orthogonalise, scale_by_muon

WHOLE = optax.contrib.MuonDimensionNumbers(0, 1)


def draw(*shape, seed=0, spread=1.0):
    """Matrices with singular values from 1 down to `spread`."""
    values = np.random.default_rng(seed).normal(size=shape)
    if spread < 1:
        left, strength, right = np.linalg.svd(values, full_matrices=False)
        strength = np.geomspace(1, spread, strength.shape[-1])
        values = (left * strength) @ right
    return jnp.asarray(values, jnp.float32)


@pytest.mark.parametrize("shape", [(4, 4), (4, 7), (4, 8), (8, 200), (64, 1728)])
@pytest.mark.parametrize("spread", [1.0, 1e-2, 1e-4])
def test_both_ways_give_the_polynomial_of_optax(shape, spread):
    matrix = draw(*shape, spread=spread)
    theirs = optax.contrib.scale_by_muon(ns_steps=4, beta=0.0, weight_dimension_numbers={"kernel": WHOLE})
    expected = jax.jit(theirs.update)({"kernel": matrix}, theirs.init({"kernel": matrix}))[0]["kernel"]
    got = jax.jit(orthogonalise)(matrix[None])[0]
    np.testing.assert_allclose(got, expected, atol=2e-4)


@pytest.mark.parametrize(("shape", "layers"), [((3, 5, 4), True), ((3, 3, 3, 4, 6), False), ((4, 32), False)])
def test_a_kernel_is_the_matrix_of_its_outputs(shape, layers):
    kernel = draw(*shape)
    update = np.asarray(jax.jit(functools.partial(of_kernel, layers=layers))(kernel))
    assert update.shape == shape
    for matrix in update if layers else update[None]:
        matrix = matrix.reshape(-1, shape[-1])
        values = np.linalg.svd(matrix, compute_uv=False) / (0.2 * np.sqrt(max(matrix.shape)))
        assert values.min() > 0.6
        assert values.max() < 1.3


def test_momentum_is_that_of_optax_once_it_has_settled():
    """Optax corrects its first moments for starting at zero, which a matrix made orthogonal does not feel for long."""
    gradients = [{"a.kernel": draw(4, 8, seed=seed)} for seed in range(60)]

    def last_update(way):
        update, state, got = jax.jit(way.update), way.init(gradients[0]), {}
        for gradient in gradients:
            got, state = update(gradient, state)
        return got["a.kernel"]

    ours = last_update(scale_by_muon({"a.kernel": (None, None)}, decay=0.9))
    theirs = optax.contrib.scale_by_muon(ns_steps=4, beta=0.9, weight_dimension_numbers={"a.kernel": WHOLE})
    np.testing.assert_allclose(ours, 0.2 * np.sqrt(8) * last_update(theirs), atol=2e-3)


def test_a_zero_gradient_gives_no_update():
    assert not np.any(jax.jit(functools.partial(of_kernel, layers=False))(jnp.zeros((3, 9))))
    assert np.all(np.isfinite(jax.jit(orthogonalise)(jnp.zeros((1, 2, 9)))))
