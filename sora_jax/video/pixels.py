"""Between stored pixels, uint8 in [0, 255], and what the autoencoder sees, float in [-1, 1]."""

import jax
import jax.numpy as jnp


def to_float(pixels: jax.Array) -> jax.Array:
    """Returns uint8 pixels as float32 in [-1, 1], and what already is so as it is; any shape."""
    if jnp.issubdtype(pixels.dtype, jnp.floating):
        return pixels
    return pixels.astype(jnp.float32) / 127.5 - 1.0


def to_pixels(clip: jax.Array) -> jax.Array:
    """Returns a clip in [-1, 1] as uint8, clipped and rounded to the nearest; any shape."""
    return jnp.clip(jnp.round((clip.astype(jnp.float32) + 1.0) * 127.5), 0, 255).astype(jnp.uint8)
