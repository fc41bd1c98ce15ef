"""Larger and faster videos by a model that was trained with small, slow clips beside clips.

The given video stands beside the one that is made, in the role "low": as many times smaller and slower as training
showed, under a little noise, which the model is told. Where more is asked for than training showed, it is scaled first.

Letters: T H W C pixels or latent.
"""

import dataclasses
from collections.abc import Generator

import numpy as np

from sora_jax.data.clips import covering
from sora_jax.generate.canvas import Canvas, ContextPart
from sora_jax.generate.cascade import Refiner
from sora_jax.generate.given import between
from sora_jax.generate.tiling import blended, tiles_of
from sora_jax.generate.video_builder import Making, VideoBuilder
from sora_jax.video.parts import ContextClip

# What is given says more than a text could, and guidance by the text blurs what it says.
_GUIDANCE = 1.0


def refined(scene: VideoBuilder, clip_THWC: np.ndarray, refiner: Refiner) -> Making:
    """Emits a video made larger, or faster, or both, window by window, each in tiles where frames are large."""
    limits, job = scene.limits, scene.job
    space, time = refiner.factors(job.size[0] / clip_THWC.shape[1], max(1, job.frames - 1) / max(1, len(clip_THWC) - 1))
    low_THWC = covering(clip_THWC, (job.size[0] // space, job.size[1] // space))
    done: np.ndarray | None = None
    made = 0
    while made < job.frames:
        kept, head = scene.opening(done)
        start = made - kept
        length = min(limits.first + (scene.window - 1) * limits.step, scene.longer(job.frames - start))
        # A window that is too short has at least two of the slow frames, as in training.
        every = min(time, max((factor for factor in refiner.time if factor < length), default=1))
        part_THWC = _slower(low_THWC, start, length, frames=job.frames, every=every)
        beside = ContextPart(clip=_encoded(scene, part_THWC, space=space, every=every), level=job.strength)
        canvas = scene.canvas(1 + (length - limits.first) // limits.step, head=head, beside=(beside,))
        guidance = _GUIDANCE if job.request.guidance is None else job.request.guidance
        canvas = dataclasses.replace(canvas, steps=refiner.config.steps, guidance=guidance)
        latent_THWC = yield from _in_tiles(scene, canvas, refiner, space=space)
        fresh = scene.decode(latent_THWC)[kept:][: job.frames - made]
        scene.emit(fresh)
        made += len(fresh)
        done = fresh if done is None else np.concatenate([done, fresh])[-scene.overlap :]


def _slower(low_THWC: np.ndarray, start: int, length: int, *, frames: int, every: int) -> np.ndarray:
    """Returns every n-th of `length` frames from `start` on, of a video of `frames` frames of which low has some.

    What comes after its last frame is as that.
    """
    number_T = np.minimum(np.arange(start, start + length, every), frames - 1)
    return between(low_THWC, number_T * ((len(low_THWC) - 1) / max(1, frames - 1)))


def _encoded(scene: VideoBuilder, part_THWC: np.ndarray, *, space: int, every: int) -> ContextClip:
    """Returns the clip beside, its last frame, rows and columns repeated up to whole tokens as in training."""
    made = scene.limits.controls["low"](part_THWC, scene.job.fps / every, as_is=True)
    return ContextClip(latent_THWC=scene.encode(made.pixels_THWC), fps=made.fps, role=made.role, scale=space)


def _in_tiles(
    scene: VideoBuilder, canvas: Canvas, refiner: Refiner, *, space: int
) -> Generator[Canvas, np.ndarray, np.ndarray]:
    """Returns the latent of a canvas, made whole, or in tiles one after the other."""
    limits, tile = scene.limits, refiner.config.tile
    _, rows, columns = (stride * patch for stride, patch in zip(limits.stride, limits.patch, strict=True))
    tiles = None if tile is None else tiles_of(canvas, (tile // rows, tile // columns), patch=limits.patch, unit=space)
    if tiles is None:
        return (yield canvas)
    made = []
    for one in tiles:
        made.append((one.at, (yield one.canvas)))
    assert canvas.latent_THWC is not None
    return blended(canvas.latent_THWC.shape, made)
