"""Images scaled as Pillow scales them, on channels of floats that are not rounded: what public networks were fed with.

Letters: N frames, H W rows, columns, C channels.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

# Half the width of a kernel, in pixels of the smaller picture.
_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}


def scale_as_pillow(
    frame_NHWC: jax.Array, size: tuple[int, int], filtering: Literal["bilinear", "bicubic"]
) -> jax.Array:
    """Returns frames of any real dtype at (height, width) `size`, float32; the kernel is widened to scale down."""
    matrices = [_matrix(old, new, filtering) for old, new in zip(frame_NHWC.shape[1:3], size, strict=True)]
    frame = frame_NHWC.astype(jnp.float32)
    return jnp.einsum("nhwc,yh,xw->nyxc", frame, *matrices, precision="highest", optimize="optimal")


@functools.cache
def _matrix(old: int, new: int, filtering: str) -> np.ndarray:
    """Returns the float32 matrix (new, old) of one axis, of weights that were computed in float64."""
    ratio = old / new
    centre = (np.arange(new)[:, None] + 0.5) * ratio
    distance = np.abs(np.arange(old) + 0.5 - centre) / max(ratio, 1.0)
    if filtering == "bilinear":
        weights = 1 - distance
    else:
        near = (1.5 * distance - 2.5) * distance**2 + 1
        weights = np.where(distance < 1, near, ((-0.5 * distance + 2.5) * distance - 4) * distance + 2)
    weights = np.where(distance < _SUPPORT[filtering], weights, 0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
