"""Canvases: their noise, and where they lie in rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_jax.core.errors import UserError
from sora_jax.data.packing import Budget
from sora_jax.data.packs import PackLayout
from sora_jax.generate.canvas import Canvas, lay_out

LAYOUT = PackLayout(
    budget=Budget(tokens=20, text_tokens=12, segments=4), patch=(1, 2, 2), channels=3, temporal_stride=4, time_rate=2.0
)


def canvas(grid=(2, 2, 2), *, prompt="red", seed=0, fps=8.0):
    return Canvas(prompt=prompt, grid=grid, fps=fps, seed=seed)


def test_noise_is_a_function_of_the_seed_and_the_size_alone():
    noise = canvas().noise(12)
    assert noise.shape == (8, 12)
    assert noise.dtype == np.float32
    np.testing.assert_array_equal(noise, canvas(prompt="blue", fps=3.0).noise(12))
    assert not np.array_equal(noise, canvas(seed=1).noise(12))
    large = canvas((8, 16, 16)).noise(12)
    assert abs(large.mean()) < 0.02
    assert abs(large.std() - 1) < 0.02


SIDES = st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3))


@given(st.lists(st.tuples(SIDES, st.integers(0, 8)), min_size=1, max_size=12), st.integers(1, 3))
def test_every_canvas_has_a_place_of_its_own_with_its_noise(wanted, rows):
    canvases = [canvas(grid, prompt="w " * words, seed=n) for n, (grid, words) in enumerate(wanted)]
    packs, places = lay_out(canvases, LAYOUT, rows=rows)
    taken = set()
    for number, (one, place) in enumerate(zip(canvases, places, strict=True)):
        pack = packs[place.batch]
        assert pack["segment_BL"].shape == (rows, 20), "every batch is full height, so one program serves all"
        spots = {(place.batch, place.row, token) for token in range(place.tokens.start, place.tokens.stop)}
        assert len(spots) == np.prod(one.grid)
        assert not spots & taken
        taken |= spots
        np.testing.assert_array_equal(pack["tokens_BLP"][place.row, place.tokens], one.noise(12))
        (segment,) = set(pack["segment_BL"][place.row, place.tokens].tolist())
        assert tuple(pack["grid_BS3"][place.row, segment - 1]) == one.grid
        assert pack["sample_BS"][place.row, segment - 1] == number
        text = pack["text_segment_BK"][place.row] == segment
        assert text.sum() == 1 + len(one.prompt.split())
    assert sum((pack["segment_BL"] > 0).sum() for pack in packs) == len(taken), "nothing else is there"


@pytest.mark.parametrize(("grid", "prompt"), [((3, 3, 3), "red"), ((1, 1, 1), "word " * 12)])
def test_what_fits_no_row_is_refused(grid, prompt):
    with pytest.raises(UserError, match="request 1 cannot be sampled"):
        lay_out([canvas(), canvas(grid, prompt=prompt)], LAYOUT, rows=2)
