"""Captions of the drawn world in other words."""

import itertools

import pytest

from sora_jax.core.errors import UserError
from sora_jax.data.sources import shapes_wordings
from sora_jax.data.sources.shapes_world import ShapesWorld
from sora_jax.data.tokens import BYTE_TOKENIZER
from tests import small


def drawn(**changes):
    return ShapesWorld(
        small.world_config(
            **{"seed": 0, "num_clips": 60, "sides": ((16, 16),), "frames": (2,), "image_share": 0.3, "fps": (8.0,)}
            | changes
        )
    )


def test_every_clip_has_as_many_further_captions_as_are_asked_for():
    plain, reworded = drawn(), drawn(wordings=3)
    for index in range(0, 60, 7):
        captions = reworded[index].captions
        assert captions[:4] == plain[index].captions
        assert len(captions) == 7
        assert captions == drawn(wordings=3)[index].captions
        assert max(map(BYTE_TOKENIZER.count, captions)) <= 24
    assert plain.scene(5) == reworded.scene(5)


def test_they_say_what_is_seen_in_words_of_its_table():
    colours, shapes, motions, _, _, _ = shapes_wordings.TABLES
    world = drawn(wordings=5)
    for index in range(60):
        (thing,) = world.scene(index).objects
        for caption in world[index].captions[4:]:
            assert any(word in caption for word in (thing.colour, *colours[thing.colour]))
            assert any(word in caption for word in (thing.shape, *shapes[thing.shape]))
            if thing.motion is not None:
                assert any(word in caption for word in (f"moves {thing.motion}", "stays still", *motions[thing.motion]))


def test_articles_fit_what_they_stand_before():
    captions = [caption for index in range(60) for caption in drawn(wordings=9)[index].captions]
    assert any(" an " in f" {caption}" for caption in captions)
    for caption in captions:
        words = caption.split()
        for article, word in itertools.pairwise(words):
            assert article not in ("a", "an") or (article == "an") == (word[0] in "aeiou"), caption


def test_the_name_of_a_world_changes_with_its_captions_alone_where_there_are_any():
    origins = {drawn(wordings=count).origin(0) for count in (None, 1, 2)}
    assert len(origins) == 3
    assert drawn().origin(0) == drawn(wordings=None).origin(0)


def test_objects_behind_a_bar_are_said_to_be():
    world = drawn(wordings=2, occluder=True, image_share=0.0)
    barred = [index for index in range(60) if world.scene(index).bar is not None]
    assert barred
    assert all(caption.endswith(" behind a bar") for caption in world[barred[0]].captions)


def test_no_captions_are_refused():
    with pytest.raises(UserError, match="wordings must be 1 or more"):
        drawn(wordings=0)
