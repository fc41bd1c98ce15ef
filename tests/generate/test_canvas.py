"""Canvases: noise of their seed alone, and each one's place in the packs."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_jax.core.errors import UserError
from sora_jax.data.captions import tokenize
from sora_jax.data.packing import Budget
from sora_jax.data.packs import PackLayout
from sora_jax.generate.canvas import Canvas, lay_out

LAYOUT = PackLayout(
    budget=Budget(tokens=12, text_tokens=8, segments=3),
    patch=(1, 2, 1),
    channels=3,
    temporal_stride=4,
    time_rate=2.0,
)
WIDTH = 6
CANVAS = Canvas(prompt="a red circle", grid=(2, 2, 2), fps=8.0, seed=3)
CANVASES = st.builds(
    Canvas,
    prompt=st.sampled_from(["", "red", "a blue square", "extraordinarily"]),
    grid=st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 2)),
    fps=st.sampled_from([4.0, 24.0]),
    seed=st.integers(0, 2**32 - 1),
)


def test_noise_depends_on_the_seed_alone():
    noise = CANVAS.noise(WIDTH)
    assert noise.shape == (8, WIDTH)
    assert noise.dtype == np.float32
    other = dataclasses.replace(CANVAS, prompt="something else", fps=30.0)
    np.testing.assert_array_equal(other.noise(WIDTH), noise)
    assert not np.any(dataclasses.replace(CANVAS, seed=4).noise(WIDTH) == noise)


def test_noise_is_standard_normal():
    noise = dataclasses.replace(CANVAS, grid=(5, 40, 40)).noise(4)
    assert abs(noise.mean()) < 0.03
    assert abs(noise.std() - 1) < 0.03
    assert abs((np.abs(noise) < 1).mean() - 0.683) < 0.02


@settings(max_examples=15)
@given(st.lists(CANVASES, min_size=1, max_size=12), st.integers(1, 3))
def test_each_canvas_lies_where_its_placement_says(canvases, rows):
    packs, places = lay_out(canvases, LAYOUT, rows=rows)
    taken = set()
    for index, (canvas, place) in enumerate(zip(canvases, places, strict=True)):
        row = {name: array[place.row] for name, array in packs[place.batch].items()}
        np.testing.assert_array_equal(row["tokens_BLP"][place.tokens], canvas.noise(WIDTH))
        (slot,) = np.flatnonzero(row["sample_BS"] == index)
        assert tuple(row["grid_BS3"][slot]) == canvas.grid
        assert row["time_step_BS"][slot] == pytest.approx(4 / canvas.fps * 2.0)
        mine = np.flatnonzero(row["segment_BL"] == slot + 1)
        np.testing.assert_array_equal(mine, np.arange(12)[place.tokens])
        text = row["text_BKQ"][row["text_segment_BK"] == slot + 1]
        np.testing.assert_array_equal(text, tokenize(canvas.prompt, max_tokens=8))
        taken |= {(place.batch, place.row, token) for token in mine.tolist()}
    assert len(taken) == sum(int(np.prod(canvas.grid)) for canvas in canvases)
    assert {pack["tokens_BLP"].shape for pack in packs} == {(rows, 12, WIDTH)}
    assert sum(int(np.sum(pack["sample_BS"] >= 0)) for pack in packs) == len(canvases)
    assert all((pack["sample_BS"] >= 0).any() for pack in packs), "no batch of padding alone"


def test_a_grid_that_fits_no_row_is_refused_with_both_numbers():
    with pytest.raises(UserError, match="request 1 cannot be sampled: 18 tokens do not fit a row of 12 tokens"):
        lay_out([CANVAS, dataclasses.replace(CANVAS, grid=(2, 3, 3))], LAYOUT, rows=2)


def test_a_prompt_that_fits_no_row_is_refused_with_both_numbers():
    prompt = "one two three four five six seven eight nine"
    with pytest.raises(UserError, match="request 0 cannot be sampled: 10 text tokens do not fit a row of 8 text"):
        lay_out([dataclasses.replace(CANVAS, prompt=prompt), CANVAS], LAYOUT, rows=2)
