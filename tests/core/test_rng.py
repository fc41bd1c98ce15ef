"""Randomness by name: a pure function of seed, name and numbers."""

import jax
import numpy as np
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from sora_jax.core import rng

NAMES = st.tuples(st.integers(0, 2**31 - 1), st.sampled_from(["noise", "crops", "x"]), st.integers(0, 2**31 - 1))


@given(NAMES, NAMES)
def test_generators_agree_exactly_when_their_names_do(first, second):
    draws = [rng.generator(*name).integers(0, 2**63, size=4).tolist() for name in (first, first, second)]
    assert draws[0] == draws[1]
    assert (draws[0] == draws[2]) == (first == second)


def test_keys_differ_in_seed_name_and_each_number():
    names = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 0), (0, "a", 1), (0, "a", 0, 1), (0, "a", 1, 0)]
    data = {tuple(jax.random.key_data(rng.key(*name)).tolist()) for name in names}
    assert len(data) == len(names)


def test_a_key_is_the_same_inside_jit_and_for_a_traced_number():
    inside = jax.jit(lambda step: jax.random.key_data(rng.key(3, "noise", step)))(np.int32(7))
    np.testing.assert_array_equal(inside, jax.random.key_data(rng.key(3, "noise", 7)))


def test_keys_are_those_of_always():
    """Saved runs go on with the same noise only as long as these numbers stand."""
    assert jax.random.key_data(rng.key(0, "noise", 5)).tolist() == KEY
    assert rng.generator(0, "crops", 5).integers(0, 1000, size=3).tolist() == DRAWS


KEY = [2329057292, 3258714852]
DRAWS = [580, 212, 457]


def test_initial_values_have_the_keys_of_flax():
    theirs, ours, of_seed = nnx.Rngs(jax.random.key(7)), rng.Rngs(jax.random.key(7)), rng.Rngs(7)
    for _ in range(3):
        expected = jax.random.key_data(theirs.params())
        np.testing.assert_array_equal(jax.random.key_data(ours.params()), expected)
        np.testing.assert_array_equal(jax.random.key_data(of_seed.params()), expected)
