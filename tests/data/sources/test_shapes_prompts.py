"""What is asked of a model: nothing that training showed, in training's words."""

import pytest

from sora_jax.core.errors import UserError
from sora_jax.data.sources import shapes_world as sw
from sora_jax.data.sources.shapes_prompts import case_of, heldout_pair_prompts, heldout_prompts, open_prompts
from tests import small


def world(split, **overrides):
    config = small.world_config(
        seed=1, num_clips=1500, sides=((32, 32),), frames=(5,), image_share=0.2, fps=(8.0,), split=split, **overrides
    )
    return sw.ShapesWorld(config)


def test_prompts_are_distinct_balanced_and_held_out():
    cases = heldout_prompts(72)
    assert len({case.prompt for case in cases}) == 72
    kinds = [case.objects[0] for case in cases]
    assert all(len(case.objects) == 1 for case in cases)
    assert all(sw.is_held_out(kind.colour, kind.shape, kind.motion) for kind in kinds)
    assert cases == heldout_prompts(72)
    assert cases[:10] == heldout_prompts(10)
    assert cases != heldout_prompts(72, seed=1)
    assert len(set(kinds[:24])) == 24
    asked = [(k.colour, k.shape, k.motion, c.background) for k, c in zip(kinds[:24], cases[:24], strict=True)]
    for values in zip(*asked, strict=True):
        assert len({values.count(value) for value in values}) == 1, values
    assert {kind.motion for kind in kinds[:4]} == set(sw.DIRECTIONS)
    with pytest.raises(UserError, match="1 to 72"):
        heldout_prompts(73)


def test_pairs_are_distinct_and_both_objects_are_held_out():
    cases = heldout_pair_prompts(72)
    assert len({case.prompt for case in cases}) == 72
    assert cases[:10] == heldout_pair_prompts(10)
    for case in cases:
        first, second = case.objects
        assert first.colour != second.colour
        assert first.shape != second.shape
        assert all(sw.is_held_out(kind.colour, kind.shape, kind.motion) for kind in case.objects)
        assert f"a {second.colour} {second.shape} moves {second.motion}" in case.prompt


def test_open_prompts_name_what_is_asked_and_nothing_else():
    cases = open_prompts(24)
    assert cases[:3] == open_prompts(3)
    words = {"colour": set(sw.PALETTE), "shape": set(sw.SHAPES), "motion": set(sw.DIRECTIONS)}
    for case in cases:
        (kind,) = case.objects
        said = {name: set(case.prompt.split()) & choices for name, choices in words.items()}
        assert said == {name: set() if name in case.left_open else {getattr(kind, name)} for name in words}
    for left_open in {case.left_open for case in cases}:
        assert {case.objects[0].motion for case in cases if case.left_open == left_open} == set(sw.DIRECTIONS)


def test_prompts_are_worded_as_captions_are():
    source = world("heldout")
    captions = {sw.describe(source.scene(i))[1] for i in range(1500)}
    assert {case.prompt for case in heldout_prompts(72)} <= captions


def test_the_case_of_a_scene_asks_for_what_it_shows():
    source = world("train", max_objects=2)
    for index in range(50):
        scene = source.scene(index)
        case = case_of(scene)
        assert case.prompt == sw.describe(scene)[1]
        assert [(k.colour, k.shape, k.motion) for k in case.objects] == [
            (o.colour, o.shape, o.motion) for o in scene.objects
        ]
