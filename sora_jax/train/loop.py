"""The one loop: it serves every stage that trains, and reads as chapters.

Order matters here. Step n is dispatched before the metrics of step n - 1 are read, so the device never waits for the
log. The data position of a checkpoint is its step, because batches are numbered: also where the data changed and the
run was told to go on, as batch n of an endless random order is as good a place to begin as batch 0.
"""

import contextlib
import dataclasses
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Protocol

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from sora_jax.core.chips import peak_flops
from sora_jax.core.distributed import from_first
from sora_jax.core.errors import NumericsError, Preempted
from sora_jax.core.sharding import batch_sharding
from sora_jax.core.tree import abstract_model
from sora_jax.data.pipeline import check_resume
from sora_jax.train.checkpoint import Checkpointer
from sora_jax.train.clock import StepClock, device_memory_gb, peak_memory_gb
from sora_jax.train.metrics import MetricsWriter
from sora_jax.train.retention import CheckpointConfig
from sora_jax.train.settings import LogConfig
from sora_jax.train.state import StateMaker, TrainState
from sora_jax.train.step import Objective, StepConfig, make_step
from sora_jax.train.workdir import Workdir

HostBatch = dict[str, np.ndarray]


class Batches(Iterator[HostBatch], Protocol):
    """Batches without end, read ahead until closed."""

    def close(self) -> None:
        """Ends the reading."""
        ...


class Stream(Protocol):
    """Numbered batches without end."""

    def batches(self, start: int) -> Batches:
        """Returns this process's part of batches `start`, `start` + 1, ..."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Returns what the order of batches depends on."""
        ...

    def tokens(self, batch: HostBatch) -> tuple[int, int]:
        """Returns (real, possible) tokens of a batch of which `batch` is this process's part."""
        ...

    def flops(self, batch: HostBatch) -> float:
        """Returns the model FLOPs of a step on a batch; 0 where they are not counted."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What one stage trains.

    Attributes:
      objective: `(model, batch, key) -> (loss, metrics)`.
      maker: Builds states.
      initial: The state to start from when nothing was saved yet.
      step: What fixes the step.
      stream: The data.
      show: Called with the state at `log.samples_per_stage` moments.
    """

    objective: Objective
    maker: StateMaker
    initial: Callable[[], TrainState]
    step: StepConfig
    stream: Stream
    show: Callable[[TrainState, int], None]


class StopSignal:
    """Notes SIGTERM and SIGINT instead of dying, so that what is under way is saved first; a second SIGINT kills.

    Of several processes one that gets the signal is enough: jax's preemption service, which then owns SIGTERM, tells
    the others, and lets all stop at the same question. So each process must ask as often as every other.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._old: dict[int, Any] = {}
        self._asked = 0

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            handlers = {signal.SIGTERM: self._note, signal.SIGINT: self._note}
            if jax.process_count() > 1:
                handlers = {signal.SIGINT: self._pass_on}
            for number, handler in handlers.items():
                self._old[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def asked(self) -> bool:
        """Whether a signal came: the same answer on every process."""
        if self.name is None and jax.process_count() > 1:
            self._asked += 1
            if multihost_utils.reached_preemption_sync_point(self._asked):
                self.name = signal.SIGTERM.name
        return self.name is not None

    def check(self, saved: str) -> None:
        """Raises Preempted if a signal came; `saved` says in words what the next run goes on from."""
        if self.asked():
            raise Preempted(f"stopped by {self.name}: {saved}, and the same command goes on from there")

    def _note(self, number: int, _: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def _pass_on(self, _: int, __: FrameType | None) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Where a run writes and how often, whether it was asked to stop, and whether it may go on with other data."""

    workdir: Workdir
    metrics: MetricsWriter
    checkpoint: CheckpointConfig
    log: LogConfig
    stop: StopSignal
    fresh_data: bool = False


def train(task: Task, around: Surroundings) -> tuple[TrainState, dict[str, Any]]:
    """Returns the state after the last step of a stage, and facts about the way there.

    Goes on from the newest verified checkpoint of the stage, if any. Raises Preempted after saving when asked to stop,
    NumericsError after `log.max_skipped_steps` steps in a row without a finite loss and gradient.
    """
    name, mesh, steps = task.step.name, task.maker.mesh, task.step.steps
    structure, _, axes = abstract_model(task.maker.build)
    step_function = make_step(task.objective, structure, task.maker.make_optimizer(axes), task.step)
    directory = around.workdir.checkpoints(name)
    with jax.set_mesh(mesh), Checkpointer(directory, around.checkpoint) as saver:
        state, first = _start(task, saver, fresh_data=around.fresh_data)
        around.metrics.truncate(name, first)
        show_at = _moments(steps, around.log.samples_per_stage)
        shown = from_first(f"what {name} shows", around.workdir.samples(name, first).exists)
        if first in show_at and not shown:
            task.show(state, first)  # the last run was stopped before it came to this
        with (
            StepClock(stage=name, steps=steps, start=first, peak_flops=_peak_flops(mesh)) as clock,
            contextlib.closing(task.stream.batches(first)) as batches,
        ):
            report = _Reporter(task, around, clock)
            for done in range(first + 1, steps + 1):
                with clock.waiting():
                    host_batch = next(batches)
                state, metrics = step_function(state, to_device(host_batch, mesh))
                report(done, metrics, host_batch)
                saver.poll()
                stopped = around.stop.asked()  # once: a signal may come at any line
                last = stopped or done == steps
                if saver.due(done) or last:
                    report.flush()
                    data, loss = {"step": done, **task.stream.fingerprint()}, report.mean_loss(since=saver.newest)
                    saver.save(done, state, data, around.workdir.config(), loss=loss, last=last)
                if stopped:
                    around.stop.check(f"step {done} of {name} is saved")
                if done in show_at:
                    report.flush()
                    with clock.paused():
                        task.show(state, done)
    return state, {"steps": steps, **clock.facts()}


