"""Linear maps whose parameters carry logical axes; `core.sharding` maps those to mesh axes."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sora_jax.core.rng import Rngs


def truncated_normal(key: jax.Array, shape: tuple[int, ...], std: float) -> jax.Array:
    """Returns float32 normal samples of standard deviation `std`, truncated at two deviations."""
    # 0.8796 is the standard deviation of a unit normal truncated at ±2.
    return jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32) * (std / 0.87962566)


class Linear(nnx.Module):
    """`x @ kernel + bias` over the last dimension, computed in the dtype of `x`.

    With an adapter (`add_adapter`) also `(x @ lora_a) @ lora_b` times a scale.

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
        rngs: Rngs,
        std: float | None = None,
    ):
        std = 1.0 / math.sqrt(in_dim) if std is None else std
        self.kernel = nnx.Param(truncated_normal(rngs.params(), (in_dim, out_dim), std), axes=axes)
        self.bias = nnx.Param(jnp.zeros((out_dim,), jnp.float32), axes=(axes[1],))
        self.has_adapter = False

    def add_adapter(self, rank: int, scale: float, *, rngs: Rngs) -> None:
        """Adds factors of a low-rank product, (in, r) uniform as those of a linear map of torch and (r, out) zeros."""
        in_dim, out_dim = self.kernel[...].shape
        (in_axis, out_axis), bound = self.kernel.get_metadata()["axes"], 1.0 / math.sqrt(in_dim)
        first = jax.random.uniform(rngs.params(), (in_dim, rank), jnp.float32, -bound, bound)
        self.lora_a = nnx.Param(first, axes=(in_axis, None))
        self.lora_b = nnx.Param(jnp.zeros((rank, out_dim), jnp.float32), axes=(None, out_axis))
        self.has_adapter, self.adapter_scale = True, scale

    def __call__(self, x: jax.Array) -> jax.Array:
        y: jax.Array = _affine(1, x, self.kernel[...], self.bias[...])
        return y + self._adapted(x) if self.has_adapter else y

    def to_heads(self, x_BLD: jax.Array, heads: int) -> jax.Array:
        """Returns the output split into heads, (B, L, N, H).

        The product gives that shape itself: to reshape its result afterwards would move it on a TPU, where the last two
        dimensions lie in tiles.
        """
        kernel, bias = self.kernel[...], self.bias[...]
        y: jax.Array = _affine(1, x_BLD, kernel.reshape(kernel.shape[0], heads, -1), bias.reshape(heads, -1))
        return y + self._adapted(x_BLD, heads) if self.has_adapter else y

    def from_heads(self, x_BLNH: jax.Array) -> jax.Array:
        """Returns the output (B, L, D) of an input split into heads."""
        y: jax.Array = _affine(2, x_BLNH, self.kernel[...].reshape(*x_BLNH.shape[2:], -1), self.bias[...])
        return y + self._adapted(x_BLNH, inputs=2) if self.has_adapter else y

    def _adapted(self, x: jax.Array, heads: int | None = None, *, inputs: int = 1) -> jax.Array:
        """Returns what the adapter adds, over the last `inputs` dimensions of `x`, split into heads or not."""
        first, last = self.lora_a[...], self.lora_b[...]
        narrow = jnp.tensordot(x, first.reshape(*x.shape[x.ndim - inputs :], -1).astype(x.dtype), axes=inputs)
        if heads is not None:
            last = last.reshape(last.shape[0], heads, -1)
        return jnp.tensordot(narrow * self.adapter_scale, last.astype(x.dtype), axes=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _affine(inputs: int, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Returns the product over the last `inputs` dimensions of `x`, the first of the kernel, plus bias; dtype of `x`.

    It has a gradient of its own: the one that jax derives for the kernel is (out, in), transposed, and on CPU XLA
    computes it at half the speed of the same products in the order (in, out).
    """
    return _plainly(inputs, x, kernel, bias)


def _plainly(inputs: int, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    return jnp.tensordot(x, kernel.astype(x.dtype), axes=inputs) + bias.astype(x.dtype)


def _affine_forward(inputs: int, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> tuple[jax.Array, Any]:
    # Not `_affine` again: a policy of rematerialisation must see the product to keep it.
    return _plainly(inputs, x, kernel, bias), (x, kernel)


def _affine_backward(inputs: int, kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, ...]:
    x, kernel = kept
    leading = x.ndim - inputs
    outputs = tuple(range(leading, gradient.ndim)), tuple(range(inputs, kernel.ndim))
    to_x = jnp.tensordot(gradient, kernel.astype(gradient.dtype), axes=outputs)
    mesh = jax.sharding.get_abstract_mesh()
    if leading > 1 and (mesh.empty or mesh.size == 1):
        # XLA on CPU would transpose `x` before it multiplies. On a mesh both dimensions may be spread.
        x, gradient, leading = (*(a.reshape(-1, *a.shape[leading:]) for a in (x, gradient)), 1)
    over = tuple(range(leading))
    to_kernel = jnp.tensordot(x, gradient, axes=(over, over))
    return to_x, to_kernel.astype(kernel.dtype), jnp.sum(gradient, axis=over).astype(kernel.dtype)


_affine.defvjp(_affine_forward, _affine_backward)
