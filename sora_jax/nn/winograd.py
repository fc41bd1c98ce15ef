"""3x3 convolutions with fewer multiplications: Winograd's F(2x2, 3x3) (arXiv 1509.09308, section 4.1), for CPUs.

Blocks of 4x4 positions and the kernel are taken to a domain where 16 products give 2x2 results, instead of 36. Nothing
changes over time: the taps of a causal kernel are added in that domain, so each frame goes there once and comes back
once, which is what makes it pay. Sums are taken in another order, so results differ in the last digits.

Shapes: B clips, T frames, H rows, W columns, C channels; h w blocks of 2x2 positions.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

# Kernel 3x3 -> 4x4: G of the paper.
_KERNEL = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]], np.float32)
# Fewer channels leave the products too small a part of the work, and fewer positions the transform of the kernel too
# large a one; the domain is four times as large as the clip and must fit the memory: 2^27 numbers.
_FEWEST_CHANNELS, _FEWEST_POSITIONS, _MOST_NUMBERS = 96, 4096, 2**27


def pays(clip: tuple[int, ...], kernel: tuple[int, ...]) -> bool:
    """Whether this is faster on CPU and its memory bearable, for shapes (B, T, H, W, in) and (time, 3, 3, in, out)."""
    taps, *_, in_dim, out_dim = kernel
    positions = math.prod(clip[:-1])
    return (
        taps > 1
        and min(in_dim, out_dim) >= _FEWEST_CHANNELS
        and positions >= _FEWEST_POSITIONS
        and 4 * positions * max(in_dim, out_dim) <= _MOST_NUMBERS
    )


def convolve_3x3(
    x_BTHWC: jax.Array, kernel: jax.Array, windows: Sequence[tuple[int, int, int]], frames: int
) -> jax.Array:
    """Returns the convolution of a clip with a (time, 3, 3, in, out) kernel, in space padded to the size of the clip.

    Args:
      x_BTHWC: The clip.
      kernel: Taps in time, rows, columns, channels in and out.
      windows: Of each tap (begin, start, stop): frames [start, stop) of the clip add to the results from `begin` on.
      frames: Number of results.
    """
    height, width = x_BTHWC.shape[2:4]
    padded = jnp.pad(x_BTHWC, ((0, 0), (0, 0), (1, 1 + height % 2), (1, 1 + width % 2), (0, 0)))
    to_domain = _KERNEL.astype(kernel.dtype)
    maps = jnp.einsum("ia,tabCD,jb->ijtCD", to_domain, kernel, to_domain)
    blocks = _forth(padded)
    made = [[_over_time(blocks[i][j], maps[i, j], windows, frames) for j in range(4)] for i in range(4)]
    return _back(made)[:, :, :height, :width]


def _over_time(
    x_BThwC: jax.Array, map_tCD: jax.Array, windows: Sequence[tuple[int, int, int]], frames: int
) -> jax.Array:
    total = jnp.zeros((), x_BThwC.dtype)
    for (begin, start, stop), map_CD in zip(windows, map_tCD, strict=True):
        part = x_BThwC[:, start:stop] @ map_CD
        total += jnp.pad(part, ((0, 0), (begin, frames - begin - (stop - start)), (0, 0), (0, 0), (0, 0)))
    return total


def _forth(x_BTHWC: jax.Array) -> list[list[jax.Array]]:
    """Returns the 4x4 numbers of each block of a padded clip; blocks overlap by two positions."""
    rows, columns = (range(side // 2 - 1) for side in x_BTHWC.shape[2:4])
    lines = _differences([x_BTHWC[:, :, i : i + 2 * len(rows) : 2] for i in range(4)])
    return [_differences([line[:, :, :, j : j + 2 * len(columns) : 2] for j in range(4)]) for line in lines]


def _differences(line: Sequence[jax.Array]) -> list[jax.Array]:
    return [line[0] - line[2], line[1] + line[2], line[2] - line[1], line[1] - line[3]]


def _back(made: list[list[jax.Array]]) -> jax.Array:
    """Returns the 2x2 positions of each block, in their places: (B, T, H, W, C)."""
    rows = [_sums(column) for column in zip(*made, strict=True)]  # 4 columns of 2 rows
    pairs = [_sums(row) for row in zip(*rows, strict=True)]  # 2 rows of 2 columns
    joined = jnp.stack([jnp.stack(pair, axis=4) for pair in pairs], axis=3)  # (B, T, h, 2, w, 2, C)
    batch, frames, height, _, width, _, channels = joined.shape
    return joined.reshape(batch, frames, 2 * height, 2 * width, channels)


def _sums(line: Sequence[jax.Array]) -> list[jax.Array]:
    return [line[0] + line[1] + line[2], line[1] - line[2] - line[3]]
