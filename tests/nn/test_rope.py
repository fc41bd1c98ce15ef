"""Rotary embedding: lengths stay, scores depend on differences of position, each axis turns its own share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_jax.nn import rope

HEAD_DIM, THETA = 16, 100.0
coordinate = st.floats(-40, 40, allow_nan=False, width=32)
position = st.tuples(coordinate, coordinate, coordinate)


@jax.jit
def turn(x_LH, position_L3):
    turned = rope.rotate(x_LH[None, :, None], rope.rotations(position_L3[None], HEAD_DIM, THETA))
    return turned[0, :, 0]


def pair(seed=0):
    return np.random.default_rng(seed).normal(size=(2, HEAD_DIM)).astype(np.float32)


@pytest.mark.parametrize("head_dim", [2, 4, 6, 8, 12, 16, 64, 128])
def test_axis_dims_are_even_and_fill_the_head(head_dim):
    dims = rope.axis_dims(head_dim)
    assert sum(dims) == head_dim
    assert all(dim % 2 == 0 and dim >= 0 for dim in dims)
    assert dims[0] >= dims[1] == dims[2]


def test_matches_complex_numbers():
    x_LH, position_L3 = pair(), np.array([[3.5, 2, 1], [0.25, 7, 11]], np.float32)
    expected = []
    for x_H, place_3 in zip(x_LH, position_L3, strict=True):
        start, parts = 0, []
        for axis, dim in enumerate(rope.axis_dims(HEAD_DIM)):
            for i in range(dim // 2):
                # Interleaved: neighbours are the real and the imaginary part of one number.
                number = complex(x_H[start + 2 * i], x_H[start + 2 * i + 1])
                turned = number * np.exp(1j * place_3[axis] * THETA ** (-2 * i / dim))
                parts += [turned.real, turned.imag]
            start += dim
        expected.append(parts)
    np.testing.assert_allclose(turn(x_LH, position_L3), expected, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(a=position, b=position, shift=position)
def test_scores_depend_on_differences_and_norms_stay(a, b, shift):
    x_LH = pair(1)
    here = np.array([a, b], np.float32)
    near, far = np.asarray(turn(x_LH, here)), np.asarray(turn(x_LH, here + np.array(shift, np.float32)))
    np.testing.assert_allclose(near[0] @ near[1], far[0] @ far[1], atol=2e-4)
    np.testing.assert_allclose(np.linalg.norm(near, axis=-1), np.linalg.norm(x_LH, axis=-1), rtol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_each_axis_turns_its_own_dimensions(axis):
    x_LH = pair(2)
    position_L3 = np.zeros((2, 3), np.float32)
    position_L3[:, axis] = 1.5
    dims = rope.axis_dims(HEAD_DIM)
    start = sum(dims[:axis])
    own = np.zeros(HEAD_DIM, bool)
    own[start : start + dims[axis]] = True
    moved = np.asarray(turn(x_LH, position_L3)) != x_LH
    assert moved[:, own].all()
    assert not moved[:, ~own].any()


def test_bfloat16_is_turned_in_float32():
    x_LH = jnp.asarray(pair(3), jnp.bfloat16)
    position_L3 = np.array([[100.0, 31, 57], [257.0, 90, 3]], np.float32)
    found = turn(x_LH, position_L3)
    assert found.dtype == jnp.bfloat16
    exact = turn(x_LH.astype(jnp.float32), position_L3)
    np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16))


def test_a_gpu_turns_by_the_same_numbers_without_a_product(monkeypatch):
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.normal(size=(2, 5, 3, 16)), jnp.float32)
    rotation = rope.rotations(jnp.asarray(rng.normal(size=(2, 5, 3)), jnp.float32), 16, 100.0)
    expected = rope.rotate(x, rotation)
    monkeypatch.setattr(rope, "current_platform", lambda: "gpu")
    np.testing.assert_array_equal(rope.rotate(x, rotation), expected)
    assert "dot_general" not in str(jax.make_jaxpr(rope.rotate)(x, rotation))
