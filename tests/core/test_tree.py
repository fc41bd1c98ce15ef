"""A module as structure and named arrays, and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sora_jax.core import tree
from sora_jax.core.rng import Rngs
from sora_jax.nn.linear import Linear


class Pair(nnx.Module):
    def __init__(self, *, rngs):
        self.layers = nnx.List([Linear(2, 3, axes=("embed", "mlp"), rngs=rngs) for _ in range(11)])
        self.scale = nnx.Param(jnp.ones(3), axes=("norm",))

    def __call__(self, x):
        return sum(layer(x) * (i + 1) for i, layer in enumerate(self.layers)) * self.scale[...]


def build(key):
    return Pair(rngs=Rngs(key))


def test_split_and_merge_are_inverses():
    model, x = build(jax.random.key(3)), jnp.array([[1.0, -2.0]])
    structure, params, axes = tree.split_model(model)
    assert {"scale", "layers.0.kernel", "layers.10.bias"} <= params.keys()
    assert axes["layers.10.kernel"] == ("embed", "mlp")
    np.testing.assert_array_equal(tree.merge_model(structure, params)(x), model(x))
    again = tree.split_model(tree.merge_model(structure, params))[1]
    assert again.keys() == params.keys()
    for name in params:
        np.testing.assert_array_equal(again[name], params[name])


def test_parameters_keep_their_layer_beyond_ten():
    structure, params, _ = tree.split_model(build(jax.random.key(0)))
    x, zeros = jnp.ones((1, 2)), jax.tree.map(jnp.zeros_like, params)
    only = zeros | {"scale": jnp.ones(3), "layers.10.kernel": jnp.ones((2, 3))}
    np.testing.assert_allclose(tree.merge_model(structure, only)(x), 22.0)


def test_an_abstract_model_has_the_names_and_shapes_and_computes_nothing():
    structure, shapes, axes = tree.abstract_model(build)
    params = tree.init_params(build, jax.random.key(0))
    assert {n: (s.shape, s.dtype) for n, s in shapes.items()} == {n: (p.shape, p.dtype) for n, p in params.items()}
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in shapes.values())
    assert axes.keys() == params.keys()
    assert tree.count_parameters(shapes) == tree.count_parameters(params) == 11 * (2 * 3 + 3) + 3
    assert tree.merge_model(structure, params)(jnp.ones((1, 2))).shape == (1, 3)


def test_initial_values_are_a_function_of_the_key():
    first, same, other = (tree.init_params(build, jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first["layers.3.kernel"], same["layers.3.kernel"])
    assert not np.array_equal(first["layers.3.kernel"], other["layers.3.kernel"])
    assert not np.array_equal(first["layers.3.kernel"], first["layers.4.kernel"])


class Hidden(nnx.Module):
    def __init__(self, variable):
        self.variable = variable


@pytest.mark.parametrize(
    ("variable", "error"),
    [
        (lambda: nnx.BatchStat(jnp.ones(2)), AssertionError),
        (lambda: nnx.Rngs(0), AssertionError),
        (lambda: nnx.Param(jnp.ones(2)), KeyError),
        (lambda: nnx.Param(jnp.ones((2, 2)), axes=("embed",)), AssertionError),
    ],
    ids=["statistics", "randomness", "no axes", "too few axes"],
)
def test_hidden_state_and_unnamed_axes_are_refused(variable, error):
    with pytest.raises(error):
        tree.split_model(Hidden(variable()))
