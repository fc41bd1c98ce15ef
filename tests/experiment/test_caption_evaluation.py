"""Two objects that exchange colours are told apart by which shape has which."""

from typing import Any

import pytest

from sora_jax.data.sources.shapes_world import ShapesWorld, WorldConfig, describe
from sora_jax.experiment.caption_evaluation import is_bound, scores_of_videos, swap_colours
from sora_jax.experiment.settings import read_settings
from tests import toy_captions

WORLD = ShapesWorld(
    WorldConfig(
        seed=0,
        num_clips=8,
        sides=((32, 32),),
        frames=(9,),
        image_share=0.0,
        fps=(8.0,),
        max_objects=2,
        occluder=False,
        split="heldout",
    )
)
PAIRS = [scene for scene in map(WORLD.scene, range(8)) if len(scene.objects) == 2]


@pytest.mark.parametrize("scene", PAIRS)
def test_a_caption_is_of_its_own_scene_and_not_of_the_swapped_one(scene):
    other = swap_colours(scene)
    assert swap_colours(other) == scene
    for text, swapped in zip(describe(scene), describe(other), strict=True):
        assert is_bound(text, scene)
        assert not is_bound(text, other)
        assert is_bound(swapped, other)
    assert not is_bound("no sentence of the world", scene)


def test_one_object_of_two_is_not_enough():
    scene = PAIRS[0]
    first = scene.objects[0]
    assert not is_bound(f"a {first.colour} {first.shape} moves {first.motion}", scene)


def test_a_run_whose_samples_are_images_has_no_scores_of_videos():
    config = toy_captions.get_config()
    config.sampling.frames = 1
    nobody: Any = None
    assert scores_of_videos(nobody, read_settings(config), nobody, nobody, WORLD) == {}
