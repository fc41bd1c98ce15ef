"""Reads the metrics of each step one step late, writes metrics.jsonl, and finds spikes and runs of skipped steps."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import numpy as np
from absl import logging

from sora_jax.core.config import at_least_one
from sora_jax.core.errors import UserError
from sora_jax.core.mean import weight_name
from sora_jax.train.clock import StepClock, device_memory_gb, peak_memory_gb
from sora_jax.train.guard import GuardConfig
from sora_jax.train.metrics import MetricsWriter

HostBatch = dict[str, np.ndarray]

# Counters of the state and the digest: the last value is written, not a mean over steps.
_COUNTS = ("skipped", "unbroken", "spikes", "digest")
# Names of samples listed in a warning; a batch may hold thousands.
_MOST_NAMED = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
    """How often a stage reports, validates and shows, and of which steps, first and last, it writes a trace."""

    every_steps: int
    samples_per_stage: int
    validate_every: int | None
    profile_steps: tuple[int, int] | None

    def __post_init__(self):
        at_least_one(self, "every_steps")
        if self.profile_steps is not None and not 1 <= self.profile_steps[0] <= self.profile_steps[1]:
            raise UserError(
                f"profile_steps {self.profile_steps} must be the first and the last step of a trace, counted from 1, "
                "such as (10, 13); None: no trace"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepResult:
    """A step that was dispatched.

    Attributes:
      done: Number of the step, 1-based.
      number: Number of its batch.
      batch: This process's part of the batch.
      metrics: Scalars that the step returned; the device may still be computing them.
    """

    done: int
    number: int
    batch: HostBatch
    metrics: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trouble:
    """A step after which training must rewind or end.

    Attributes:
      step: The step.
      rewind: True: a loss spike; training goes back to a checkpoint and leaves out the batches that led to the spike.
        False: the run ends.
      reason: The message of the error that ends it.
    """

    step: StepResult
    rewind: bool
    reason: str


class Reporter:
    """Collects metrics one step late and writes a line every `every` steps, and at the last of `steps`.

    `cost` gives (real tokens, possible tokens, FLOPs) of a batch, `names` what the batch of a number is made of.
    """

    def __init__(
        self,
        stage: str,
        *,
        steps: int,
        every: int,
        guard: GuardConfig,
        clock: StepClock,
        writer: MetricsWriter,
        cost: Callable[[HostBatch], tuple[int, int, float]],
        names: Callable[[int], list[str]],
    ):
        self._stage, self._steps, self._every, self._guard = stage, steps, every, guard
        self._clock, self._writer, self._cost, self._names = clock, writer, cost, names
        self._pending: StepResult | None = None
        self._finite: list[dict[str, float]] = []
        self._losses: dict[int, float] = {}

    def read(self, step: StepResult) -> Trouble | None:
        """Takes a step and reads the metrics of the one before it; returns what is wrong with that one, if anything."""
        late, self._pending = self._pending, step
        return None if late is None else self._read(late)

    def flush(self) -> Trouble | None:
        """Reads the metrics that are still pending, as `read` does; the device is then idle."""
        late, self._pending = self._pending, None
        return None if late is None else self._read(late)

    def mean_loss(self, *, since: int) -> float | None:
        """Returns the mean of the finite losses after step `since`; None if there is none."""
        self._losses = {step: loss for step, loss in self._losses.items() if step > since}
        return sum(self._losses.values()) / len(self._losses) if self._losses else None

    def _read(self, step: StepResult) -> Trouble | None:
        values = {name: float(value) for name, value in jax.device_get(step.metrics).items()}
        real, possible, flops = self._cost(step.batch)
        self._clock.step_done(loss=values["loss"], tokens=real, capacity=possible, flops=flops)
        counts, spiked = {name: values.pop(name) for name in _COUNTS}, values.pop("spiked")
        if not counts["unbroken"]:
            self._finite.append(values)
            self._losses[step.done] = values["loss"]
        if step.done % self._every == 0 or step.done == self._steps:
            self._write(step.done, counts)
        if spiked:
            self._warn_of_spike(step, values)
        if counts["unbroken"]:
            self._warn_of_skipped(step, spiked=bool(spiked))
        if counts["unbroken"] >= self._guard.max_skipped_steps:
            return Trouble(step=step, rewind=False, reason=self._given_up(step, round(counts["unbroken"])))
        if spiked and self._guard.on_spike == "rewind":
            return Trouble(step=step, rewind=True, reason=f"{self._stage}: a spike at step {step.done}")
        return None

    def _warn_of_spike(self, step: StepResult, values: dict[str, float]) -> None:
        logging.warning(
            "%s: step %d is a spike: loss %.4g, gradient norm %.4g; its batch %d is of %s",
            *(self._stage, step.done, values["loss"], values["gradient_norm"], step.number, self._named(step.number)),
        )

    def _warn_of_skipped(self, step: StepResult, *, spiked: bool) -> None:
        why = "it is left out" if spiked else "its loss or gradient is not finite"
        logging.warning(
            "%s: step %d changed nothing, %s; its batch %d is of %s",
            *(self._stage, step.done, why, step.number, self._named(step.number)),
        )

    def _given_up(self, step: StepResult, skips: int) -> str:
        return (
            f"{self._stage}: {skips} steps in a row, up to step {step.done}, had a loss or gradient that is not "
            "finite or far beyond what is usual; lower the learning rate, or look at the data of these steps"
        )

    def _named(self, number: int) -> str:
        names = self._names(number)
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        return ", ".join(names[:_MOST_NAMED]) + more

    def _write(self, done: int, counts: dict[str, float]) -> None:
        """Writes a line of means over the steps since the last one, those left out that changed nothing."""
        steps, self._finite = self._finite, []
        means = _means(steps)
        rates = {**self._clock.rates(), "peak_memory_gb": peak_memory_gb(), **device_memory_gb()}
        self._writer.write(self._stage, done, {"loss": math.nan, **means, **counts, **rates})


def _means(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """Returns the mean over steps of each metric, weighted as each step weighed it; none of what had no weight."""
    names = steps[0] if steps else {}
    weights, found = {weight_name(name) for name in names}, {}
    for name in (name for name in names if name not in weights):
        weighed = [(step.get(weight_name(name), 1.0), step[name]) for step in steps]
        if (total := sum(weight for weight, _ in weighed)) > 0:
            found[name] = sum(weight * value for weight, value in weighed if weight > 0) / total
    return found
