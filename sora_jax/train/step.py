"""The one train step: gradient of any objective, guarded update, EMA."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sora_jax.core import rng
from sora_jax.core.mean import Mean
from sora_jax.core.tree import Params, merge_model
from sora_jax.train.optimizer import ScheduleConfig, learning_rate
from sora_jax.train.state import EmaConfig, TrainState, update_ema

Batch = dict[str, jax.Array]
Objective = Callable[[Any, Batch, jax.Array], tuple[Mean, dict[str, Mean]]]
Metrics = dict[str, jax.Array]


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
    """

    name: str
    seed: int
    steps: int
    accumulate: int
    schedule: ScheduleConfig
    ema: EmaConfig


def make_step(
    objective: Objective, structure: Any, optimizer: optax.GradientTransformation, config: StepConfig
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns the jitted `(state, batch) -> (state, metrics)`; the state is donated.

    A step whose loss or gradient norm is not finite changes no weight, moment or average: it is counted in
    `state.skipped`, and `state.unbroken` says how many came in a row.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = rng.key(config.seed, config.name, state.step)
        gradient, loss, metrics = mean_gradient(objective, structure, state.params, batch, key, config.accumulate)
        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        rate = learning_rate(config.schedule, state.step, config.steps)
        direction, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = jax.tree.map(lambda p, d: p - rate * d, state.params, direction)
        updates = state.updates + 1
        ema = update_ema(state.ema, params, updates, config.ema)

        def guarded(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

        skipped = 1 - finite.astype(jnp.int32)
        state = TrainState(
            step=state.step + 1,
            updates=guarded(updates, state.updates),
            skipped=state.skipped + skipped,
            unbroken=(state.unbroken + 1) * skipped,
            params=guarded(params, state.params),
            ema=guarded(ema, state.ema),
            opt_state=guarded(opt_state, state.opt_state),
        )
        scalars = {name: mean.value() for name, mean in metrics.items()}
        counts = {"skipped": state.skipped, "unbroken": state.unbroken}
        return state, {"loss": loss, "gradient_norm": norm, "learning_rate": rate, **scalars, **counts}

    return jax.jit(step, donate_argnums=0)


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
