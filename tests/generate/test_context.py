"""Clips beside in sampling: they are seen, they stay as they are given, and nothing else depends on them."""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.core.tree import abstract_model
from sora_jax.generate import sampler as sampler_module
from sora_jax.generate.apart import set_apart
from sora_jax.generate.canvas import ContextPart, lay_out
from sora_jax.generate.sampler import Sampler, make_solver
from sora_jax.video.parts import ROLES, ContextClip
from sora_jax.video.patches import patchify
from tests import small
from tests.generate.test_sampler import FIRST, LAYOUT, OTHERS, SOLVER, given_canvas, made
from tests.small import generator, random_params

PARTS = dataclasses.replace(LAYOUT, parts=2)
# What guidance leads away from alone: so what it sees is seen.
WITHOUT_TEXT = dataclasses.replace(SOLVER, steps=2, method="euler", guidance=small.guidance_config(scale=0.0))


def beside(role="edges", *, seed=0, grid=(2, 1, 1), level=0.0):
    latent_THWC = np.random.default_rng(seed).normal(size=(*grid, 3)).astype(np.float32)
    return ContextPart(clip=ContextClip(latent_THWC=latent_THWC, fps=8.0, role=role, scale=2), level=level)


BOTH = (beside(), beside("low", seed=1, grid=(1, 2, 1), level=0.3))
SEEING = dataclasses.replace(FIRST, context=BOTH)


@functools.cache
def seeing():
    """Returns (structure, parameters) of a generator that may be given clips beside."""
    structure, shapes, _ = abstract_model(generator(3, roles=True))
    return structure, random_params(shapes)


@functools.cache
def solver_of(config=WITHOUT_TEXT):
    return make_solver(seeing()[0], config, dtype=jnp.dtype(jnp.float32))


def solved(*canvases):
    """Returns (tokens_LP of what is made of the first canvas, tokens_BLP of all, the batch)."""
    (batch,), places = lay_out(list(canvases), PARTS, rows=2)
    tokens_BLP = np.asarray(solver_of()(seeing()[1], batch))
    return tokens_BLP[places[0].row, places[0].tokens], tokens_BLP, batch


def test_a_row_counts_and_says_what_is_beside():
    canvases = [SEEING, OTHERS[1], dataclasses.replace(OTHERS[0], context=BOTH[1:])]
    assert [canvas.tokens(PARTS.patch) for canvas in canvases] == [8 + 2 + 2, 12, 4 + 2]
    batches, places = lay_out(canvases, PARTS, rows=2)
    (batch,) = batches
    for canvas, place in zip(canvases, places, strict=True):
        part_L, segment_L = batch.pack["part_BL"][place.row], batch.pack["segment_BL"][place.row]
        segment = segment_L[place.tokens.start]
        here = (segment_L == segment) & (part_L > 0)
        assert here.sum() == sum(one.tokens(PARTS.patch) for one in canvas.context)
        assert not part_L[place.tokens].any(), "what is made is no clip beside"
        wanted = [ROLES[one.clip.role] for one in canvas.context]
        assert batch.pack["role_BSA"][place.row, segment - 1].tolist() == wanted + [0] * (2 - len(wanted))
        assert batch.context_sigma_BSA is not None
        levels = [one.level for one in canvas.context]
        np.testing.assert_allclose(batch.context_sigma_BSA[place.row, segment - 1, : len(levels)], levels)
        assert batch.noise_BLP[place.row][here].all(), "each has noise"
        np.testing.assert_array_equal(batch.noise_BLP[place.row, place.tokens], canvas.noise(3))


def test_a_batch_of_nothing_beside_is_what_it_was():
    (batch,), _ = lay_out([FIRST, *OTHERS[:2]], LAYOUT, rows=2)
    assert batch.context_sigma_BSA is None
    assert "part_BL" not in batch.pack


@pytest.mark.parametrize("number", [0, 1])
def test_each_clip_beside_changes_what_is_made_and_guidance_keeps_it(number):
    changed = list(BOTH)
    changed[number] = beside(BOTH[number].clip.role, seed=7, grid=BOTH[number].clip.latent_THWC.shape[:3])
    results = [solved(dataclasses.replace(SEEING, context=tuple(context)))[0] for context in (BOTH, changed)]
    assert np.abs(results[0] - results[1]).max() > 1e-2
    assert np.abs(results[0] - solved(FIRST)[0]).max() > 1e-2


