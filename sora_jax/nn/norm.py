"""Normalisation of single positions; statistics in float32, results in the dtype of the input."""

import jax
import jax.numpy as jnp
from flax import nnx

from sora_jax.nn.single_row import by_token


def layer_norm(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """Returns `x` in float32 with zero mean and unit variance over the last dimension."""
    return by_token(lambda x: _layer_norm(x, eps), x)


def _layer_norm(x: jax.Array, eps: float) -> jax.Array:
    x = x.astype(jnp.float32)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)


class LayerNorm(nnx.Module):
    """Layer norm with a learned scale and offset over the last dimension."""

    def __init__(self, dim: int, *, eps: float = 1e-6):
        self.scale = nnx.Param(jnp.ones((dim,), jnp.float32), axes=("norm",))
        self.bias = nnx.Param(jnp.zeros((dim,), jnp.float32), axes=("norm",))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        def function(x: jax.Array) -> jax.Array:
            return (_layer_norm(x, self.eps) * self.scale[...] + self.bias[...]).astype(x.dtype)

        return by_token(function, x)


class RMSNorm(nnx.Module):
    """Root-mean-square norm with a learned scale over the last dimension, or the last two: heads and their width."""

    def __init__(self, dim: int, *, eps: float = 1e-6):
        self.scale = nnx.Param(jnp.ones((dim,), jnp.float32), axes=("norm",))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.scale[...]
        over = (-1,) if x.shape[-1] == scale.size else (-2, -1)

        def function(x: jax.Array) -> jax.Array:
            y = x.astype(jnp.float32)
            y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=over, keepdims=True) + self.eps)
            return (y * scale.reshape(x.shape[over[0] :])).astype(x.dtype)

        return by_token(function, x)
