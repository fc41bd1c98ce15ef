"""The one train step: gradient of any objective, guarded update, EMA."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sora_jax.core import rng
from sora_jax.core.mean import Mean
from sora_jax.core.tree import Params, merge_model
from sora_jax.train.guard import GuardConfig
from sora_jax.train.optimizer import ScheduleConfig, learning_rate
from sora_jax.train.state import EmaConfig, TrainState, update_ema

Batch = dict[str, jax.Array]
Objective = Callable[[Any, Batch, jax.Array], tuple[Mean, dict[str, Mean]]]
Metrics = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Course:
    """What a step is told of its stage: numbers, so that stages that differ in these alone share a compiled program.

    Attributes:
      key: uint32, the data of the key that the randomness of each step comes from.
      steps: float32, length of the stage.
      schedule: Learning rate over the stage, float32 numbers.
    """

    key: jax.typing.ArrayLike
    steps: jax.typing.ArrayLike
    schedule: ScheduleConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepConfig:
    """What fixes a stage's step besides the objective.

    Attributes:
      name: Of the stage; part of the randomness.
      seed: Of the run.
      steps: Length of the stage.
      accumulate: Micro-batches per step; each row belongs to one.
      schedule: Learning rate over the stage.
      ema: The tracks.
      guard: What counts as a bad step.
    """

    name: str
    seed: int
    steps: int
    accumulate: int
    schedule: ScheduleConfig
    ema: EmaConfig
    guard: GuardConfig

    @functools.cached_property
    def course(self) -> Course:
        """Returns what the step is told; the same in every process."""
        return Course(
            key=np.asarray(jax.random.key_data(rng.key(self.seed, self.name))),
            steps=np.float32(self.steps),
            schedule=jax.tree.map(np.float32, self.schedule),
        )


def make_step(
    objective: Objective, structure: Any, optimizer: optax.GradientTransformation, config: StepConfig
) -> Callable[[TrainState, Batch, Course], tuple[TrainState, Metrics]]:
    """Returns the jitted `(state, batch, config.course) -> (state, metrics)`; the state is donated.

    A step whose loss or gradient norm is not finite changes no weight, moment or average: it is counted in
    `state.skipped`, and `state.unbroken` says how many came in a row; after `guard.max_skipped_steps` of them all
    others change nothing either, so that what led there can be looked at. Spikes are counted, and left out if
    `guard` says so. The metric `digest` is `weights_digest` after the step.
    """

    guard = config.guard

    def step(state: TrainState, batch: Batch, course: Course) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(jnp.asarray(course.key)), state.step)
        gradient, loss, metrics = mean_gradient(objective, structure, state.params, batch, key, config.accumulate)
        norm = optax.tree.norm(gradient)
        seen_2 = jnp.stack([loss, norm]).astype(jnp.float32)
        finite = jnp.all(jnp.isfinite(seen_2))
        spiked = jnp.zeros((), bool)
        if guard.spike_deviations is not None:
            limit_2 = state.usual.limit_2(guard.spike_deviations, window=guard.window)
            spiked = finite & jnp.any(seen_2 > limit_2)
            seen_2 = jnp.minimum(seen_2, limit_2)  # or one spike would make the next one usual
        if guard.clip_deviations is not None:
            limit = state.usual.limit_2(guard.clip_deviations, window=guard.window)[1]
            gradient = jax.tree.map(lambda g: g * jnp.minimum(1.0, limit / norm), gradient)
        taken = finite & (state.unbroken < guard.max_skipped_steps)
        if guard.on_spike == "skip":
            taken &= ~spiked
        rate = learning_rate(course.schedule, state.step, course.steps)

        def updated() -> TrainState:
            direction, opt_state = optimizer.update(gradient, state.opt_state, state.params)
            params = jax.tree.map(lambda p, d: p - rate * d, state.params, direction)
            updates = state.updates + 1
            return dataclasses.replace(
                state,
                updates=updates,
                usual=state.usual.after(seen_2, window=guard.window),
                params=params,
                ema=update_ema(state.ema, params, updates, config.ema),
                opt_state=opt_state,
            )

        skipped = 1 - taken.astype(jnp.int32)
        # A branch, not a choice between old and new numbers, for which XLA would copy every moment and weight.
        state = dataclasses.replace(
            jax.lax.cond(taken, updated, lambda: state),
            step=state.step + 1,
            skipped=state.skipped + skipped,
            unbroken=(state.unbroken + 1) * skipped,
            spikes=state.spikes + spiked.astype(jnp.int32),
        )
        scalars = {name: mean.value() for name, mean in metrics.items()}
        counts = {"skipped": state.skipped, "unbroken": state.unbroken, "spikes": state.spikes, "spiked": spiked}
        counts["digest"] = weights_digest(state.params)
        return state, {"loss": loss, "gradient_norm": norm, "learning_rate": rate, **scalars, **counts}

    return jax.jit(step, donate_argnums=0)


def weights_digest(params: Params) -> jax.Array:
    """Returns the sum of the bits of all float32 weights as unsigned numbers, uint32.

    Any one element that is otherwise changes it, and, since such sums are exact, no order of devices does: two runs, or
    a run and its replay, are the same as long as these numbers are.
    """
    sums = [jnp.sum(jax.lax.bitcast_convert_type(value, jnp.uint32), dtype=jnp.uint32) for value in params.values()]
    return functools.reduce(jnp.add, sums)


def mean_gradient(
    objective: Objective, structure: Any, params: Params, batch: Batch, key: jax.Array, accumulate: int
) -> tuple[Params, jax.Array, dict[str, Mean]]:
    """Returns (gradient, loss, metrics) of the mean loss over the whole batch.

    Sums and weights are added up over the micro-batches and divided once, so the result does not depend on how a batch
    with unequal weights is cut.
    """

    def summed(params: Params, part: Batch, key: jax.Array) -> tuple[jax.Array, tuple[Mean, dict[str, Mean]]]:
        loss, metrics = objective(merge_model(structure, params), part, key)
        return loss.sum, (loss, metrics)

    differentiate = jax.grad(summed, has_aux=True)
    if accumulate == 1:
        gradient, (loss, metrics) = differentiate(params, batch, key)
    else:
        # Rows i, i + accumulate, ... form a part, so each device's rows stay on it.
        parts = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0), batch)
        keys = jax.random.split(key, accumulate)

        def add(total: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, differentiate(params, *part)), None

        first = differentiate(params, jax.tree.map(lambda x: x[0], parts), keys[0])
        rest = jax.tree.map(lambda x: x[1:], parts)
        (gradient, (loss, metrics)), _ = jax.lax.scan(add, first, (rest, keys[1:]))
    weight = jnp.maximum(loss.weight, 1e-30)
    return jax.tree.map(lambda g: g / weight, gradient), loss.value(), metrics
