"""Canvases: their noise, and where they lie in rows."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_jax.core.errors import UserError
from sora_jax.data.packing.packs import PackLayout
from sora_jax.data.packing.plan import Budget
from sora_jax.data.tokens import BYTE_TOKENIZER
from sora_jax.generate.canvas import Canvas, Turn, lay_out
from sora_jax.video.patches import patchify

LAYOUT = PackLayout(
    budget=Budget(tokens=20, text_tokens=12, segments=4),
    patch=(1, 2, 2),
    channels=3,
    temporal_stride=4,
    time_rate=2.0,
    tokenizer=BYTE_TOKENIZER,
)


def canvas(grid=(2, 2, 2), *, prompt="red", seed=0, fps=8.0):
    return Canvas(prompt=prompt, grid=grid, fps=fps, seed=seed)


def test_windows_of_one_video_have_noise_of_their_own():
    assert not np.array_equal(canvas().noise(12), dataclasses.replace(canvas(), window=1).noise(12))


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
    batches, places = lay_out(canvases, LAYOUT, rows=rows)
    packs = [batch.pack for batch in batches]
    taken = set()
    for number, (one, place) in enumerate(zip(canvases, places, strict=True)):
        pack = packs[place.batch]
        assert pack["segment_BL"].shape == (rows, 20), "every batch is full height, so one program serves all"
        spots = {(place.batch, place.row, token) for token in range(place.tokens.start, place.tokens.stop)}
        assert len(spots) == np.prod(one.grid)
        assert not spots & taken
        taken |= spots
        np.testing.assert_array_equal(batches[place.batch].noise_BLP[place.row, place.tokens], one.noise(12))
        (segment,) = set(pack["segment_BL"][place.row, place.tokens].tolist())
        assert tuple(pack["grid_BS3"][place.row, segment - 1]) == one.grid
        assert pack["sample_BS"][place.row, segment - 1] == number
        text = pack["text_segment_BK"][place.row] == segment
        assert text.sum() == 1 + len(one.prompt.split())
    assert sum((pack["segment_BL"] > 0).sum() for pack in packs) == len(taken), "nothing else is there"
    assert not any(batch.known_BL.any() or batch.pack["tokens_BLP"].any() for batch in batches), "nothing is given"
    assert all(batch.turned is None for batch in batches)


def test_what_is_given_lies_where_its_canvas_does():
    latent_THWC = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    known_thw = np.array([[[True, False], [False, False]], [[True, True], [True, True]]])
    given = dataclasses.replace(
        canvas(), latent_THWC=latent_THWC, known_thw=known_thw, strength=0.3, guidance=2.0, negative="a blue b"
    )
    turning = dataclasses.replace(canvas(), turn=Turn(prompt="green now", share_t=np.array([0.25, 1.0], np.float32)))
    batches, places = lay_out([canvas((1, 1, 2)), given, turning], LAYOUT, rows=1)
    for one, place in zip((given, turning), places[1:], strict=True):
        batch, here = batches[place.batch], (place.row, place.tokens)
        segment = batch.pack["segment_BL"][here][0]
        if one is given:
            np.testing.assert_array_equal(batch.pack["tokens_BLP"][here], patchify(latent_THWC, (1, 2, 2)))
            np.testing.assert_array_equal(batch.known_BL[here], known_thw.reshape(-1))
            assert batch.strength_BS[place.row, segment - 1] == np.float32(0.3)
            assert batch.guidance_BS[place.row, segment - 1] == 2
            assert (batch.negative["text_segment_BK"] == segment).sum() == 4
        else:
            assert batch.share_BL is not None
            assert batch.turned is not None
            np.testing.assert_array_equal(batch.share_BL[here], [0.25] * 4 + [1.0] * 4)
            assert (batch.turned["text_segment_BK"] == segment).sum() == 3
            assert np.isnan(batch.guidance_BS[place.row, segment - 1]), "that of the config"


@pytest.mark.parametrize(("grid", "prompt"), [((3, 3, 3), "red"), ((1, 1, 1), "word " * 12)])
def test_what_fits_no_row_is_refused(grid, prompt):
    with pytest.raises(UserError, match="video 2 of 2 cannot be sampled"):
        lay_out([canvas(), canvas(grid, prompt=prompt)], LAYOUT, rows=2)