def _start(task: Task, saver: Checkpointer, *, fresh_data: bool) -> tuple[TrainState, int]:
    """Returns the state to go on from and its step."""
    abstract = task.maker.abstract()
    saver.check_room(abstract)
    restored = saver.restore(abstract)
    if restored is None:
        return task.initial(), 0
    position = dict(restored.data)
    step = position.pop("step")
    changes = check_resume(position, task.stream.fingerprint(), fresh_data=fresh_data)
    if changes:
        logging.warning("%s: batches from step %d on are those of other data: %s", task.step.name, step, changes)
    logging.info("%s: going on from step %d", task.step.name, step)
    return restored.state, step


def to_device(batch: HostBatch, mesh: Mesh) -> dict[str, jax.Array]:
    """Returns the global arrays of which `batch` is this process's part, split along their first dimension."""
    place: NamedSharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, place)
    return {name: jax.make_array_from_process_local_data(place, value) for name, value in batch.items()}


def _moments(steps: int, times: int) -> set[int]:
    """Returns `times` evenly spaced steps, the last of them the end."""
    return {max(1, round(steps * (i + 1) / times)) for i in range(times)}


def _peak_flops(mesh: Mesh) -> float | None:
    """Returns what the devices of the mesh can do together, FLOP/s; None where it is not known."""
    peak = peak_flops(mesh.devices.flat[0].device_kind)
    return None if peak is None else peak * mesh.size


class _Reporter:
    """Collects metrics one step late and writes a line every `log.every_steps` steps."""

    def __init__(self, task: Task, around: Surroundings, clock: StepClock):
        self._task, self._around, self._clock = task, around, clock
        self._pending: tuple[int, dict[str, jax.Array], HostBatch] | None = None
        self._finite: list[dict[str, float]] = []
        self._losses: dict[int, float] = {}

    def __call__(self, done: int, metrics: dict[str, jax.Array], batch: HostBatch) -> None:
        """Takes what step number `done` (1-based) gave, and reads what the step before it gave."""
        late, self._pending = self._pending, (done, metrics, batch)
        if late is not None:
            self._read(*late)

    def flush(self) -> None:
        """Reads what is still pending; the device is then idle."""
        if self._pending is not None:
            late, self._pending = self._pending, None
            self._read(*late)

    def mean_loss(self, *, since: int) -> float | None:
        """Returns the mean of the finite losses after step `since`; None if there is none."""
        self._losses = {step: loss for step, loss in self._losses.items() if step > since}
        return sum(self._losses.values()) / len(self._losses) if self._losses else None

    def _read(self, done: int, metrics: dict[str, jax.Array], batch: HostBatch) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        real, possible = self._task.stream.tokens(batch)
        flops = self._task.stream.flops(batch)
        self._clock.step_done(loss=values["loss"], tokens=real, capacity=possible, flops=flops)
        counts = {name: values.pop(name) for name in ("skipped", "unbroken")}
        if not counts["unbroken"]:
            self._finite.append(values)
            self._losses[done] = values["loss"]
        if done % self._around.log.every_steps == 0 or done == self._task.step.steps:
            self._write(done, counts)
        self._guard(done, unbroken=round(counts["unbroken"]))

    def _guard(self, done: int, *, unbroken: int) -> None:
        """Names a skipped step; raises NumericsError when there were too many in a row."""
        if not unbroken:
            return
        name = self._task.step.name
        logging.warning("%s: step %d changed nothing, its loss or gradient is not finite", name, done)
        if unbroken >= self._around.log.max_skipped_steps:
            raise NumericsError(
                f"{name}: {unbroken} steps in a row, up to step {done}, had a loss or gradient that is not finite; "
                "lower the learning rate, or look at the data of these steps"
            )

    def _write(self, done: int, counts: dict[str, float]) -> None:
        """Writes a line of means over the steps since the last one, those left out that changed nothing."""
        steps, self._finite = self._finite, []
        means = {key: sum(step[key] for step in steps) / len(steps) for key in steps[0]} if steps else {}
        rates = {**self._clock.rates(), "peak_memory_gb": peak_memory_gb(), **device_memory_gb()}
        self._around.metrics.write(self._task.step.name, done, {"loss": math.nan, **means, **counts, **rates})
