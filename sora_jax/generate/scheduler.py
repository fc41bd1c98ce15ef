"""Many jobs at once: the canvases that all of them wait for share batches.

A job is a conversation (`generate/tasks.py`): it says which canvas it needs next, and goes on when it has the latent.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from sora_jax.core.tree import Params
from sora_jax.generate.canvas import Canvas
from sora_jax.generate.job import Job, Limits
from sora_jax.generate.sampler import Sampler
from sora_jax.generate.tasks import TASKS, Making, VideoBuilder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """A video that is done: its frames, uint8 (T, H, W, 3), and figures about it, by name."""

    clip: np.ndarray
    notes: dict[str, float]


@dataclasses.dataclass(kw_only=True)
class _Running:
    number: int
    scene: VideoBuilder
    making: Making
    canvas: Canvas


def make_all(sampler: Sampler, params: Params, jobs: Sequence[Job], limits: Limits) -> list[Made]:
    """Returns the videos of all jobs, in order."""
    frames: list[list[np.ndarray]] = [[] for _ in jobs]
    notes: dict[int, dict[str, float]] = {}
    for number, found in run_jobs(sampler, params, jobs, limits, lambda number, _: frames[number].append):
        notes[number] = found
    return [Made(clip=np.concatenate(parts), notes=notes[number]) for number, parts in enumerate(frames)]


def run_jobs(
    sampler: Sampler,
    params: Params,
    jobs: Iterable[Job],
    limits: Limits,
    sink: Callable[[int, Job], Callable[[np.ndarray], None]],
    *,
    most: int = 64,
) -> Iterator[tuple[int, dict[str, float]]]:
    """Yields (number of a job, figures about its video) as jobs are done.

    sink(number, job) is called when a job begins and takes its frames, in their order; up to `most` are under way.
    """
    waiting = iter(enumerate(jobs))
    running: list[_Running] = []
    while True:
        while len(running) < most and (following := next(waiting, None)) is not None:
            number, job = following
            scene = VideoBuilder(job, limits, sampler.codec, sink(number, job))
            making = TASKS[job.request.task](scene)
            begun = _advance(number, scene, making, None)
            if begun is None:
                yield number, scene.notes
            else:
                running.append(begun)
        if not running:
            return
        solved = sampler.latents(params, [one.canvas for one in running])
        under_way = []
        for one, latent_THWC in zip(running, solved, strict=True):
            later = _advance(one.number, one.scene, one.making, latent_THWC)
            if later is None:
                yield one.number, one.scene.notes
            else:
                under_way.append(later)
        running = under_way


def _advance(number: int, scene: VideoBuilder, making: Making, latent_THWC: np.ndarray | None) -> _Running | None:
    """Returns the job with the canvas that it needs next; None where it is done."""
    try:
        canvas = next(making) if latent_THWC is None else making.send(latent_THWC)
    except StopIteration:
        return None
    return _Running(number=number, scene=scene, making=making, canvas=canvas)
