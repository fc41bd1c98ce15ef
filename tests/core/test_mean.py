"""Means as (sum, weight): cutting a sample into parts changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sora_jax.core.mean import Mean, values_and_weights, weight_name

VALUES = st.lists(st.tuples(st.integers(-8, 8), st.integers(0, 3)), min_size=1, max_size=12)


@given(VALUES, st.integers(0, 12))
def test_a_merged_mean_is_the_mean_of_the_whole(pairs, cut):
    values, weights = np.array(pairs, np.float32).T
    parts = [Mean.of(jnp.asarray(values[s]), jnp.asarray(weights[s])) for s in (slice(cut), slice(cut, None))]
    expected = np.sum(values * weights) / np.sum(weights) if weights.any() else 0.0
    np.testing.assert_allclose(parts[0].merge(parts[1]).value(), expected, rtol=1e-6)


def test_weights_broadcast_and_default_to_one():
    values = jnp.arange(6.0).reshape(2, 3)
    assert Mean.of(values).value() == 2.5
    assert Mean.of(values, jnp.array([[1.0], [0.0]])).value() == 1.0
    assert Mean.of(values, jnp.array([[1.0], [0.0]])).weight == 3


def test_nothing_weighed_is_zero_with_a_finite_gradient():
    def value(x):
        return Mean.of(x, jnp.zeros(3)).value()

    assert value(jnp.ones(3)) == 0
    np.testing.assert_array_equal(jax.grad(value)(jnp.ones(3)), np.zeros(3))


def test_sums_are_float32_whatever_comes_in():
    mean = Mean.of(jnp.full(2048, 1.0, jnp.bfloat16))
    assert mean.sum.dtype == jnp.float32
    assert mean.sum == 2048, "bfloat16 would have stopped at 256"


def test_means_by_name_come_with_their_weights():
    found = values_and_weights(
        {"loss": Mean.of(jnp.array([1.0, 4.0]), jnp.array([2.0, 1.0])), "none": Mean.of(jnp.zeros(0))}
    )
    assert found == {"loss": 2, weight_name("loss"): 3, "none": 0, weight_name("none"): 0}
