"""Stacked blocks: a scan equals a loop over the blocks, and what is rematerialised changes no number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sora_jax.core.rng import Rngs
from sora_jax.core.tree import merge_model, split_model
from sora_jax.nn.linear import Linear
from sora_jax.nn.stack import REMAT_POLICIES, scan_blocks, stack_blocks

DIM, DEPTH = 6, 3


class Residual(nnx.Module):
    def __init__(self, *, rngs):
        self.inner = Linear(DIM, 2 * DIM, axes=("embed", "mlp"), rngs=rngs)
        self.outer = Linear(2 * DIM, DIM, axes=("mlp", "embed"), rngs=rngs)

    def __call__(self, x):
        return x + jnp.sin(self.outer(jnp.tanh(self.inner(x))))


@pytest.fixture(scope="module")
def stacked():
    """Returns (structure, parameters, axes) of a stack."""
    return split_model(stack_blocks(lambda r: Residual(rngs=r), DEPTH, Rngs(0)))


X = jnp.asarray(np.random.default_rng(0).normal(size=(2, DIM)), jnp.float32)


def run(structure, params, remat):
    def loss(params, x):
        y = scan_blocks(merge_model(structure, params), x, lambda block, x: block(x), remat=remat)
        return jnp.sum(jnp.square(y)), y

    (_, y), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, X)
    return y, gradients


def test_parameters_have_a_leading_layers_axis(stacked):
    _, params, axes = stacked
    assert {name: value.shape for name, value in params.items()} == {
        "inner.kernel": (DEPTH, DIM, 2 * DIM),
        "inner.bias": (DEPTH, 2 * DIM),
        "outer.kernel": (DEPTH, 2 * DIM, DIM),
        "outer.bias": (DEPTH, DIM),
    }
    assert axes["inner.kernel"] == ("layers", "embed", "mlp")
    assert axes["outer.bias"] == ("layers", "embed")


def test_layers_start_different(stacked):
    kernels = stacked[1]["inner.kernel"]
    for i in range(DEPTH):
        for j in range(i):
            assert np.abs(kernels[i] - kernels[j]).min() > 0


def test_a_scan_is_a_loop_in_order(stacked):
    structure, params, _ = stacked

    def loop(params, x, order):
        for i in order:
            x = merge_model(structure, {name: value[i] for name, value in params.items()})(x)
        return x

    found, gradients = run(structure, params, "none")
    np.testing.assert_allclose(found, loop(params, X, range(DEPTH)), atol=1e-6)
    assert np.abs(found - loop(params, X, reversed(range(DEPTH)))).max() > 1e-3
    expected = jax.grad(lambda params: jnp.sum(jnp.square(loop(params, X, range(DEPTH)))))(params)
    for name, gradient in expected.items():
        np.testing.assert_allclose(gradients[name], gradient, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("remat", sorted(set(REMAT_POLICIES) - {"none"}))
def test_rematerialisation_changes_no_number(stacked, remat):
    structure, params, _ = stacked
    (expected, expected_gradients), (found, gradients) = (run(structure, params, name) for name in ("none", remat))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    for name, gradient in expected_gradients.items():
        np.testing.assert_allclose(gradients[name], gradient, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("remat", sorted(REMAT_POLICIES))
def test_the_policy_decides_what_the_backward_pass_keeps(stacked, remat):
    structure, params, _ = stacked

    def forward(params):
        return scan_blocks(merge_model(structure, params), X, lambda block, x: block(x), remat=remat)

    _, backward = jax.vjp(forward, params)
    kept = [x.shape for x in jax.tree.leaves(backward) if hasattr(x, "shape")]
    # Of each layer: the hidden activations (2 DIM wide) are kept unless all is recomputed.
    hidden = kept.count((DEPTH, 2, 2 * DIM))
    assert hidden == 0 if remat in ("attention", "full", "offload") else hidden > 0
    on_host = [x.shape for x in jax.tree.leaves(backward) if "<host>" in str(jax.typeof(x))]
    assert on_host == ([(DEPTH, *X.shape)] if remat == "offload" else [])
