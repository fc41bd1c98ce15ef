"""Rotary position embedding over three axes (time, row, column), as in Wan: interleaved pairs, the head split in three.

Shapes: B rows, L tokens, N heads, H head width.
"""

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.core.mesh import current_platform


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """Returns how many of the head's dimensions turn with (time, row, column); time takes the remainder."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def rotations(position_BL3: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Returns (cos, sin), each (B, L, H) float32, of the angles at each token's own position, for `rotate`.

    Both numbers of a pair have the same angle; the sine of the first is negative.

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
    # Products with ones, which are exact: XLA on CPU computes what is no product again wherever it is used.
    both = np.kron(np.eye(head_dim // 2), [1.0, 1.0])
    signed = both * np.tile([-1.0, 1.0], head_dim // 2)
    return _spread(jnp.cos(angle), both), _spread(jnp.sin(angle), signed)


def rotate(x_BLNH: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Returns `x` with each pair of neighbouring dimensions turned by its angle, computed in float32.

    Neighbours change places by a product with a permutation, which is exact. To take pairs apart would give arrays of
    two numbers in the last dimension, of which a TPU fills one lane in 64; a GPU only reads in another order.
    """
    cos, sin = (part[:, :, None, :] for part in rotation)
    if current_platform() == "gpu":
        swapped = x_BLNH.reshape(*x_BLNH.shape[:-1], -1, 2)[..., ::-1].reshape(x_BLNH.shape)
    else:
        swapped = _spread(x_BLNH, np.kron(np.eye(x_BLNH.shape[-1] // 2), [[0.0, 1.0], [1.0, 0.0]]))
    return (x_BLNH.astype(jnp.float32) * cos + swapped.astype(jnp.float32) * sin).astype(x_BLNH.dtype)


def _spread(x: jax.Array, ones: np.ndarray) -> jax.Array:
    """Returns `x` with the numbers of its last dimension where the columns of `ones`, of one entry each, have them."""
    return jnp.einsum("...H,HG->...G", x, jnp.asarray(ones, x.dtype), precision="highest")
