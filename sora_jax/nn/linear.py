"""Linear maps whose parameters carry logical axes; `core.sharding` maps those to mesh axes."""

import math

import jax
import jax.numpy as jnp
from flax import nnx


def truncated_normal(key: jax.Array, shape: tuple[int, ...], std: float) -> jax.Array:
    """Returns float32 normal samples of standard deviation `std`, truncated at two deviations."""
    # 0.8796 is the standard deviation of a unit normal truncated at ±2.
    return jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32) * (std / 0.87962566)


class Linear(nnx.Module):
    """`x @ kernel + bias` over the last dimension, computed in the dtype of `x`.

    Args:
      in_dim: Size of the last dimension of the input.
      out_dim: Size of the last dimension of the output.
      axes: Logical axes of the kernel (in, out); the bias takes the second.
      std: Standard deviation at initialisation; None means 1 / sqrt(in_dim), 0 means zeros.
      rngs: Source of the initial values.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        axes: tuple[str | None, str | None],
        rngs: nnx.Rngs,
        std: float | None = None,
    ):
        std = 1.0 / math.sqrt(in_dim) if std is None else std
        self.kernel = nnx.Param(truncated_normal(rngs.params(), (in_dim, out_dim), std), axes=axes)
        self.bias = nnx.Param(jnp.zeros((out_dim,), jnp.float32), axes=(axes[1],))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.kernel[...].astype(x.dtype) + self.bias[...].astype(x.dtype)
