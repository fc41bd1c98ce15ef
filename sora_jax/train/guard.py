"""Whether a step is applied, how far its gradient is clipped, and whether it is a loss spike.

This is decided from running means and variances of the loss and of the gradient norm. They are part of the training
state, so a resumed run decides as an uninterrupted one, and every process decides the same.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from sora_jax.core.errors import UserError

# A deviation is at least this share of the mean: where a loss hardly varies, a thousandth more is no spike.
_LEAST_DEVIATION = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """When a step counts as bad, and what follows.

    Attributes:
      max_skipped_steps: The run ends after so many skipped steps in a row.
      window: Updates over which means and variances run. Before there were as many, nothing is clipped or a spike.
      clip_deviations: Gradients are scaled down to the mean norm plus so many standard deviations (as in ZClip,
        arXiv 2504.02507, section 3.2, which scales a larger one down further); None: only `optimizer.clip_norm`.
      spike_deviations: A loss or norm beyond its mean by so many standard deviations is a spike; None: there are none.
      on_spike: "warn": the step is applied, and logged. "skip": it is not applied. "rewind": training goes back to a
        checkpoint and leaves out the batches that led to the spike (PaLM, arXiv 2204.02311, section 5.1).
      rewind_steps: Least steps between the spike and that checkpoint; PaLM took about 100.
      rewind_batches: Batches left out from the spike on; PaLM left out 200 to 500.
      max_rewinds: The run ends at the next spike after so many rewinds in a stage.
    """

    max_skipped_steps: int
    window: int
    clip_deviations: float | None
    spike_deviations: float | None
    on_spike: Literal["warn", "skip", "rewind"]
    rewind_steps: int
    rewind_batches: int
    max_rewinds: int

    def __post_init__(self):
        for name in ("max_skipped_steps", "window", "rewind_steps", "rewind_batches", "max_rewinds"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("clip_deviations", "spike_deviations"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"{name} is {value:g}: it must be more than 0, or None; 3 to 6 are usual")
        if self.on_spike != "warn" and self.spike_deviations is None:
            raise UserError(
                f"on_spike {self.on_spike!r} needs to know what a spike is: set spike_deviations, such as 6"
            )

    @property
    def goes_back(self) -> int | None:
        """Steps that a spike takes training back at least; None where it takes it nowhere."""
        return self.rewind_steps if self.on_spike == "rewind" else None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LossStats:
    """Running mean and variance of the loss and of the norm of the gradient, in this order; float32.

    Attributes:
      count: int32, steps seen.
      mean_2: Over about the last `window` of them.
      variance_2: Around that mean.
    """

    count: jax.Array
    mean_2: jax.Array
    variance_2: jax.Array

    @classmethod
    def nothing(cls) -> "LossStats":
        """Returns the statistics before the first step."""
        return cls(count=jnp.zeros((), jnp.int32), mean_2=jnp.zeros(2), variance_2=jnp.zeros(2))

    def threshold_2(self, deviations: float, *, window: int) -> jax.Array:
        """Returns the largest loss and norm within so many standard deviations; infinite while too little is known."""
        deviation_2 = jnp.maximum(jnp.sqrt(self.variance_2), _LEAST_DEVIATION * jnp.abs(self.mean_2))
        return jnp.where(self.count >= window, self.mean_2 + deviations * deviation_2, jnp.inf)

    def after(self, observed_2: jax.Array, *, window: int) -> "LossStats":
        """Returns the statistics after one more loss and norm."""
        count = self.count + 1
        share = 1.0 / jnp.minimum(count, window).astype(jnp.float32)
        change_2 = observed_2 - self.mean_2
        return LossStats(
            count=count,
            mean_2=self.mean_2 + share * change_2,
            variance_2=(1 - share) * (self.variance_2 + share * change_2**2),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuardVerdict:
    """What is done with one step; traced scalars.

    Attributes:
      apply: bool, whether it may change weights, moments and averages.
      clip_scale: float32 in (0, 1], what the gradient is multiplied by.
      spiked: bool, whether loss or norm is beyond `spike_deviations`.
      stats: The statistics after the step, if it is applied.
    """

    apply: jax.Array
    clip_scale: jax.Array
    spiked: jax.Array
    stats: LossStats


@jax.named_scope("guard")
def judge(
    config: GuardConfig, stats: LossStats, consecutive_skips: jax.Array, *, loss: jax.Array, gradient_norm: jax.Array
) -> GuardVerdict:
    """Returns the verdict on a step, given the statistics of those before it; float32 scalars.

    A step is applied if loss and norm are finite, fewer than `max_skipped_steps` were skipped just before it, and it is
    no spike that `on_spike` skips.
    """
    observed_2 = jnp.stack([loss, gradient_norm]).astype(jnp.float32)
    finite = jnp.all(jnp.isfinite(observed_2))
    spiked = jnp.zeros((), bool)
    if config.spike_deviations is not None:
        threshold_2 = stats.threshold_2(config.spike_deviations, window=config.window)
        spiked = finite & jnp.any(observed_2 > threshold_2)
        observed_2 = jnp.minimum(observed_2, threshold_2)  # or one spike would make the next one usual
    clip_scale = jnp.ones(())
    if config.clip_deviations is not None:
        largest = stats.threshold_2(config.clip_deviations, window=config.window)[1]
        clip_scale = jnp.minimum(1.0, largest / gradient_norm)
    apply = finite & (consecutive_skips < config.max_skipped_steps)
    if config.on_spike == "skip":
        apply &= ~spiked
    stats = stats.after(observed_2, window=config.window)
    return GuardVerdict(apply=apply, clip_scale=clip_scale, spiked=spiked, stats=stats)


# Only what is not finite is left out: for steps that are timed or compared.
ONLY_FINITE = GuardConfig(
    max_skipped_steps=10,
    window=100,
    clip_deviations=None,
    spike_deviations=None,
    on_spike="warn",
    rewind_steps=100,
    rewind_batches=200,
    max_rewinds=5,
)
