"""The one train step: gradient of any objective, verdict of the guard, update, averages."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sora_jax.core import debugging, rng
from sora_jax.core.compiling import run_often
from sora_jax.core.mean import Mean, values_and_weights
from sora_jax.core.tree import Batch, Params, merge_model
from sora_jax.train.guard import GuardConfig, GuardVerdict, LossStats, judge
from sora_jax.train.optimizer import ScheduleConfig, learning_rate
from sora_jax.train.state import EmaConfig, TrainState, update_ema

Objective = Callable[[Any, Batch, jax.Array], tuple[Mean, dict[str, Mean]]]
Metrics = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class StepScalars:
    """Traced hyperparameters of a stage: stages that differ in these numbers alone share a compiled program.

    Attributes:
      key: uint32, the data of the key that the randomness of each step comes from.
      steps: float32, length of the stage.
      schedule: Learning rate over the stage, float32 numbers.
    """

    key: jax.typing.ArrayLike
    steps: jax.typing.ArrayLike
    schedule: ScheduleConfig


StepProgram = Callable[[TrainState, Batch, StepScalars], tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepConfig:
    """What determines a stage's step besides the objective.

    Attributes:
      name: Name of the stage, part of its random key.
      seed: Seed of the run.
      steps: Length of the stage.
      accumulate: Micro-batches per step; each row belongs to one.
      schedule: Learning rate over the stage.
      ema: Widths of the averages of the weights.
      guard: When a step is skipped, clipped or a spike.
    """

    name: str
    seed: int
    steps: int
    accumulate: int
    schedule: ScheduleConfig
    ema: EmaConfig
    guard: GuardConfig

    @functools.cached_property
    def scalars(self) -> StepScalars:
        """Returns the third argument of the step; the same in every process."""
        return StepScalars(
            key=np.asarray(jax.random.key_data(rng.key(self.seed, self.name))),
            steps=np.float32(self.steps),
            schedule=jax.tree.map(np.float32, self.schedule),
        )


def make_step(
    objective: Objective, structure: Any, optimizer: optax.GradientTransformation, config: StepConfig
) -> StepProgram:
    """Returns the jitted `(state, batch, config.scalars) -> (state, metrics)`; the state is donated.

    The order is: gradient, verdict of the guard, update, averages. A step that the guard does not apply changes
    no weight, moment or average; it is counted in `state.skipped` and `state.consecutive_skips`. After
    `guard.max_skipped_steps` of them in a row no further step is applied, which keeps the state for debugging.

    Frozen parameters enter the forward pass; they have no gradient, moment, average or share in the digest.

    The metrics are float32 scalars: those of the objective and their weights, `loss`, `learning_rate`, global norms
    (`gradient_norm` before clipping, `update_norm`, 0 where nothing was applied, and `param_norm` after the step),
    counters, and `digest`, as `digest_and_norm` has it, after the step.
    """

    def step(state: TrainState, batch: Batch, scalars: StepScalars) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(jnp.asarray(scalars.key)), state.step)
        gradient, loss, metrics = mean_gradient(
            objective, structure, state.params, batch, key, config.accumulate, frozen=state.frozen
        )
        gradient_norm = optax.tree.norm(gradient)

        verdict = judge(config.guard, state.stats, state.consecutive_skips, loss=loss, gradient_norm=gradient_norm)
        gradient = jax.tree.map(lambda g: g * verdict.clip_scale, gradient)
        rate = learning_rate(scalars.schedule, state.step, scalars.steps)

        def update() -> tuple[TrainState, jax.Array]:
            return _updated(state.saved, gradient, optimizer, rate=rate, ema=config.ema, stats=verdict.stats)

        # A branch, not a choice between old and new numbers, for which XLA would copy every moment and weight.
        new, update_norm = jax.lax.cond(verdict.apply, update, lambda: (state.saved, jnp.zeros(())))
        state = _counted(dataclasses.replace(new, frozen=state.frozen), verdict)
        digest, param_norm = digest_and_norm(state.params)
        return state, {
            "loss": loss,
            "gradient_norm": gradient_norm,
            "update_norm": update_norm,
            "param_norm": param_norm,
            "learning_rate": rate,
            **values_and_weights(metrics),
            "skipped": state.skipped,
            "unbroken": state.consecutive_skips,
            "spikes": state.spikes,
            "spiked": verdict.spiked,
            "digest": digest,
        }

    # When debugging, jax runs a step again, operation by operation, and needs its arguments for that.
    return jax.jit(step, donate_argnums=() if debugging.is_on() else 0, compiler_options=run_often())


def _updated(
    state: TrainState,
    gradient: Params,
    optimizer: optax.GradientTransformation,
    *,
    rate: jax.Array,
    ema: EmaConfig,
    stats: LossStats,
) -> tuple[TrainState, jax.Array]:
    """Returns (the state after an update of weights, moments and averages, the global norm of the update)."""
    with jax.named_scope("optimizer"):
        direction, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        updates = jax.tree.map(lambda d: -rate * d, direction)
        params = cast(Params, optax.apply_updates(state.params, updates))
    count = state.updates + 1
    with jax.named_scope("averages"):
        averages = update_ema(state.ema, params, count, ema)
    weights = {"params": params, "ema": averages, "opt_state": opt_state}
    return dataclasses.replace(state, updates=count, stats=stats, **weights), optax.tree.norm(updates)


def _counted(state: TrainState, verdict: GuardVerdict) -> TrainState:
    """Returns the state with the step counted."""
    skipped = 1 - verdict.apply.astype(jnp.int32)
    return dataclasses.replace(
        state,
        step=state.step + 1,
        skipped=state.skipped + skipped,
        consecutive_skips=(state.consecutive_skips + 1) * skipped,
        spikes=state.spikes + verdict.spiked.astype(jnp.int32),
    )


@jax.named_scope("digest")
def digest_and_norm(params: Params) -> tuple[jax.Array, jax.Array]:
    """Returns the digest of all float32 weights that are trained, uint32, and their global norm, float32.

    The digest is the sum of their bits as unsigned integers. It changes if any one element does. Integer sums are
    exact, so it does not depend on the mesh: where two runs, or a run and its replay, agree, their digests do.
    """
    sums = [_bits_and_squares(value) for value in params.values()]
    digest, squares = (functools.reduce(jnp.add, parts) for parts in zip(*sums, strict=True))
    return digest, jnp.sqrt(squares)


def _bits_and_squares(value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the sums of the bits and of the squares of an array, which is read once for both.

    As one reduction: alone, the sum of the bits takes eight times as long on CPU, where XLA first copies the array.
    """
    operands = jax.lax.bitcast_convert_type(value, jnp.uint32), jnp.square(value)
    zeros = jnp.zeros((), jnp.uint32), jnp.zeros((), jnp.float32)
    return jax.lax.reduce(operands, zeros, lambda a, b: (a[0] + b[0], a[1] + b[1]), tuple(range(value.ndim)))


@jax.named_scope("gradient")
def mean_gradient(
    objective: Objective,
    structure: Any,
    params: Params,
    batch: Batch,
    key: jax.Array,
    accumulate: int,
    *,
    frozen: Params | None = None,
) -> tuple[Params, jax.Array, dict[str, Mean]]:
    """Returns (gradient by `params`, loss, metrics) of the mean loss over the whole batch; `frozen` are all others.

    Sums and weights are added up over the micro-batches and divided once, so the result does not depend on how a batch
    with unequal weights is cut.
    """

    def summed(params: Params, part: Batch, key: jax.Array) -> tuple[jax.Array, tuple[Mean, dict[str, Mean]]]:
        loss, metrics = objective(merge_model(structure, {**(frozen or {}), **params}), part, key)
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
