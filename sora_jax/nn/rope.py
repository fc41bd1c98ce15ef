"""Rotary position embedding over three axes (time, row, column), as in Wan: interleaved pairs, the head split in three.

Shapes: B rows, L tokens, N heads, H head width.
"""

import jax
import jax.numpy as jnp
import numpy as np


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """Returns how many of the head's dimensions turn with (time, row, column); time takes the remainder."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def rotations(position_BL3: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Returns (cos, sin), each (B, L, H / 2) float32, of the angles at each token's own position.

    Args:
      position_BL3: Time position and patch row and column; any real numbers.
      head_dim: H, even.
      theta: Base of the geometric series of wavelengths (10,000 in Wan; less for small grids).
    """
    angles = []
    for axis, dim in enumerate(axis_dims(head_dim)):
        frequency = theta ** -(np.arange(0, dim, 2, dtype=np.float64) / dim)
        angles.append(position_BL3[..., axis : axis + 1].astype(jnp.float32) * frequency.astype(np.float32))
    angle = jnp.concatenate(angles, axis=-1)
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BLNH: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Returns `x` with each pair of neighbouring dimensions turned by its angle, computed in float32."""
    cos, sin = (part[:, :, None, :] for part in rotation)
    pairs = x_BLNH.astype(jnp.float32).reshape(*x_BLNH.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return turned.reshape(x_BLNH.shape).astype(x_BLNH.dtype)
