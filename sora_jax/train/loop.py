"""The one loop: it serves every stage that trains, and reads as chapters.

Order matters here. Step n is dispatched before the metrics of step n - 1 are read, so the device never waits for the
log. The data position of a checkpoint is its step, because batches are numbered, and how many were left out: also where
the data changed and the run was told to go on, as batch n of an endless random order is as good a place as batch 0.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
from absl import logging
from jax.sharding import Mesh, NamedSharding

from sora_jax.checkpoints.checkpoint import Checkpointer
from sora_jax.checkpoints.retention import CheckpointConfig
from sora_jax.core import failure
from sora_jax.core.chips import peak_flops
from sora_jax.core.distributed import from_first, together
from sora_jax.core.errors import NumericsError
from sora_jax.core.sharding import batch_sharding
from sora_jax.core.stop import StopSignal
from sora_jax.core.tree import abstract_model
from sora_jax.data.packing.pipeline import check_resume
from sora_jax.train import dump
from sora_jax.train.clock import StepClock
from sora_jax.train.metrics import MetricsWriter
from sora_jax.train.progress import RunProgress
from sora_jax.train.reporter import HostBatch, LogConfig, Reporter, Spiked, Told
from sora_jax.train.state import StateMaker, TrainState
from sora_jax.train.step import Objective, StepConfig, make_step
from sora_jax.train.workdir import Workdir


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

    def names(self, number: int) -> list[str]:
        """Returns what the samples of batch `number` are called."""
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Where a run writes and how often, whether it was asked to stop, how far it is, whether other data will do."""

    workdir: Workdir
    metrics: MetricsWriter
    checkpoint: CheckpointConfig
    log: LogConfig
    stop: StopSignal
    progress: RunProgress
    fresh_data: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Position:
    """How far a stage is, as checkpoints say it.

    Attributes:
      step: Steps done.
      left_out: Batches that rewinds have left out; step n + 1 takes batch n + left_out.
      rewinds: How many there were.
    """

    step: int = 0
    left_out: int = 0
    rewinds: int = 0


def train(task: Task, around: Surroundings) -> tuple[TrainState, dict[str, Any]]:
    """Returns the state after the last step of a stage, and facts about the way there.

    Goes on from the newest verified checkpoint of the stage, if any, and from an older one after a spike that is to be
    undone. Raises Preempted after saving when asked to stop, NumericsError after too many bad steps in a row, having
    written what reproduces the last of them to the workdir's `failed`.
    """
    name, mesh = task.step.name, task.maker.mesh
    with jax.set_mesh(mesh), Checkpointer(around.workdir.checkpoints(name), around.checkpoint) as saver:
        state, position = _start(task, saver, fresh_data=around.fresh_data)
        stretch = _Stretch(task, around, saver)
        around.progress.go_on_from(position.step)
        clock = StepClock(start=position.step, peak_flops=_peak_flops(mesh), show=around.progress.update)
        state, spike = stretch(state, position, clock)
        while spike is not None:
            del state  # before another one takes as much memory
            state, position = _rewind(task, saver, position, spike)
            clock.back_to(position.step)
            around.progress.go_on_from(position.step)
            state, spike = stretch(state, position, clock)
        around.stop.kept()
        facts = clock.facts() | ({"rewinds": position.rewinds} if position.rewinds else {})
    return state, {"steps": task.step.steps, **facts}


