"""The linear map: its arithmetic, its initial values and the axes that its parameters carry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.core.rng import Rngs
from sora_jax.core.tree import merge_model, split_model
from sora_jax.nn.linear import Linear, truncated_normal


def make(in_dim=6, out_dim=4, **options):
    return Linear(in_dim, out_dim, axes=("embed", "heads"), rngs=Rngs(0), **options)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_maps_the_last_dimension(lead):
    linear = make()
    linear.bias.set_value(jnp.arange(4.0))
    x = np.random.default_rng(0).normal(size=(*lead, 6)).astype(np.float32)
    expected = np.einsum("...i,io->...o", x, np.asarray(linear.kernel[...])) + np.arange(4.0)
    np.testing.assert_allclose(linear(jnp.asarray(x)), expected, atol=1e-5)


@pytest.mark.parametrize("lead", [(), (1,), (3,), (1, 3), (2, 3)])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.03)])
def test_its_gradient_is_that_of_the_product(lead, dtype, tolerance):
    generator = np.random.default_rng(0)
    x, wanted = (jnp.asarray(generator.normal(size=(*lead, width)), dtype) for width in (6, 4))
    structure, params, _ = split_model(make())

    def derived(params, x):
        return x @ params["kernel"].astype(x.dtype) + params["bias"].astype(x.dtype)

    def gradients(call):
        def loss(params, x):
            return jnp.sum((call(params, x) * wanted).astype(jnp.float32))

        return jax.grad(loss, argnums=(0, 1))(params, x)

    found = gradients(lambda params, x: merge_model(structure, params)(x))
    for ours, expected in zip(jax.tree.leaves(found), jax.tree.leaves(gradients(derived)), strict=True):
        assert (ours.dtype, ours.shape) == (expected.dtype, expected.shape)
        np.testing.assert_allclose(ours.astype(np.float32), expected.astype(np.float32), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_heads_are_the_output_split_and_the_input_joined(dtype):
    generator = np.random.default_rng(1)
    structure, params, _ = split_model(make(6, 8))
    x = jnp.asarray(generator.normal(size=(2, 3, 6)), dtype)

    def results(call, x):
        def loss(params, x):
            y = call(merge_model(structure, params), x)
            return jnp.sum(jnp.sin(y.astype(jnp.float32))), y

        (_, y), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)
        return [y, *jax.tree.leaves(gradients)]

    whole = results(lambda linear, x: linear(x), x)
    split = results(lambda linear, x: linear.to_heads(x, 2).reshape(2, 3, 8), x)
    joined = results(lambda linear, x: linear.from_heads(x.reshape(2, 3, 2, 3)), x)
    for a, b, c in zip(whole, split, joined, strict=True):
        assert a.shape == b.shape == c.shape
        np.testing.assert_allclose(b.astype(np.float32), a.astype(np.float32), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(c.astype(np.float32), a.astype(np.float32), rtol=1e-5, atol=1e-5)


def test_computes_in_the_dtype_of_its_input_and_keeps_float32_parameters():
    linear = make()
    assert linear(jnp.ones((2, 6), jnp.bfloat16)).dtype == jnp.bfloat16
    _, params, axes = split_model(linear)
    assert {value.dtype for value in params.values()} == {jnp.dtype(jnp.float32)}
    assert axes == {"kernel": ("embed", "heads"), "bias": ("heads",)}


@pytest.mark.parametrize(("std", "expected"), [(None, 1 / 20), (0.3, 0.3), (0.0, 0.0)])
def test_initial_values_have_the_stated_deviation(std, expected):
    linear = make(400, 200, std=std)
    np.testing.assert_allclose(np.std(linear.kernel[...]), expected, rtol=0.02)
    np.testing.assert_array_equal(linear.bias[...], 0)


def test_truncated_normal_has_no_tail():
    x = np.asarray(truncated_normal(jax.random.key(0), (100_000,), 0.5))
    np.testing.assert_allclose([x.mean(), x.std()], [0, 0.5], atol=5e-3)
    assert np.abs(x).max() <= 2 * 0.5 / 0.87962566 + 1e-6
