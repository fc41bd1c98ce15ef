"""Curves of the drawn world: whole in the frame, told or not where they lead, and none of what is held out."""

import functools

import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.data.sources.base import fingerprint
from sora_jax.data.sources.shapes_paths import along
from sora_jax.data.sources.shapes_world import DIRECTIONS, ShapesWorld, is_held_out, render
from sora_jax.evaluation.caption_reader import parse_caption
from sora_jax.experiment.settings import read_settings
from sora_jax.preparation.boxes import find_boxes
from tests import small

CLIPS = 160
SIDES = ((24, 24), (24, 40), (40, 24))


@functools.cache
def world(**overrides) -> ShapesWorld:
    values = dict(seed=3, num_clips=CLIPS, sides=SIDES, frames=(5, 9), image_share=0.2, fps=(8.0,), occluder=True)
    return ShapesWorld(small.world_config(**(values | overrides)))


def pairs(**overrides):
    """Returns scenes without curves, and beside each what it is with them."""
    return [(world(**overrides).scene(i), world(curved_share=0.5, **overrides).scene(i)) for i in range(CLIPS)]


def test_a_straight_way_is_where_it_was_and_a_curve_begins_and_ends_at_its_points():
    progress_T = np.linspace(0, 1, 9, dtype=np.float32)
    rows, columns = along(((0.2, 0.7), (0.6, 0.1)), progress_T)
    np.testing.assert_array_equal(rows, 0.2 + (0.6 - 0.2) * progress_T)
    np.testing.assert_array_equal(columns, 0.7 + (0.1 - 0.7) * progress_T)
    rows, columns = along(((0.2, 0.7), (0.9, 0.2), (0.6, 0.1)), progress_T)
    back_T = 1 - progress_T
    parabola_T = 0.2 * back_T**2 + 2 * 0.9 * progress_T * back_T + 0.6 * progress_T**2
    np.testing.assert_allclose(rows, parabola_T, rtol=1e-6)
    assert (rows.dtype, float(columns[0]), float(columns[-1])) == (np.float32, np.float32(0.7), np.float32(0.1))


def test_half_of_what_moves_alone_in_the_open_bends_and_all_else_is_what_it_was():
    both = pairs(max_objects=2)
    bent = [(before, after) for before, after in both if before != after]
    alone = [scene for scene, _ in both if len(scene.objects) == 1 and scene.bar is None]
    can = [scene for scene in alone if scene.objects[0].motion in DIRECTIONS]
    assert len(bent) / len(can) == pytest.approx(0.5, abs=0.13)
    for before, after in bent:
        assert before in can
        assert after.objects[0].motion in (None, before.objects[0].motion)
    told = np.mean([after.objects[0].motion is not None for _, after in bent])
    assert told == pytest.approx(0.25, abs=0.2)
    assert told > 0
    assert {len(after.objects[0].bends) for _, after in bent} == {1, 2, 3, 4}


def test_curves_stay_in_the_frame_and_captions_tell_of_some_where_they_lead():
    seen = world(curved_share=1.0)
    motions = set()
    for index in range(60):
        scene = seen.scene(index)
        (spec,) = scene.objects
        if scene.frames == 1 or scene.bar is not None or spec.motion == "still":
            continue
        motions.add(spec.motion)
        reach_2 = spec.radius * min(scene.height, scene.width) / np.array([scene.height, scene.width])
        for line, reach in zip(along(spec.way, np.linspace(0, 1, 65)), reach_2, strict=True):
            assert reach - 0.01 <= line.min() <= line.max() <= 1 - reach + 0.01
        (boxes_T4,) = find_boxes(render(scene))
        assert np.isfinite(boxes_T4).all(), "found in every frame"
        for caption in seen.captions(index):
            told = parse_caption(caption)
            assert told is not None
            assert [(one.colour, one.motion) for one in told.objects] == [(spec.colour, spec.motion)]
    assert None in motions
    assert motions & set(DIRECTIONS)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_curves_lead_nowhere_that_the_split_does_not(split):
    for _, scene in pairs(split=split, occluder=False):
        (spec,) = scene.objects
        if scene.frames == 1 or spec.motion == "still":
            continue
        way_2 = (np.array(spec.end) - spec.start) * (scene.height, scene.width)
        nearest = max(DIRECTIONS, key=lambda name: float(way_2 @ np.array(DIRECTIONS[name])))
        assert is_held_out(spec.colour, spec.shape, nearest) == (split == "heldout")
        assert spec.motion in (None, nearest)
        assert way_2 @ np.array(DIRECTIONS[nearest]) > 0.19 * min(scene.height, scene.width)
        row_T, column_T = along(spec.way, np.linspace(0, 1, 65))
        ahead_T = row_T * DIRECTIONS[nearest][0] + column_T * DIRECTIONS[nearest][1]
        assert np.diff(ahead_T).min() >= 0, "it never turns back"


def test_curves_are_another_world_and_held_out_clips_have_none(toy_config):
    assert len({fingerprint(world(**one)) for one in ({}, {"curved_share": 0.0}, {"curved_share": 0.5})}) == 3
    assert all(world(curved_share=0.0).scene(i) == world().scene(i) for i in range(20))
    config = toy_config()
    config.shapes.curved_share = 0.5
    shapes = read_settings(config).shapes
    assert shapes.world(seed=0, split="train").curved_share == 0.5
    assert shapes.world(seed=0, split="heldout").curved_share is None
    with pytest.raises(UserError, match=r"curved_share must lie in \[0, 1\], or be None, got 1\.5"):
        world(curved_share=1.5)
