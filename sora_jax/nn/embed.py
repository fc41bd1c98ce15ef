"""Sinusoidal features of scalars: noise levels and positions."""

import math

import jax
import jax.numpy as jnp


def sinusoid(x: jax.Array, dim: int, *, max_period: float = 10_000.0) -> jax.Array:
    """Returns (cosines, sines) of `x` at geometrically spaced frequencies, shape (*x.shape, dim), float32.

    As the time embedding of Wan and of diffusers with `flip_sin_to_cos=True, downscale_freq_shift=0`.
    """
    half = dim // 2
    frequency = jnp.exp(-math.log(max_period) / half * jnp.arange(half, dtype=jnp.float32))
    angle = x.astype(jnp.float32)[..., None] * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
