"""What is usual in a stage, and what is done about a step that is not.

The loss and the norm of the gradient are followed by running means and variances, which are part of the training state:
so a resumed run judges as an uninterrupted one, and so does every process of several.
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
      max_skipped_steps: Steps in a row that may change nothing; then the run ends.
      window: Updates over which means and variances run. Nothing is unusual before there were as many.
      clip_deviations: The gradient is scaled down to the usual norm plus so many standard deviations (as in ZClip,
        arXiv 2504.02507, section 3.2, which lets less of a larger one through); None: only `optimizer.clip_norm`.
      spike_deviations: A loss or norm beyond the usual by so many is a spike; None: there are none.
      on_spike: "warn": the step is taken and named. "skip": it changes nothing. "rewind": training goes back to a
        checkpoint and leaves out what it met (PaLM, arXiv 2204.02311, section 5.1).
      rewind_steps: How far back at least, steps; PaLM went about 100.
      rewind_batches: Batches left out from the spike on; PaLM left out 200 to 500.
      max_rewinds: In a stage; then the run ends.
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Usual:
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
    def nothing(cls) -> "Usual":
        """Returns what is known before the first step."""
        return cls(count=jnp.zeros((), jnp.int32), mean_2=jnp.zeros(2), variance_2=jnp.zeros(2))

    def limit_2(self, deviations: float, *, window: int) -> jax.Array:
        """Returns the largest loss and norm within so many standard deviations; infinite while too little is known."""
        deviation_2 = jnp.maximum(jnp.sqrt(self.variance_2), _LEAST_DEVIATION * jnp.abs(self.mean_2))
        return jnp.where(self.count >= window, self.mean_2 + deviations * deviation_2, jnp.inf)

    def after(self, seen_2: jax.Array, *, window: int) -> "Usual":
        """Returns what is usual after one more loss and norm."""
        count = self.count + 1
        share = 1.0 / jnp.minimum(count, window).astype(jnp.float32)
        change_2 = seen_2 - self.mean_2
        return Usual(
            count=count,
            mean_2=self.mean_2 + share * change_2,
            variance_2=(1 - share) * (self.variance_2 + share * change_2**2),
        )


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