def test_role_and_level_are_told():
    base = solved(SEEING)[0]
    edges, low = BOTH
    for context in (
        (dataclasses.replace(edges, clip=dataclasses.replace(edges.clip, role="grey")), low),
        (edges, dataclasses.replace(low, level=0.8)),
    ):
        assert np.abs(solved(dataclasses.replace(SEEING, context=context))[0] - base).max() > 1e-3


def test_clips_beside_stay_as_they_are_given():
    _, tokens_BLP, batch = solved(SEEING)
    part_BL = batch.pack["part_BL"]
    assert tokens_BLP[part_BL == 1].tobytes() == patchify(BOTH[0].clip.latent_THWC, PARTS.patch).tobytes()
    low, here = patchify(BOTH[1].clip.latent_THWC, PARTS.patch), part_BL == 2
    np.testing.assert_allclose(tokens_BLP[here], 0.7 * low + 0.3 * batch.noise_BLP[here], atol=1e-5)


def test_known_tokens_stay_beside_them_and_clips_are_seen_where_guidance_forgets_what_is_known():
    canvas = given_canvas(context=BOTH)
    assert canvas.latent_THWC is not None
    result = solved(canvas)[0]
    assert result[:4].tobytes() == canvas.latent_THWC[0].reshape(4, 3).tobytes()
    other = dataclasses.replace(canvas, context=(beside(seed=7), BOTH[1]))
    assert np.abs(result[4:] - solved(other)[0][4:]).max() > 1e-2


def test_what_is_made_does_not_depend_on_what_shares_its_row():
    alone = solved(SEEING)[0]
    company = [OTHERS[2], dataclasses.replace(OTHERS[0], context=BOTH[::-1]), OTHERS[3]]
    np.testing.assert_allclose(solved(SEEING, *company)[0], alone, atol=1e-4)


@pytest.mark.slow
def test_a_sampler_makes_those_with_and_without_clips_beside_as_alone():
    structure, params = seeing()
    sampler = Sampler(structure, made()[0].codec, LAYOUT, rows=2, config=SOLVER, dtype=jnp.dtype(jnp.float32))
    large = dataclasses.replace(SEEING, context=(*BOTH, beside("grey", grid=(2, 4, 4))))
    assert large.tokens(LAYOUT.patch) > LAYOUT.budget.tokens, "it has longer rows"
    canvases = [OTHERS[0], SEEING, large, dataclasses.replace(OTHERS[1], context=BOTH[:1])]
    mixed = sampler.latents(params, canvases)
    for canvas, latent in zip(canvases, mixed, strict=True):
        assert latent.shape == (*canvas.grid, 3)
        np.testing.assert_allclose(latent, sampler.latents(params, [canvas])[0], atol=1e-3)


@pytest.mark.slow
def test_guidance_sees_clips_beside_at_their_own_level():
    """Where nothing is known there is nothing to forget: with and without forgetting it is the same."""
    (batch,), _ = lay_out([SEEING], PARTS, rows=2)
    keeping = solver_of(dataclasses.replace(WITHOUT_TEXT, keeps_known=True))(seeing()[1], batch)
    np.testing.assert_allclose(keeping, solved(SEEING)[1], atol=1e-5)


def test_canvases_with_clips_beside_may_have_other_steps_but_for_those_that_say_their_own(monkeypatch):
    def make(structure, config, *, dtype):
        return lambda params, batch: np.full_like(batch.pack["tokens_BLP"], config.steps)

    monkeypatch.setattr(sampler_module, "make_solver", make)
    codec: Any = None
    canvases = [SEEING, OTHERS[1], dataclasses.replace(SEEING, steps=7)]
    for context_steps, wanted in ((5, [5, 3, 7]), (None, [3, 3, 7])):
        config = dataclasses.replace(SOLVER, steps=3, context_steps=context_steps)
        maker = Sampler(None, codec, LAYOUT, rows=2, config=config, dtype=jnp.dtype(jnp.float32))
        assert [float(latent.mean()) for latent in maker.latents({}, canvases)] == wanted


