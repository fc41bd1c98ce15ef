"""Larger and faster videos by a refiner: what stands beside, at which level, in which windows and tiles."""

import contextlib
import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.data.clips import Clip
from sora_jax.generate.cascade import Refiner, RefinerConfig
from sora_jax.generate.control import MadeControl
from sora_jax.generate.tasks import MAKERS
from sora_jax.generate.tiling import tiles_of
from sora_jax.generate.video_builder import VideoBuilder
from sora_jax.preparation.context import continued, made_beside
from sora_jax.preparation.controls import low_control
from sora_jax.preparation.degrade import LowConfig
from tests.generate.test_tasks import LIMITS, Averages, job, make, video

CONFIG = RefinerConfig(level=0.15, steps=7, tile=None)
REFINER = Refiner(space=(1, 2), time=(1, 2, 4), config=CONFIG)


def of_pixels(pixels_THWC, fps, name="given"):
    return Clip(pixels_THWC=pixels_THWC, fps=fps, captions=(), source_id=name)


def as_given(pixels_THWC, fps, *, as_is):
    """What is beside, of whole tokens."""
    assert as_is
    return MadeControl(continued(of_pixels(pixels_THWC, fps), LIMITS.stride).pixels_THWC, fps, "low", 2)


REFINES = dataclasses.replace(LIMITS, refiner=REFINER, controls={"low": as_given})


def faster(frames, *values, **given):
    asked = {"request": {"frames": frames}, **given}
    return job("interpolate", frames=frames, clips=(video(*values),), strength=0.15, **asked)


@pytest.mark.parametrize(
    ("asked", "found"),
    [((2, 4), (2, 4)), ((1, 1), (1, 1)), ((3.9, 3), (2, 2)), ((1.8, 8), (2, 4)), ((0.5, 0.5), (1, 1))],
)
def test_factors_are_what_training_showed_and_no_more_than_is_asked_for(asked, found):
    assert REFINER.factors(*asked) == found


def test_a_slow_video_stands_beside_the_fast_one():
    frames, (canvas,), _ = make(faster(13, 0, 40, 80, 120), limits=REFINES)
    assert frames == [200] * 13, "all is made anew"
    (part,) = canvas.context
    assert (part.clip.role, part.clip.scale, part.clip.fps, part.level) == ("low", 1, 2.0, 0.15)
    assert part.clip.latent_THWC[:, 0, 0, 0].tolist() == [0, 90], "its last frame fills the group"
    assert (canvas.strength, canvas.steps, canvas.guidance) == (1.0, 7, 1.0)
    assert not canvas.known_thw.any()
    assert canvas.fps == 8.0


def test_each_window_has_its_own_part_and_begins_with_what_is_made():
    _, canvases, _ = make(faster(25, *range(0, 70, 10)), limits=REFINES)
    assert [canvas.grid[0] for canvas in canvases] == [4, 4, 3]
    assert [bool(canvas.known_thw[0].all()) for canvas in canvases] == [False, True, True]
    begins = [canvas.context[0].clip.latent_THWC[0, 0, 0, 0] for canvas in canvases]
    assert begins == [0, 20, 40], "frames 0, 8 and 16 of the whole video"


def test_a_small_video_stands_beside_the_large_one():
    small = video(10, 20, 30, 40, 50)[:, :2, :2]
    _, (canvas,), _ = make(job("upscale", frames=5, clips=(small,), strength=0.3), limits=REFINES)
    (part,) = canvas.context
    assert (part.clip.scale, part.clip.fps, part.level) == (2, 8.0, 0.3)
    assert part.clip.latent_THWC.shape == (2, 1, 1, 1)
    assert part.clip.latent_THWC.ravel().tolist() == [10, 35]


@pytest.mark.parametrize("space", REFINER.space)
def test_of_odd_sizes_the_clip_beside_has_the_tokens_that_it_has_in_training(space):
    control = low_control(LowConfig(space=REFINER.space, time=(1,)))
    clip = np.zeros((5, 6, 10, 3), np.uint8)
    trained = [made_beside(of_pixels(clip, 8.0, str(n)), "low", control, LIMITS.stride) for n in range(20)]
    (grid,) = {one[0].pixels_THWC.shape for one in trained if one is not None and one[1] == space}
    one = job("upscale", frames=5, clips=(clip[:, ::space, ::space],), request={"frames": 5})
    given = dataclasses.replace(one, size=(6, 10))
    _, (canvas,), _ = make(given, limits=REFINES)
    (part,) = canvas.context
    assert part.clip.scale == space
    assert tuple(2 * side for side in part.clip.latent_THWC.shape[1:3]) == grid[1:3] == {1: (6, 10), 2: (4, 6)}[space]


