"""Many jobs at once: the canvases that all of them wait for share batches.

A job is a conversation (`generate/tasks.py`): it says which canvas it needs next, and goes on when it has the latent.
"""

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from sora_jax.core.tree import Params
from sora_jax.generate.canvas import Canvas
from sora_jax.generate.job import Job
from sora_jax.generate.limits import ModelLimits
from sora_jax.generate.refine import in_passes
from sora_jax.generate.sampler import Sampler
from sora_jax.generate.tasks import Making
from sora_jax.generate.video_builder import VideoBuilder

# Takes frames, uint8 (T, H, W, 3), in their order.
Sink = Callable[[np.ndarray], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """A video that is done: its frames, uint8 (T, H, W, 3), and figures about it, by name."""

    clip: np.ndarray
    notes: dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished:
    """A job that is done: its id, as `Rounds.add` gave it, and figures about its video, by name."""

    id: int
    notes: dict[str, float]


@dataclasses.dataclass(kw_only=True)
class _Running:
    scene: VideoBuilder
    making: Making
    canvas: Canvas


class Rounds:
    """Jobs that are made together, a canvas of each in every round; they join and leave between rounds.

    What a job becomes does not depend on which others share its rounds. For one thread.

    Args:
      sampler: What solves and decodes.
      params: Weights of the generator.
      limits: Of the model.
      most: Jobs that are under way at once; the others wait, in the order in which they were added.
      before: Called with the canvases of each round; None: nobody asks.
    """

    def __init__(
        self,
        sampler: Sampler,
        params: Params,
        limits: ModelLimits,
        *,
        most: int = 64,
        before: Callable[[list[Canvas]], None] | None = None,
    ):
        self._sampler, self._params, self._limits, self._most, self._before = sampler, params, limits, most, before
        self._ids = itertools.count()
        self._waiting: deque[tuple[int, Job, Sink]] = deque()
        self._running: dict[int, _Running] = {}

    def __len__(self) -> int:
        """Returns how many jobs wait or are under way."""
        return len(self._waiting) + len(self._running)

    @property
    def full(self) -> bool:
        """Whether another job would have to wait for one to be done."""
        return len(self) >= self._most

    def add(self, job: Job, sink: Sink) -> int:
        """Returns the id of a job that begins with the next round, or once there is room; its frames go to `sink`.

        Ids count from 0.
        """
        number = next(self._ids)
        self._waiting.append((number, job, sink))
        return number

    def cancel(self, number: int) -> None:
        """Ends a job; nothing of it goes to its sink any more. Raises KeyError where none of this id is left."""
        if number in self._running:
            self._running.pop(number).making.close()
            return
        left = deque(one for one in self._waiting if one[0] != number)
        if len(left) == len(self._waiting):
            raise KeyError(f"no job {number} waits or is under way")
        self._waiting = left

    def step(self) -> list[Finished]:
        """Begins what there is room for, gives every job that is under way its next canvas, and returns what is done.

        A job that needs no canvas is done at once. Without jobs nothing happens.
        """
        done = []
        while self._waiting and len(self._running) < self._most:
            number, job, sink = self._waiting.popleft()
            scene = VideoBuilder(job, self._limits, self._sampler.codec, sink, self._sampler.shower)
            done += self._advance(number, scene, in_passes(scene), None)
        if not self._running:
            return done
        asked = list(self._running.items())
        canvases = [one.canvas for _, one in asked]
        if self._before is not None:
            self._before(canvases)
        solved = self._sampler.latents(self._params, canvases)
        for (number, one), latent_THWC in zip(asked, solved, strict=True):
            done += self._advance(number, one.scene, one.making, latent_THWC)
        return done

    def _advance(
        self, number: int, scene: VideoBuilder, making: Making, latent_THWC: np.ndarray | None
    ) -> list[Finished]:
        """Notes the canvas that a job needs next; returns the job where it needs none, and drops one that fails."""
        self._running.pop(number, None)
        try:
            canvas = next(making) if latent_THWC is None else making.send(latent_THWC)
        except StopIteration:
            return [Finished(id=number, notes=scene.notes)]
        self._running[number] = _Running(scene=scene, making=making, canvas=canvas)
        return []


def make_all(sampler: Sampler, params: Params, jobs: Sequence[Job], limits: ModelLimits) -> list[Made]:
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
    limits: ModelLimits,
    sink: Callable[[int, Job], Sink],
    *,
    most: int = 64,
    before: Callable[[list[Canvas]], None] | None = None,
) -> Iterator[tuple[int, dict[str, float]]]:
    """Yields (number of a job, figures about its video) as jobs are done.

    sink(number, job) is called before a job begins and takes its frames, in their order; up to `most` are under way,
    and no more than these are asked for. `before` as of `Rounds`.
    """
    rounds = Rounds(sampler, params, limits, most=most, before=before)
    waiting = iter(enumerate(jobs))
    while True:
        while not rounds.full and (following := next(waiting, None)) is not None:
            number, job = following
            rounds.add(job, sink(number, job))
        if not rounds:
            return
        for done in rounds.step():
            yield done.id, done.notes
