"""What is given is kept in what is made of it, and nothing else is touched."""

import dataclasses

import numpy as np

from sora_jax.data.clips import covering
from sora_jax.generate.keeping import keeping
from tests.generate.test_tasks import job, make, video


def kept(given, made, *, pieces=(0,)):
    found: list[np.ndarray] = []
    take = keeping(found.append, given, size=made.shape[1:3], frames=len(made))
    for piece in np.split(made, pieces):
        take(piece)
    return np.concatenate(found)


def noise(*shape, low=0, high=256):
    return np.random.default_rng(0).integers(low, high, (*shape, 3)).astype(np.uint8)


def test_given_frames_of_the_same_size_are_back_and_those_between_as_made():
    given, made = noise(3, 4, 4), noise(5, 4, 4)
    result = kept(given, made, pieces=(1, 2))
    np.testing.assert_array_equal(result[::2], given)
    np.testing.assert_array_equal(result[1::2], made[1::2])


def test_what_is_made_shows_at_the_size_of_what_is_given_what_that_shows():
    given, made = covering(noise(2, 4, 4, low=60, high=190), (8, 8)), noise(2, 16, 16, low=90, high=160)
    result = kept(given, made)
    before, after = (np.abs(covering(clip, (8, 8)).astype(int) - given).mean() for clip in (made, result))
    assert after < before / 4
    own, still = (clip.astype(int) - covering(covering(clip, (8, 8)), (16, 16)) for clip in (made, result))
    assert np.corrcoef(own.ravel(), still.ravel())[0, 1] > 0.9, "and has its own details"


def test_who_asks_for_it_has_it():
    asked = job("interpolate", frames=9, clips=(video(0, 40, 80),), strength=0.4, request={"frames": 9})
    frames, _, _ = make(asked)
    assert frames == [200] * 9
    frames, _, _ = make(dataclasses.replace(asked, request=dataclasses.replace(asked.request, keep_pixels=True)))
    assert frames == [0, 200, 200, 200, 40, 200, 200, 200, 80]
