"""The one loop: it serves every stage that trains, and reads as chapters.

Order matters here. Step n is dispatched before the metrics of step n - 1 are read, so the device never waits for the
log. The data position of a checkpoint is its step, because batches are numbered.
"""

import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Protocol

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding

from sora_jax.core.errors import NumericsError, Preempted
from sora_jax.core.sharding import batch_sharding
from sora_jax.core.tree import abstract_model
from sora_jax.data.pipeline import check_resume
from sora_jax.train.checkpoint import Checkpointer
from sora_jax.train.clock import StepClock, peak_memory_gb
from sora_jax.train.metrics import MetricsWriter
from sora_jax.train.settings import CheckpointConfig, LogConfig
from sora_jax.train.state import StateMaker, TrainState
from sora_jax.train.step import Objective, StepConfig, make_step
from sora_jax.train.workdir import Workdir

HostBatch = dict[str, np.ndarray]


class Stream(Protocol):
    """Numbered batches without end."""

    def batches(self, start: int) -> Iterator[HostBatch]:
        """Returns this process's part of batches `start`, `start` + 1, ..."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Returns what the order of batches depends on."""
        ...

    def tokens(self, batch: HostBatch) -> tuple[int, int]:
        """Returns (real, possible) tokens of a batch of this process."""
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Where a run writes and how often."""

    workdir: Workdir
    metrics: MetricsWriter
    checkpoint: CheckpointConfig
    log: LogConfig


class StopSignal:
    """Notes SIGTERM and SIGINT instead of dying, so that the loop can save first; a second SIGINT kills."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)


def train(task: Task, around: Surroundings) -> tuple[TrainState, dict[str, Any]]:
    """Returns the state after the last step of a stage, and facts about the way there.

    Goes on from the newest verified checkpoint of the stage, if any. Raises Preempted after saving when asked to stop,
    NumericsError after `log.max_skipped_steps` steps in a row without a finite loss and gradient.
    """
    name, mesh = task.step.name, task.maker.mesh
    structure, _, axes = abstract_model(task.maker.build)
    step_function = make_step(task.objective, structure, task.maker.make_optimizer(axes), task.step)
    directory = around.workdir.checkpoints(name)
    with (
        jax.set_mesh(mesh),
        StopSignal() as stop,
        Checkpointer(directory, keep=around.checkpoint.keep) as saver,
    ):
        state, first = _start(task, saver)
        around.metrics.truncate(name, first)
        show_at = _moments(task.step.steps, around.log.samples_per_stage)
        with StepClock(stage=name, steps=task.step.steps, start=first) as clock:
            report = _Reporter(task, around, clock)
            batches = task.stream.batches(first)
            for step in range(first, task.step.steps):
                with clock.waiting():
                    host_batch = next(batches)
                state, metrics = step_function(state, to_device(host_batch, mesh))
                report(step, metrics, host_batch)
                done = step + 1
                saver.poll()
                last = done == task.step.steps
                if last or stop.name or done % around.checkpoint.every_steps == 0:
                    saver.save(done, state, {"step": done, **task.stream.fingerprint()}, around.workdir.config())
                if stop.name and not last:
                    saver.wait()
                    raise Preempted(f"{stop.name}: saved step {done} of {name}; the same command goes on from there")
                if done in show_at:
                    report.flush()
                    with clock.paused():
                        task.show(state, done)
            report.flush()
            close = getattr(batches, "close", None)
            if close is not None:
                close()
        saver.wait()
    return state, {"steps": task.step.steps, **clock.facts()}


def _start(task: Task, saver: Checkpointer) -> tuple[TrainState, int]:
    """Returns the state to go on from and its step."""
    restored = saver.restore(task.maker.abstract())
    if restored is None:
        return task.initial(), 0
    position = dict(restored.data)
    step = position.pop("step")
    check_resume(position, task.stream.fingerprint())
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
    return {round(steps * (i + 1) / times) for i in range(times)} if times else set()


class _Reporter:
    """Collects metrics one step late and writes a line every `log.every_steps` steps."""

    def __init__(self, task: Task, around: Surroundings, clock: StepClock):
        self._task, self._around, self._clock = task, around, clock
        self._pending: tuple[int, dict[str, jax.Array], HostBatch] | None = None
        self._sums: dict[str, float] = {}
        self._count = 0

    def __call__(self, step: int, metrics: dict[str, jax.Array], batch: HostBatch) -> None:
        late, self._pending = self._pending, (step, metrics, batch)
        if late is not None:
            self._read(*late)

    def flush(self) -> None:
        """Reads what is still pending; the device is then idle."""
        if self._pending is not None:
            late, self._pending = self._pending, None
            self._read(*late)

    def _read(self, step: int, metrics: dict[str, jax.Array], batch: HostBatch) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        real, possible = self._task.stream.tokens(batch)
        self._clock.step_done(loss=values["loss"], tokens=real, capacity=possible)
        for key, value in values.items():
            self._sums[key] = self._sums.get(key, 0.0) + value
        self._count += 1
        self._guard(step, values)
        done = step + 1
        if done % self._around.log.every_steps == 0 or done == self._task.step.steps:
            self._write(done)

    def _guard(self, step: int, values: dict[str, float]) -> None:
        """Names a skipped step; raises NumericsError when there were too many in a row."""
        if not values["unbroken"]:
            return
        name, most = self._task.step.name, self._around.log.max_skipped_steps
        logging.warning("%s: step %d skipped, its loss or gradient is not finite", name, step)
        if values["unbroken"] >= most:
            raise NumericsError(
                f"{name}: {values['unbroken']:.0f} steps in a row, up to step {step}, had a loss or gradient that "
                "is not finite; lower the learning rate, or look at the data of these steps"
            )

    def _write(self, done: int) -> None:
        """Writes a line of means over the steps since the last one."""
        means = {key: total / self._count for key, total in self._sums.items()}
        rates = {**self._clock.rates(), "peak_memory_gb": peak_memory_gb()}
        self._around.metrics.write(self._task.step.name, done, {**means, **rates})
        self._sums, self._count = {}, 0