class _Stretch:
    """Steps from a position to the end of a stage."""

    def __init__(self, task: Task, around: Surroundings, saver: Checkpointer):
        self._task, self._around, self._saver = task, around, saver
        structure, _, axes = abstract_model(task.maker.build)
        step = make_step(task.objective, structure, task.maker.make_optimizer(axes), task.step)
        self._step, self._scalars = together(step, every_time=False), task.step.scalars
        self._show_at = _moments(task.step.steps, around.log.samples_per_stage)

    def __call__(self, state: TrainState, position: Position, clock: StepClock) -> tuple[TrainState, int | None]:
        """Returns the state at the end and None, or after the step of a spike that is to be undone, and that step.

        Raises as `train`.
        """
        task, around, first = self._task, self._around, position.step
        failure.at(step=first)
        around.metrics.truncate(task.step.name, first)
        self._show_what_was_missed(state, first)
        report = self._reporter(clock)
        with contextlib.closing(task.stream.batches(first + position.left_out)) as batches:
            for done in range(first + 1, task.step.steps + 1):
                failure.at(step=done)
                with clock.waiting():
                    host_batch = next(batches)
                state, metrics = self._step(state, to_device(host_batch, task.maker.mesh), self._scalars)
                around.stop.worked()
                number = done - 1 + position.left_out
                try:
                    report(Told(done=done, number=number, batch=host_batch, metrics=metrics))
                    self._after(done, state, position, report, clock)
                except Spiked as spike:
                    return state, spike.done
                except NumericsError:
                    if report.bad is not None:
                        names = task.stream.names(report.bad.number)
                        dump.write(around.workdir, task.step.name, state, report.bad, names=names)
                    raise
        return state, None

    def _show_what_was_missed(self, state: TrainState, first: int) -> None:
        """Shows what the last run was stopped before it came to."""
        workdir, name = self._around.workdir, self._task.step.name
        shown = from_first(f"what {name} shows", workdir.samples(name, first).exists)
        if first in self._show_at and not shown:
            self._task.show(state, first)

    def _reporter(self, clock: StepClock) -> Reporter:
        task, stream = self._task, self._task.stream
        return Reporter(
            task.step.name,
            steps=task.step.steps,
            every=self._around.log.every_steps,
            guard=task.step.guard,
            clock=clock,
            writer=self._around.metrics,
            cost=lambda batch: (*stream.tokens(batch), stream.flops(batch)),
            names=stream.names,
        )

    def _after(self, done: int, state: TrainState, position: Position, report: Reporter, clock: StepClock) -> None:
        """Saves, stops and shows, where it is time to."""
        task, around, saver = self._task, self._around, self._saver
        saver.poll()
        stopped = around.stop.asked()  # once: a signal may come at any line
        shows = done in self._show_at
        settle = stopped or shows or done == task.step.steps
        if saver.due(done) or settle:
            report.flush()
            here = dataclasses.asdict(dataclasses.replace(position, step=done))
            data, loss = {**here, **task.stream.fingerprint()}, report.mean_loss(since=saver.newest)
            saver.save(done, state, data, around.workdir.config(), loss=loss, settle=settle)
        if stopped:
            around.stop.check(f"step {done} of {task.step.name} is saved")
        if shows:
            around.stop.kept()  # whoever stops the run need not wait for what is shown
            with clock.paused():
                task.show(state, done)


def _start(task: Task, saver: Checkpointer, *, fresh_data: bool) -> tuple[TrainState, Position]:
    """Returns the state to go on from and where it is."""
    abstract = task.maker.abstract()
    saver.check_room(abstract)
    restored = saver.restore(abstract)
    if restored is None:
        return task.initial(), Position()
    name = task.step.name
    position = position_of(restored.data)
    fingerprint = {key: value for key, value in restored.data.items() if key not in dataclasses.asdict(position)}
    changes = check_resume(fingerprint, task.stream.fingerprint(), fresh_data=fresh_data)
    if changes:
        logging.warning("%s: batches from step %d on are those of other data: %s", name, position.step, changes)
    logging.info("%s: going on from step %d", name, position.step)
    return restored.state, position


def position_of(data: Mapping[str, Any]) -> Position:
    """Returns the position that a checkpoint holds beside the fingerprint of its data."""
    return Position(**{field.name: data[field.name] for field in dataclasses.fields(Position)})


def _rewind(task: Task, saver: Checkpointer, position: Position, spike: int) -> tuple[TrainState, Position]:
    """Returns an earlier state and a position past the batches that led to a spike; later checkpoints are removed.

    Raises NumericsError after too many rewinds.
    """
    guard, name = task.step.guard, task.step.name
    if position.rewinds >= guard.max_rewinds:
        raise NumericsError(
            f"{name}: a spike at step {spike} after {position.rewinds} rewinds, as many as guard.max_rewinds allows; "
            "lower the learning rate, or look at the data of the steps that the log names"
        )
    restored = saver.rewind(task.maker.abstract(), at_most=spike - guard.rewind_steps)
    state, before = (task.initial(), Position()) if restored is None else (restored.state, position_of(restored.data))
    met = spike - 1 + position.left_out  # the number of the batch of the spike
    left_out = met + guard.rewind_batches - before.step
    logging.warning(
        "%s: back from step %d to step %d; goes on with batch %d, leaving out those before it",
        *(name, spike, before.step, before.step + left_out),
    )
    return state, Position(step=before.step, left_out=left_out, rewinds=position.rewinds + 1)


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