@pytest.mark.slow
def test_guidance_that_forgets_clips_beside_leads_away_from_none():
    """With scale 0 only what guidance leads away from is seen: the same as of the canvas without clips beside."""
    forgetting = dataclasses.replace(WITHOUT_TEXT, forgets_context=True)
    (batch,), places = lay_out([SEEING, OTHERS[1]], PARTS, rows=2)
    tokens_BLP = np.asarray(solver_of(forgetting)(seeing()[1], batch))
    np.testing.assert_allclose(tokens_BLP[places[0].row, places[0].tokens], solved(FIRST)[0], atol=1e-4)
    assert np.abs(solved(SEEING)[0] - solved(FIRST)[0]).max() > 1e-2, "and one that keeps them sees them"


def blind_solver(batches, config=WITHOUT_TEXT):
    structure, _, _ = abstract_model(generator(3, roles=True, blind=True))
    solve = make_solver(structure, config, dtype=jnp.dtype(jnp.float32))
    return [np.asarray(solve(seeing()[1], batch)) for batch in batches]


COMPANY = [SEEING, dataclasses.replace(OTHERS[0], context=BOTH[:1]), OTHERS[1]]


@pytest.mark.slow  # compiles solvers of its own
def test_keys_that_are_computed_once_give_what_blind_clips_in_the_row_do():
    # As many segments as a row has: the last one is a segment like all others.
    tight = dataclasses.replace(PARTS, budget=dataclasses.replace(PARTS.budget, segments=2))
    batches, places = lay_out(COMPANY, tight, rows=2)
    split, moved = set_apart(batches, places)
    assert all(batch.pack["grid_BS3"][:, -1].any() for batch in batches)
    assert split[0].apart is not None
    assert "part_BL" not in split[0].pack
    config = dataclasses.replace(SOLVER, guidance=small.guidance_config(scale=3.0))
    ((within,), (once,)) = blind_solver(batches, config), blind_solver(split, config)
    for canvas, at, there in zip(COMPANY, places, moved, strict=True):
        wanted = within[at.row, at.tokens]
        np.testing.assert_allclose(once[there.row, there.tokens], wanted, atol=2e-5, err_msg=canvas.prompt)
    # Also the other way it is no accident: other clips beside, other results.
    other = dataclasses.replace(SEEING, context=(beside(seed=7), BOTH[1]))
    (changed,) = blind_solver(set_apart(*lay_out([other, *COMPANY[1:]], tight, rows=2))[0], config)
    assert np.abs(changed - once)[moved[0].row, moved[0].tokens].max() > 1e-2


def test_clips_beside_are_set_apart_with_all_that_is_theirs():
    batches, places = lay_out(COMPANY, PARTS, rows=2)
    (whole,), ((split,), moved) = batches, set_apart(batches, places)
    assert split.apart is not None
    for at, there in zip(places, moved, strict=True):
        for name in ("tokens_BLP", "position_BL3", "segment_BL"):
            np.testing.assert_array_equal(
                split.pack[name][there.row, there.tokens], whole.pack[name][at.row, at.tokens]
            )
        np.testing.assert_array_equal(split.noise_BLP[there.row, there.tokens], whole.noise_BLP[at.row, at.tokens])
    part_BL, apart = whole.pack["part_BL"], split.apart
    for name in ("tokens_BLP", "position_BL3", "segment_BL", "part_BL"):
        inside = apart.pack["segment_BL"] > 0
        np.testing.assert_array_equal(apart.pack[name][inside], whole.pack[name][part_BL > 0])
    np.testing.assert_array_equal(apart.noise_BLP[inside], whole.noise_BLP[part_BL > 0])
    assert apart.pack["role_BSA"] is whole.pack["role_BSA"]
    assert apart.sigma_BSA is whole.context_sigma_BSA
    assert (split.context_sigma_BSA, int(split.row_tokens)) == (None, PARTS.budget.tokens)
