"""The layout of rows against a slow reference that goes token by token."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_jax.data.captions import tokenize
from sora_jax.data.packing import Budget
from sora_jax.data.packs import PackLayout, stack_rows

LAYOUT = PackLayout(
    budget=Budget(tokens=36, text_tokens=15, segments=4),
    patch=(1, 2, 3),
    channels=2,
    temporal_stride=4,
    time_rate=3.0,
)
WIDTH = 1 * 2 * 3 * 2
SHAPES = {
    "tokens_BLP": ((36, WIDTH), np.float32),
    "position_BL3": ((36, 3), np.float32),
    "segment_BL": ((36,), np.int32),
    "text_BKQ": ((15, 8), np.int32),
    "text_segment_BK": ((15,), np.int32),
    "text_position_BK": ((15,), np.int32),
    "grid_BS3": ((4, 3), np.int32),
    "time_step_BS": ((4,), np.float32),
    "sample_BS": ((4,), np.int32),
}
CLIPS = st.lists(
    st.tuples(
        st.integers(0, 10**6),
        st.tuples(*[st.integers(1, 3), st.integers(1, 3), st.integers(1, 1)]),
        st.sampled_from([4.0, 8.0, 23.976, 30.0]),
        st.sampled_from(["", "red", "a blue square", "extraordinary"]),
        st.booleans(),
    ),
    max_size=3,
)


def random_tokens(grid, seed=0):
    return np.random.default_rng(seed).normal(size=(int(np.prod(grid)), WIDTH)).astype(np.float32)


def slow_row(clips):
    """Returns the arrays of a row, written one token at a time."""
    row = {name: np.zeros(shape, dtype) for name, (shape, dtype) in SHAPES.items()}
    row["sample_BS"] -= 1
    at, text_at = 0, 0
    for slot, (sample, (t, h, w), fps, caption, given_tokens) in enumerate(clips):
        tokens = random_tokens((t, h, w))
        row["grid_BS3"][slot] = [t, h, w]
        row["sample_BS"][slot] = sample
        row["time_step_BS"][slot] = 4 / fps * 3.0
        for i in range(t):
            for j in range(h):
                for k in range(w):
                    seconds = i * 4 / fps
                    row["position_BL3"][at] = [seconds * 3.0, j, k]
                    row["segment_BL"][at] = slot + 1
                    if given_tokens:
                        row["tokens_BLP"][at] = tokens[(i * h + j) * w + k]
                    at += 1
        for place, token in enumerate(tokenize(caption, max_tokens=99)):
            row["text_BKQ"][text_at] = token
            row["text_segment_BK"][text_at] = slot + 1
            row["text_position_BK"][text_at] = place
            text_at += 1
    return row


def fill(clips):
    row, places = LAYOUT.row(), []
    for sample, grid, fps, caption, given_tokens in clips:
        tokens = random_tokens(grid) if given_tokens else None
        places.append(row.put(sample=sample, grid=grid, fps=fps, caption=caption, tokens_LP=tokens))
    return row, places


@settings(max_examples=40)
@given(CLIPS)
def test_a_row_is_that_of_the_slow_reference(clips):
    row, places = fill(clips)
    expected = slow_row(clips)
    assert row.arrays.keys() == SHAPES.keys()
    for name, (shape, dtype) in SHAPES.items():
        assert row.arrays[name].shape == shape, name
        assert row.arrays[name].dtype == dtype, name
        np.testing.assert_allclose(row.arrays[name], expected[name], rtol=1e-6, err_msg=name)
    for slot, place in enumerate(places):
        np.testing.assert_array_equal(np.arange(36)[place], np.flatnonzero(expected["segment_BL"] == slot + 1))


@given(st.lists(CLIPS, min_size=1, max_size=3))
@settings(max_examples=10)
def test_a_pack_is_its_rows_batch_first(rows):
    pack = stack_rows([fill(clips)[0] for clips in rows])
    for name, (shape, dtype) in SHAPES.items():
        assert pack[name].shape == (len(rows), *shape)
        assert pack[name].dtype == dtype
        for number, clips in enumerate(rows):
            np.testing.assert_array_equal(pack[name][number], fill(clips)[0].arrays[name])


def test_rows_do_not_share_arrays():
    first, second = LAYOUT.row(), LAYOUT.row()
    first.put(sample=1, grid=(1, 1, 1), fps=8.0, caption="red", tokens_LP=np.ones((1, WIDTH), np.float32))
    assert not second.arrays["tokens_BLP"].any()
    assert (second.arrays["sample_BS"] == -1).all()


def test_a_clip_that_does_not_fit_is_a_mistake_of_the_plan():
    row = LAYOUT.row()
    row.put(sample=0, grid=(3, 3, 3), fps=8.0, caption="one two three four five six seven", tokens_LP=None)
    with pytest.raises(AssertionError):
        row.put(sample=1, grid=(1, 5, 2), fps=8.0, caption="", tokens_LP=None)
    with pytest.raises(AssertionError):
        row.put(sample=1, grid=(1, 1, 1), fps=8.0, caption="one two three four five six seven", tokens_LP=None)
