"""The one loop, which serves every stage that trains: wait for data, step, read the last metrics, save, stop, show.

Do not reorder it. Step n is dispatched before the metrics of step n - 1 are read, so the device never waits for the
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

from sora_jax.checkpoints import frozen
from sora_jax.checkpoints.checkpoint import Checkpointer
from sora_jax.checkpoints.retention import CheckpointConfig
from sora_jax.core import failure
from sora_jax.core.ahead import Ahead
from sora_jax.core.chips import peak_flops
from sora_jax.core.distributed import from_first, together
from sora_jax.core.errors import NumericsError
from sora_jax.core.sharding import batch_sharding
from sora_jax.core.stop import StopSignal
from sora_jax.data.packing.pipeline import check_resume
from sora_jax.train import dump
from sora_jax.train.clock import StepClock
from sora_jax.train.metrics import MetricsWriter
from sora_jax.train.progress import RunProgress
from sora_jax.train.reporter import HostBatch, LogConfig, Reporter, StepResult, Trouble
from sora_jax.train.snapshots import Snapshots
from sora_jax.train.state import StateMaker, TrainState, with_frozen
from sora_jax.train.step import StepConfig, StepProgram
from sora_jax.train.step_runner import StepRunner, program_name
from sora_jax.train.workdir import Workdir


class OpenBatches(Iterator[HostBatch], Protocol):
    """Batches without end, read ahead until closed."""

    def close(self) -> None:
        """Ends the reading."""
        ...


class Stream(Protocol):
    """Numbered batches without end."""

    def batches(self, start: int) -> OpenBatches:
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
class TrainJob:
    """What one stage trains.

    Attributes:
      program: The jitted step, of `make_step`.
      maker: Builds states.
      initial: The state to start from when nothing was saved yet.
      step: What fixes the step.
      stream: The data.
      show: Called with the state at `log.samples_per_stage` moments.
      validate: Returns what is measured of a state, every `log.validate_every` steps and at the end; None: nothing is.
    """

    program: StepProgram
    maker: StateMaker
    initial: Callable[[], TrainState]
    step: StepConfig
    stream: Stream
    show: Callable[[TrainState, int], None]
    validate: Callable[[TrainState], dict[str, float]] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunContext:
    """Where a run writes and how often, whether it was asked to stop, how far it is, whether other data will do.

    `ahead` compiles programs beside it.
    """

    workdir: Workdir
    metrics: MetricsWriter
    checkpoint: CheckpointConfig
    log: LogConfig
    stop: StopSignal
    progress: RunProgress
    ahead: Ahead
    fresh_data: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Position:
    """How far a stage is, as checkpoints say it.

    Attributes:
      step: Steps done.
      left_out: Batches that rewinds have left out; step n + 1 takes batch n + left_out, from 0.
      rewinds: How many there were.
    """

    step: int = 0
    left_out: int = 0
    rewinds: int = 0

    @property
    def batch(self) -> int:
        """The number of the next batch."""
        return self.step + self.left_out

    def after_a_step(self) -> "Position":
        """Returns the position one step on."""
        return dataclasses.replace(self, step=self.step + 1)

    def facts(self) -> dict[str, int]:
        """Returns it as JSON."""
        return dataclasses.asdict(self)


def train(job: TrainJob, context: RunContext) -> tuple[TrainState, dict[str, Any]]:
    """Returns the state after the last step of a stage, and facts about the way there.

    Goes on from the newest verified checkpoint of the stage, if any; from an older one after a spike to be undone.
    Raises Preempted after saving when asked to stop, NumericsError after bad steps in a row, the last in `failed`.
    """
    name, steps, mesh, stop = job.step.name, job.step.steps, job.maker.mesh, context.stop
    show_at = _moments(steps, context.log.samples_per_stage)
    kept = Snapshots(context.workdir.checkpoints(name), _moments(steps, job.step.ema.snapshots or 0))
    with (
        jax.set_mesh(mesh),
        Checkpointer(context.workdir.checkpoints(name), context.checkpoint, job.step.guard.goes_back) as saver,
        contextlib.closing(_runner(job, context)) as step,
        contextlib.ExitStack() as reading,
    ):
        state, position, notes = _start(job, context, saver, kept)
        clock = StepClock(start=position.step, peak_flops=_peak_flops(mesh), show=context.progress.update)
        _show_what_was_missed(job, context, state, position, show_at)
        batches, reporter = _begin(job, context, position, clock, reading, kept)
        while position.step < steps:
            failure.at(step=position.step + 1)
            with clock.waiting():
                batch = next(batches)
            number, position = position.batch, position.after_a_step()
            state, metrics = step(position.step, state, to_device(batch, mesh))  # dispatched, not waited for
            stop.worked()
            found = reporter.read(StepResult(done=position.step, number=number, batch=batch, metrics=metrics))
            _validate(job, context, clock, state, position.step)
            saver.poll()
            stopped, shows = stop.asked(), position.step in show_at  # asked once: a signal may come at any line
            settle = stopped or shows or position.step in kept.moments or position.step == steps
            saves = saver.due(position.step) or settle
            found = found or (reporter.flush() if saves else None)  # no step is saved before its metrics are read
            if found is not None and found.rewind:
                del state  # before another one takes as much memory
                state, position = _rewind(job, context, saver, position, found.step.done)
                batches, reporter = _begin(job, context, position, clock, reading, kept)
                continue
            if found is not None:
                raise _given_up(job, context, state, found, notes)
            if saves:
                data, loss = position.facts() | job.stream.fingerprint() | notes, reporter.mean_loss(since=saver.newest)
                saver.save(position.step, state.saved, data, context.workdir.config(), loss=loss, settle=settle)
                kept.save(position.step, state, context.workdir.config())
            if stopped:
                stop.check(f"step {position.step} of {name} is saved")
            if shows:
                _show(job, context, clock, state, position)
        stop.kept()
    return state, {"steps": steps, **clock.facts(), **({"rewinds": position.rewinds} if position.rewinds else {})}


def _runner(job: TrainJob, context: RunContext) -> StepRunner:
    """Returns what runs the step, which all processes compile together."""
    return StepRunner(
        together(job.program, every_time=False),
        job.step.scalars,
        before=lambda batch: context.ahead.wait_for(program_name(job.step.name, batch)),
        mesh=job.maker.mesh,
        folder=context.workdir.profile(job.step.name),
        profile=context.log.profile_steps,
    )


def _begin(
    job: TrainJob,
    context: RunContext,
    position: Position,
    clock: StepClock,
    reading: contextlib.ExitStack,
    kept: Snapshots,
) -> tuple[OpenBatches, Reporter]:
    """Returns the batches from a position on, which `reading` closes, and who reads the metrics of their steps.

    Called again after a rewind: lines of metrics, averages that were kept, the progress and the clock go back too.
    """
    name, stream = job.step.name, job.stream
    failure.at(step=position.step)
    context.metrics.truncate(name, position.step)
    kept.forget_after(position.step)
    context.progress.go_on_from(position.step)
    clock.back_to(position.step)
    reporter = Reporter(
        name,
        steps=job.step.steps,
        every=context.log.every_steps,
        guard=job.step.guard,
        clock=clock,
        writer=context.metrics,
        cost=lambda batch: (*stream.tokens(batch), stream.flops(batch)),
        names=stream.names,
    )
    reading.close()
    return reading.enter_context(contextlib.closing(stream.batches(position.batch))), reporter


def _given_up(
    job: TrainJob, context: RunContext, state: TrainState, found: Trouble, notes: Mapping[str, str]
) -> NumericsError:
    """Returns what ends the run, after writing what reproduces the step."""
    names = job.stream.names(found.step.number)
    dump.write_failed(context.workdir, job.step.name, state, found.step, names=names, notes=notes)
    return NumericsError(found.reason)


def _validate(job: TrainJob, context: RunContext, clock: StepClock, state: TrainState, step: int) -> None:
    """Writes what is measured of a state, where it is time, before the step is saved: lines up to a checkpoint stay."""
    every = context.log.validate_every
    if job.validate is None or not every or (step % every and step != job.step.steps):
        return
    jax.block_until_ready(state.step)  # whose time is not that of the measurement
    with clock.paused():
        context.metrics.write(job.step.name, step, job.validate(state))


def _show(job: TrainJob, context: RunContext, clock: StepClock, state: TrainState, position: Position) -> None:
    """Shows a state that is saved."""
    context.stop.kept()  # whoever stops the run need not wait for what is shown
    with clock.paused():
        job.show(state, position.step)


def _show_what_was_missed(
    job: TrainJob, context: RunContext, state: TrainState, position: Position, show_at: set[int]
) -> None:
    """Shows what the last run was stopped before it came to."""
    name, first = job.step.name, position.step
    failure.at(step=first)
    shown = from_first(f"what {name} shows", context.workdir.samples(name, first).exists)
    if first in show_at and not shown:
        job.show(state, first)


def _start(
    job: TrainJob, context: RunContext, saver: Checkpointer, kept: Snapshots
) -> tuple[TrainState, Position, dict[str, str]]:
    """Returns the state to go on from, where it is, and what checkpoints note of its frozen parameters."""
    abstract = job.maker.abstract()
    saver.check_room(abstract.saved)
    kept.check_room(abstract)
    restored = saver.restore(abstract.saved)
    name = job.step.name
    folder = context.workdir.checkpoints(name)
    if restored is None:
        state = job.initial()
        if state.frozen:
            frozen.save_frozen(folder, state.frozen, context.workdir.config(), source=job.maker.source)
        return state, Position(), _notes(state)
    position = position_of(restored.data)
    others = {*position.facts(), frozen.FROZEN}
    fingerprint = {key: value for key, value in restored.data.items() if key not in others}
    reworded, current = context.workdir.reworded(), job.stream.fingerprint()
    changes = check_resume(fingerprint, current, fresh_data=context.fresh_data, reworded=reworded)
    if changes:
        logging.warning("%s: batches from step %d on are those of other data: %s", name, position.step, changes)
    logging.info("%s: going on from step %d", name, position.step)
    state = with_frozen(job.maker, restored, folder)
    kept.save(position.step, state, context.workdir.config())  # where the last run was stopped before it could
    return state, position, _notes(state)


def _notes(state: TrainState) -> dict[str, str]:
    return {frozen.FROZEN: frozen.params_fingerprint(state.frozen)} if state.frozen else {}


def position_of(data: Mapping[str, Any]) -> Position:
    """Returns the position that a checkpoint holds beside the fingerprint of its data."""
    return Position(**{field.name: data[field.name] for field in dataclasses.fields(Position)})


def _rewind(
    job: TrainJob, context: RunContext, saver: Checkpointer, position: Position, spike: int
) -> tuple[TrainState, Position]:
    """Returns an earlier state and a position past the batches that led to a spike; later checkpoints are removed.

    Raises NumericsError after too many rewinds.
    """
    guard, name = job.step.guard, job.step.name
    if position.rewinds >= guard.max_rewinds:
        raise NumericsError(
            f"{name}: a spike at step {spike} after {position.rewinds} rewinds, as many as guard.max_rewinds allows; "
            "lower the learning rate, or look at the data of the steps that the log names"
        )
    restored = saver.rewind(job.maker.abstract().saved, at_most=spike - guard.rewind_steps)
    if restored is None:
        state, before = job.initial(), Position()
    else:
        folder = context.workdir.checkpoints(name)
        state, before = with_frozen(job.maker, restored, folder), position_of(restored.data)
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
