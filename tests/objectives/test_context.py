"""Clips beside in the diffusion objective: they are seen, at their own level, and nothing is asked of them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.data.packing.packs import own_segments, stack_rows
from sora_jax.data.tokens import BYTE_TOKENIZER
from sora_jax.models.roles import Roles, parts_of
from sora_jax.models.text_to_video import extents
from sora_jax.objectives.diffusion import make_objective
from sora_jax.video.parts import ROLES, ContextClip
from tests.objectives.test_diffusion import KEY, LAYOUT, Stub, config, shares

LEVELS = tuple(0.5 if name == "low" else 0.0 for name in ROLES)


def make_pack(value=1.0, *, beside=True):
    """One row of two clips, the first of which has edges and a low clip beside it."""
    row, rng = dataclasses.replace(LAYOUT, parts=2 if beside else 0).row(), np.random.default_rng(0)
    for number, grid in enumerate([(2, 2, 2), (1, 2, 3)]):
        clips = [
            ContextClip(latent_THWC=np.full((1, 1, 2, 3), value, np.float32), fps=8.0, role=role, scale=2, drawn={})
            for role in ("edges", "low")
        ]
        row.put(
            sample=number,
            grid=grid,
            fps=8.0,
            text=BYTE_TOKENIZER.encode(["red"])[0],
            tokens_LP=rng.normal(size=(np.prod(grid), 3)).astype(np.float32),
            context=clips if beside and number == 0 else (),
        )
    return {name: jnp.asarray(array) for name, array in stack_rows([row]).items()}


def loss_of(pack, answer):
    model: Any = Stub(answer)
    objective = make_objective(config(), shares(0.5), dtype=jnp.float32, context_levels=LEVELS)
    return objective(model, pack, KEY)


@pytest.mark.slow  # gradients of a whole model
def test_nothing_is_asked_of_clips_beside():
    pack = make_pack()
    beside = pack["part_BL"][..., None] > 0
    losses = [loss_of(pack, lambda x, _, a=added: jnp.where(beside, a, 0.9 * x))[0].value() for added in (0.0, 9.0)]
    assert losses[0] == losses[1] > 0
    fill = loss_of(pack, lambda x, _: x)[1]["fill"]
    assert float(fill.value()) == pytest.approx((14 + 4) / 20)


def test_a_clip_at_level_0_is_seen_bit_for_bit_and_another_under_its_noise():
    pack, seen = make_pack(), {}

    def answer(noisy_BLP, sigma_BL):
        seen.update(noisy=np.asarray(noisy_BLP), sigma=np.asarray(sigma_BL))
        return noisy_BLP

    loss_of(pack, answer)
    part_BL = np.asarray(pack["part_BL"])
    np.testing.assert_array_equal(seen["noisy"][part_BL == 1], 1.0)
    np.testing.assert_array_equal(seen["sigma"][part_BL == 1], 0.0)
    level = np.unique(seen["sigma"][part_BL == 2])
    assert len(level) == 1
    assert 0 < level[0] <= 0.5


def test_what_is_made_is_asked_of_as_if_nothing_were_beside_it():
    pack, plain = make_pack(), make_pack(beside=False)
    assert int(jnp.sum(own_segments(pack) > 0)) == int(jnp.sum(plain["segment_BL"] > 0)) == 14
    np.testing.assert_array_equal(pack["grid_BS3"], plain["grid_BS3"])
    np.testing.assert_array_equal(extents(pack)[0, :8], extents(plain)[0, :8])


def test_each_role_has_its_vector_and_what_is_made_has_none():
    pack, roles = make_pack(), Roles(4)
    parts = parts_of(pack)
    assert parts is not None
    np.testing.assert_array_equal(roles(parts, pack["segment_BL"]), 0.0)
    roles.vectors[...] = jnp.arange(len(ROLES), dtype=jnp.float32)[:, None] * jnp.ones(4)
    told_L = np.asarray(roles(parts, pack["segment_BL"]))[0, :, 0]
    wanted = [0] * 8 + [ROLES["edges"]] * 2 + [ROLES["low"]] * 2
    assert told_L[:12].tolist() == wanted
    assert not told_L[12:].any()
    assert jax.tree.all(jax.tree.map(lambda one: one.shape[0] == 1, parts))
