"""Attention over packed rows against a slow loop over single queries, and that nothing passes between segments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_jax.nn import attention

L, M, N, H = 14, 11, 2, 4


def slow_attend(*arrays):
    """Returns the definition, one query of one head at a time, in float64."""
    query_BLNH, key_BMNH, value_BMNH = (np.asarray(x, np.float64) for x in arrays[:3])
    query_segment_BL, key_segment_BM = arrays[3:]
    mixed = np.zeros_like(query_BLNH)
    for row, position, head in np.ndindex(*query_BLNH.shape[:3]):
        segment = query_segment_BL[row, position]
        seen = np.flatnonzero((key_segment_BM[row] == segment) & (segment > 0))
        if len(seen):
            scores = key_BMNH[row, seen, head] @ query_BLNH[row, position, head] / np.sqrt(query_BLNH.shape[-1])
            weights = np.exp(scores - scores.max())
            mixed[row, position, head] = weights @ value_BMNH[row, seen, head] / weights.sum()
    return mixed


def row_of(lengths, total):
    """Returns the segment ids of one row, padded with 0; a length of 0 skips an id."""
    ids = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    return np.pad(ids, (0, total - len(ids))).astype(np.int32)


def inputs(seed=0, *, rows=1, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = ((rows, L, N, H), (rows, M, N, H), (rows, M, N, H))
    return [scale * rng.normal(size=shape).astype(np.float32) for shape in shapes]


QUERY_SEGMENT = np.stack([row_of([5, 1, 4], L), row_of([3, 8], L)])
# Segment 2 of the first row has queries and no keys; segment 3 of the second has keys and no queries.
KEY_SEGMENT = np.stack([row_of([3, 0, 6], M), row_of([1, 4, 2], M)])

compiled = jax.jit(attention.attend)


def attend(*arrays):
    return compiled(*[jnp.asarray(x) for x in arrays])


@settings(deadline=None, max_examples=30)
@given(
    queries=st.lists(st.integers(0, 5), max_size=3).filter(lambda x: sum(x) <= L),
    keys=st.lists(st.integers(0, 4), max_size=3).filter(lambda x: sum(x) <= M),
    order=st.randoms(use_true_random=False),
    scale=st.sampled_from([1.0, 30.0]),
)
def test_matches_a_slow_loop(queries, keys, order, scale):
    query_segment_L = list(row_of(queries, L))
    order.shuffle(query_segment_L)  # no order of ids is assumed
    segments = np.array([query_segment_L], np.int32), row_of(keys, M)[None]
    arrays = inputs(len(queries), scale=scale)
    np.testing.assert_allclose(
        attend(*arrays, *segments), slow_attend(*arrays, *segments), rtol=1e-4, atol=1e-4 * scale
    )


def test_rows_do_not_mix():
    arrays = inputs(3, rows=2)
    expected = slow_attend(*arrays, QUERY_SEGMENT, KEY_SEGMENT)
    np.testing.assert_allclose(attend(*arrays, QUERY_SEGMENT, KEY_SEGMENT), expected, rtol=1e-5, atol=1e-5)


def test_a_query_without_keys_gives_zeros_and_finite_gradients():
    arrays = inputs(1, rows=2)
    mixed = np.asarray(attend(*arrays, QUERY_SEGMENT, KEY_SEGMENT))
    assert QUERY_SEGMENT[0, 5] == 2
    assert not (KEY_SEGMENT[0] == 2).any()
    np.testing.assert_array_equal(mixed[0, 5], 0)
    np.testing.assert_array_equal(mixed[QUERY_SEGMENT == 0], 0)
    assert (mixed[0, :5] != 0).all()

    def loss(*arrays):
        return jnp.sum(jnp.sin(attend(*arrays, QUERY_SEGMENT, KEY_SEGMENT)))

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*arrays)
    for gradient in gradients:
        assert np.isfinite(gradient).all()
        assert np.any(gradient)
    np.testing.assert_array_equal(gradients[0][0, 5], 0)
    for gradient in gradients[1:]:  # padding, and keys that no query asks for
        np.testing.assert_array_equal(gradient[KEY_SEGMENT == 0], 0)
        np.testing.assert_array_equal(gradient[1][KEY_SEGMENT[1] == 3], 0)


@pytest.mark.parametrize("changed", [0, 1, 3])
def test_nothing_leaks_from_a_segment_or_from_padding(changed):
    arrays = inputs(2, rows=2)
    before = np.asarray(attend(*arrays, QUERY_SEGMENT, KEY_SEGMENT))
    query, key, value = (x.copy() for x in arrays)
    query[changed == QUERY_SEGMENT] += 7
    key[changed == KEY_SEGMENT] -= 50
    value[changed == KEY_SEGMENT] *= -1000
    after = np.asarray(attend(query, key, value, QUERY_SEGMENT, KEY_SEGMENT))
    elsewhere = changed != QUERY_SEGMENT
    np.testing.assert_array_equal(after[elsewhere], before[elsewhere])
    if changed:
        here = ~elsewhere & (QUERY_SEGMENT > 0)
        assert (after[here] != before[here]).all()


@pytest.mark.parametrize("chunk", [4, 7, 13])
def test_long_rows_in_chunks_are_the_same(monkeypatch, chunk):
    arrays, segments = inputs(4, rows=2), [jnp.asarray(QUERY_SEGMENT), jnp.asarray(KEY_SEGMENT)]

    def run():
        # A function of its own, since the size of a chunk is no argument that jit would see change.
        def both(*arrays):
            def loss(*arrays):
                mixed = attention.attend(*arrays, *segments)
                return jnp.sum(jnp.sin(mixed)), mixed

            return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(*arrays)

        text = str(jax.make_jaxpr(both)(*arrays))
        (_, mixed), gradients = jax.jit(both)(*arrays)
        return [mixed, *gradients], text

    whole, whole_text = run()
    monkeypatch.setattr(attention, "CHUNK", chunk)
    chunked, chunked_text = run()
    assert f"f32[2,{N},{L},{M}]" in whole_text
    assert f"f32[2,{N},{L},{M}]" not in chunked_text
    for a, b in zip(chunked, whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_bfloat16_keeps_its_dtype_and_scores_in_float32():
    # Scores near 300 differ by less than bfloat16 could tell apart there.
    query = jnp.full((1, 1, 1, 4), 12.0, jnp.bfloat16)
    key = jnp.array([[[[12.0] * 4]], [[[12.0, 12.0, 12.0, 12.0625]]]], jnp.bfloat16).reshape(1, 2, 1, 4)
    value = jnp.array([0.0, 1.0], jnp.bfloat16)[None, :, None, None] * jnp.ones((1, 2, 1, 4), jnp.bfloat16)
    ones = np.ones((1, 2), np.int32)
    mixed = attend(query, key, value, ones[:, :1], ones)
    assert mixed.dtype == jnp.bfloat16
    expected = slow_attend(query, key, value, ones[:, :1], ones)
    assert expected.min() > 0.55
    np.testing.assert_allclose(np.asarray(mixed, np.float32), expected, atol=0.01)