def test_a_window_too_short_for_a_rate_has_more_of_the_slow_frames():
    slow = dataclasses.replace(REFINES, refiner=dataclasses.replace(REFINER, time=(1, 4, 16)), window=9)
    _, canvases, _ = make(faster(17, 0, 160), limits=slow)
    assert [canvas.context[0].clip.fps for canvas in canvases] == [2.0] * len(canvases)
    assert canvases[0].context[0].clip.latent_THWC[:, 0, 0, 0].tolist() == [0, 70], "0, then 40, 80, 80, 80"


def test_guidance_that_is_asked_for_is_taken():
    _, (canvas,), _ = make(faster(5, 0, 40, request={"frames": 5, "guidance": 3.0}), limits=REFINES)
    assert canvas.guidance == 3.0


TILED = dataclasses.replace(REFINES, refiner=dataclasses.replace(REFINER, config=dataclasses.replace(CONFIG, tile=20)))


def enlarged(limits, solve):
    """Returns the video of 24 x 36 px that `solve(canvas)` makes of one of half that size, and its canvases."""
    ramp_HW = np.arange(12 * 18).reshape(12, 18) % 97
    small = np.repeat(np.repeat(ramp_HW[None, ..., None], 5, 0), 3, -1).astype(np.uint8)
    one = dataclasses.replace(job("upscale", frames=5, clips=(small,), strength=0.15), size=(24, 36))
    pieces: list[np.ndarray] = []
    codec: Any = Averages()
    making = MAKERS["upscale"](VideoBuilder(one, limits, codec, pieces.append))
    canvases = [next(making)]
    with contextlib.suppress(StopIteration):
        while True:
            canvases.append(making.send(solve(canvases[-1])))
    return np.concatenate(pieces), canvases


def local(canvas):
    """What a model makes that looks at a token, its noise and what stands beside it there, and no farther."""
    (part,) = canvas.context
    beside_thw = part.clip.latent_THWC[..., 0] + part.level * canvas.context_noise(0, (1, 1, 1), 1).reshape(
        part.grid((1, 1, 1))
    )
    h, w = canvas.grid[1:]
    there_thw = beside_thw.repeat(2, axis=1).repeat(2, axis=2)[:, :h, :w]
    return (there_thw + 3 * canvas.noise(1).reshape(canvas.grid))[..., None].astype(np.float32)


def test_tiles_of_a_model_that_looks_no_farther_are_the_whole():
    whole, (one,) = enlarged(REFINES, local)
    tiled, canvases = enlarged(TILED, local)
    assert one.grid == (2, 12, 18)
    assert [canvas.grid for canvas in canvases] == [(2, 10, 10)] * 6
    np.testing.assert_array_equal(tiled, whole)


def test_where_tiles_differ_one_fades_into_the_next():
    """Each tile is plain, brighter than the one before: neighbours differ by a step, columns by a part of it."""
    count = itertools.count()

    def plain(canvas):
        return np.full((*canvas.grid, 1), 20.0 * next(count), np.float32)

    tiled, _ = enlarged(TILED, plain)
    steps = np.abs(np.diff(tiled[0, 0, :, 0].astype(int)))
    assert tiled[0, 0, 0, 0] == 0
    assert tiled[0, 0, -1, 0] == 40
    assert steps.max() <= 10, "20 over the 4 tokens, 8 px, that two share"


def test_tiles_that_cannot_overlap_are_refused():
    _, (canvas,) = enlarged(REFINES, local)
    with pytest.raises(UserError, match=r"tiles of 4 tokens .* at least 6 are needed"):
        tiles_of(canvas, (4, 4), patch=(1, 1, 1), unit=2)
    assert tiles_of(canvas, (12, 18), patch=(1, 1, 1), unit=2) is None
