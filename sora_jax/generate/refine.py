"""A job in passes: a small slow video, then larger and faster ones made of it."""

import dataclasses
from collections.abc import Callable, Generator

import numpy as np

from sora_jax.generate.canvas import Canvas
from sora_jax.generate.cascade import Pass
from sora_jax.generate.tasks import MAKERS, Making
from sora_jax.generate.video_builder import VideoBuilder


def in_passes(scene: VideoBuilder) -> Making:
    """Makes a job: by its task at once, or in the passes that it has.

    Of all passes but the last the frames are held until they are whole; those of the last go on as they are made.
    """
    job = scene.job
    if not job.passes:
        yield from MAKERS[job.request.task](scene)
        return
    made: np.ndarray | None = None
    for one in job.passes[:-1]:
        held: list[np.ndarray] = []
        yield from _made(scene, one, made, held.append)
        made = np.concatenate(held)
    left = job.frames

    def emit(clip_THWC: np.ndarray) -> None:
        nonlocal left
        # A pass may make a few frames more than are asked for.
        kept_THWC = clip_THWC[:left]
        left -= len(kept_THWC)
        if len(kept_THWC):
            scene.emit(kept_THWC)

    yield from _made(scene, job.passes[-1], made, emit)


def _made(
    scene: VideoBuilder, one: Pass, before_THWC: np.ndarray | None, emit: Callable[[np.ndarray], None]
) -> Generator[Canvas, np.ndarray, None]:
    """Emits what one pass makes: of the prompt, or of what the pass before it has made."""
    job = dataclasses.replace(scene.job, size=one.size, frames=one.frames, fps=one.fps, passes=())
    if before_THWC is None:
        yield from MAKERS[job.request.task](scene.part(job, emit))
        return
    larger = dataclasses.replace(job, clips=(before_THWC,), strength=scene.limits.strength("upscale"))
    yield from MAKERS["upscale"](scene.part(larger, emit))
