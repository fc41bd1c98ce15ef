"""Optimizers from optax, with the learning rate left to the train step."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from sora_jax.core.tree import Axes, Params
from sora_jax.nn.lora import is_factor
from sora_jax.nn.scaling import rate_multiplier
from sora_jax.train.muon import scale_by_muon


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How gradients become updates.

    Attributes:
      name: "adamw", or "muon": orthogonalised momentum for the matrices of the blocks, and for all else NAdam, which is
        Adam with Nesterov momentum (Dozat 2016); the decay is decoupled, as in AdamW.
      b1: Decay of the first moment.
      b2: Decay of the second moment.
      weight_decay: Decoupled decay of matrices, times the learning rate.
      clip_norm: Global norm that gradients are scaled down to.
    """

    name: Literal["adamw", "muon"]
    b1: float
    b2: float
    weight_decay: float
    clip_norm: float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate over the steps of a stage: a linear rise, a plateau, a linear fall.

    Attributes:
      learning_rate: Of the plateau.
      warmup_steps: Length of the rise from 0.
      decay_share: Share of the stage, at its end, over which the rate falls.
      final_share: What is left of the rate at the end, as a share of it.
    """

    learning_rate: float
    warmup_steps: int
    decay_share: float
    final_share: float


def make_optimizer(
    config: OptimizerConfig, axes: Axes, *, base: Mapping[str, tuple[int, ...]] | None = None
) -> optax.GradientTransformation:
    """Returns clip -> moments -> weight decay, at learning rate 1; the step multiplies by `-learning_rate`.

    `base` are the shapes of the parameters at the width whose rates are given (`nn.scaling`); None: at this one.
    """
    matrices = {name: is_matrix(name, axes[name]) for name in axes}
    if config.name == "adamw":
        scale = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=1e-8)
    else:
        labels = {name: "muon" if matrix else "adam" for name, matrix in matrices.items()}
        rest = optax.scale_by_adam(b1=config.b1, b2=config.b2, nesterov=True)
        scale = optax.partition({"muon": scale_by_muon(axes, decay=config.b1), "adam": rest}, labels)
    # Factors of adapters are decayed, and not made orthogonal: that is of a map, not of its factors.
    decayed = {name: matrices[name] or is_factor(name) for name in axes}
    decay = optax.add_decayed_weights(config.weight_decay, mask=decayed)
    clip = optax.clip_by_global_norm(config.clip_norm)
    if base is None:
        return optax.chain(clip, scale, decay)
    orthogonal = {name: matrix and config.name == "muon" for name, matrix in matrices.items() if decayed[name]}
    return optax.chain(clip, scale, _at_width(base, axes, orthogonal), decay)


def _at_width(
    base: Mapping[str, tuple[int, ...]], axes: Axes, orthogonal: Mapping[str, bool]
) -> optax.GradientTransformation:
    """Returns what multiplies the updates of kernels, `orthogonal` or not, by what their width asks for."""

    def scaled(updates: Any, _: Any) -> Params:
        def multiplier(name: str) -> float:
            return rate_multiplier(updates[name].shape, base[name], axes[name], orthogonal=orthogonal[name])

        return {n: multiplier(n) * value if n in orthogonal else value for n, value in updates.items()}

    return optax.stateless(scaled)


def is_matrix(name: str, axes: tuple[str | None, ...]) -> bool:
    """Returns whether a parameter is a linear map or a convolution, stacked over layers or not."""
    return name.endswith("kernel") and len(axes) >= 2


def learning_rate(config: ScheduleConfig, step: jax.Array, steps: jax.typing.ArrayLike) -> jax.Array:
    """Returns the float32 learning rate of `step` (0-based) of a stage of `steps`; numbers may be traced."""
    step = step.astype(jnp.float32)
    rise = jnp.minimum((step + 1) / jnp.maximum(1.0, config.warmup_steps), 1.0)
    left = (steps - step) / jnp.maximum(1.0, config.decay_share * steps)
    fall = config.final_share + (1 - config.final_share) * jnp.clip(left, 0.0, 1.0)
    return config.learning_rate * rise * fall
