"""Means that stay exact when batches, devices and accumulation steps are combined."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Mean(NamedTuple):
    """A mean kept as (sum, weight) until the last moment; both float32 scalars (or equal shapes)."""

    sum: jax.Array
    weight: jax.Array

    @classmethod
    def of(cls, values: jax.Array, weights: jax.Array | float = 1.0) -> "Mean":
        """Returns the weighted mean of `values`; `weights` broadcasts against them."""
        values = values.astype(jnp.float32)
        weights = jnp.broadcast_to(jnp.asarray(weights, jnp.float32), values.shape)
        return cls(jnp.sum(values * weights), jnp.sum(weights))

    def merge(self, other: "Mean") -> "Mean":
        """Returns the mean over the union of both samples."""
        return Mean(self.sum + other.sum, self.weight + other.weight)

    def value(self) -> jax.Array:
        """Returns sum / weight, and 0 where nothing was weighed."""
        return jnp.where(self.weight > 0, self.sum / jnp.maximum(self.weight, 1e-30), 0.0)


def weight_name(name: str) -> str:
    """Returns the name under which `values_and_weights` has the weight of a mean."""
    return f"weight of {name}"


def values_and_weights(means: Mapping[str, Mean]) -> dict[str, jax.Array]:
    """Returns values and weights by name, float32: what means over several steps are made of."""
    values = {name: mean.value() for name, mean in means.items()}
    return values | {weight_name(name): mean.weight for name, mean in means.items()}
