"""Captions with faults: sentences still, as often wrong as asked, and the same whenever they are asked for."""

import collections
import functools

import pytest

from sora_jax.core.errors import UserError
from sora_jax.data.sources.base import fingerprint
from sora_jax.data.sources.shapes_world import ShapesWorld
from sora_jax.evaluation.caption_reader import parse_caption, score_captions
from sora_jax.experiment.settings import read_settings
from tests import small

CLIPS = 400


@functools.cache
def world(**overrides) -> ShapesWorld:
    values = dict(seed=1, num_clips=CLIPS, sides=((16, 16),), frames=(2,), image_share=0.3, fps=(8.0,), occluder=True)
    return ShapesWorld(small.world_config(**(values | overrides)))


def test_each_attribute_is_missing_and_wrong_as_often_as_asked():
    spoiled = world(caption_faults=(0.5, 0.15))
    told = [(spoiled.scene(index), spoiled[index].captions) for index in range(CLIPS)]
    found = score_captions((scene, captions[3]) for scene, captions in told)
    assert found.unreadable == 0
    for name in ("colour", "shape", "motion", "size", "background"):
        assert found.recall[name] == pytest.approx(0.35, abs=0.08), name
        assert found.precision[name] == pytest.approx(0.35 / 0.5, abs=0.12), name
    assert found.recall["bar"] == pytest.approx(0.5, abs=0.15)
    assert found.precision["bar"] == 1


def test_all_captions_of_a_clip_have_the_same_faults_and_the_clip_is_what_it_was():
    spoiled, right = world(caption_faults=(0.4, 0.2)), world()
    kinds = collections.Counter()
    for index in range(60):
        clip = spoiled[index]
        assert (clip.pixels_THWC == right[index].pixels_THWC).all()
        assert clip.captions == spoiled[index].captions
        short, plain, reordered, detailed = map(parse_caption, clip.captions)
        assert plain is not None
        assert detailed is not None
        assert plain == reordered
        assert (detailed.background, detailed.bar) == (plain.background, plain.bar)
        assert short is not None
        assert short.objects == plain.objects
        kinds[clip.captions == right[index].captions] += 1
    assert kinds[False] > kinds[True] > 0


def test_no_faults_are_no_change_and_faults_are_another_world():
    right, none, some = world(), world(caption_faults=(0.0, 0.0)), world(caption_faults=(0.5, 0.0))
    assert [none[index].captions for index in range(9)] == [right[index].captions for index in range(9)]
    assert len({fingerprint(one) for one in (right, none, some)}) == 3
    assert right.source_id(3) == some.source_id(3)
    assert all(parse_caption(some[index].captions[3]) is not None for index in range(9))


def test_held_out_captions_have_no_faults(toy_config):
    config = toy_config()
    config.shapes.caption_faults = (0.5, 0.15)
    settings = read_settings(config)
    assert settings.shapes.world(seed=0, split="train").caption_faults == (0.5, 0.15)
    assert settings.shapes.world(seed=0, split="heldout").caption_faults is None


@pytest.mark.parametrize("faults", [(0.5,), (0.6, 0.5), (-0.1, 0.5)])
def test_shares_that_are_none_are_refused(faults):
    with pytest.raises(UserError, match="caption_faults must be two shares, of 1 together at most"):
        world(caption_faults=faults)
    with pytest.raises(UserError, match="set caption_faults or wordings None"):
        world(caption_faults=(0.5, 0.1), wordings=2)
