"""Edges of clips: blurred, differentiated, thinned, and kept where they are strong or lead to what is strong.

Canny, "A computational approach to edge detection", 1986. Of the colours, the one that changes most counts, so that
things of the same luma have an edge between them, too.

Letters: T H W C pixels, L flat pixels.
"""

import dataclasses

import numpy as np

from sora_jax.data.clips import Clip
from sora_jax.preparation.context import Drawn

# Of a sharp step between two values of 0..255: how strong an edge must be to go on, and how much more to begin.
LOW_EDGES, MORE_TO_BEGIN = (8.0, 32.0), (12.0, 48.0)
_BLUR = np.array([1, 4, 6, 4, 1], np.float32) / 16
_SOBEL = np.array([1, 2, 1], np.float32) / 4
_OF_STEP = 1.6  # makes the strength of a sharp step its height, after this blur
# Towards the neighbour across an edge, by eighths of a turn of its gradient.
_ACROSS = ((0, 1), (1, 1), (1, 0), (1, -1))


def half_edges(clip: Clip, generator: np.random.Generator) -> tuple[Clip, Drawn]:
    """Returns white edges on black at half the size, and the two thresholds that were drawn for the clip."""
    low = float(generator.uniform(*LOW_EDGES))
    high = low + float(generator.uniform(*MORE_TO_BEGIN))
    edges_THW = find_edges(clip.pixels_THWC, low=low, high=high)
    frames, height, width = edges_THW.shape
    # A line of one pixel stays whole where a pixel is white if any of the four that it stands for is.
    half_THW = edges_THW.reshape(frames, height // 2, 2, width // 2, 2).any(axis=(2, 4))
    pixels_THWC = np.repeat(np.where(half_THW, np.uint8(255), np.uint8(0))[..., None], 3, axis=-1)
    return dataclasses.replace(clip, pixels_THWC=pixels_THWC), {"low": low, "high": high}


def find_edges(pixels_THWC: np.ndarray, *, low: float, high: float) -> np.ndarray:
    """Returns (T, H, W) bool, where frames of uint8 pixels have an edge, one pixel wide.

    A sharp step between two values of a colour has their difference as its strength. Edges of `low` and more count
    where they are connected, in their frame, to one of `high` and more.
    """
    strength_THW, row_THW, column_THW = _gradient(pixels_THWC)
    thin_THW = _is_ridge(strength_THW, row_THW, column_THW)
    return flooded(thin_THW & (strength_THW >= high), thin_THW & (strength_THW >= low))


def flooded(seeds_THW: np.ndarray, open_THW: np.ndarray) -> np.ndarray:
    """Returns (T, H, W) bool: the seeds and what is open and connected to one, by sides or corners, in its frame."""
    frames, height, width = seeds_THW.shape
    # A closed rim keeps steps to neighbours within the frame.
    closed = ((0, 0), (1, 1), (1, 1))
    open_L, found_L = np.pad(open_THW, closed).ravel(), np.pad(seeds_THW, closed).ravel()
    steps = np.array([row * (width + 2) + column for row in (-1, 0, 1) for column in (-1, 0, 1)])
    front = np.flatnonzero(found_L)
    while front.size:
        near = np.unique(front[:, None] + steps)
        front = near[open_L[near] & ~found_L[near]]
        found_L[front] = True
    return found_L.reshape(frames, height + 2, width + 2)[:, 1:-1, 1:-1]


def _gradient(pixels_THWC: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the strength of the change, and the change by row and by column, of the colour that changes most."""
    smooth = _along(_along(pixels_THWC.astype(np.float32), _BLUR, axis=1), _BLUR, axis=2)
    change = np.array([-1, 0, 1], np.float32)
    row_THWC = _along(_along(smooth, change, axis=1), _SOBEL, axis=2)
    column_THWC = _along(_along(smooth, change, axis=2), _SOBEL, axis=1)
    strength_THWC = np.hypot(row_THWC, column_THWC)
    most = strength_THWC.argmax(axis=-1, keepdims=True)
    strength, row, column = (
        np.take_along_axis(x, most, axis=-1)[..., 0] for x in (strength_THWC, row_THWC, column_THWC)
    )
    return _OF_STEP * strength, row, column


def _along(x_THWC: np.ndarray, weights: np.ndarray, *, axis: int) -> np.ndarray:
    """Returns a clip correlated with weights along an axis; its rim is continued."""
    reach, size = len(weights) // 2, x_THWC.shape[axis]
    pad = [(reach, reach) if dim == axis else (0, 0) for dim in range(x_THWC.ndim)]
    padded = np.moveaxis(np.pad(x_THWC, pad, mode="edge"), axis, 0)
    total = sum(weight * padded[start : start + size] for start, weight in enumerate(weights))
    return np.moveaxis(np.asarray(total), 0, axis)


def _is_ridge(strength_THW: np.ndarray, row_THW: np.ndarray, column_THW: np.ndarray) -> np.ndarray:
    """Returns whether each pixel is stronger than both neighbours across its edge; of two alike the first is."""
    height, width = strength_THW.shape[1:]
    padded = np.pad(strength_THW, ((0, 0), (1, 1), (1, 1)))
    eighth_THW = np.rint(np.arctan2(row_THW, column_THW) / (np.pi / 4)).astype(int) % 4
    ridge_THW = np.zeros(strength_THW.shape, bool)
    for number, (row, column) in enumerate(_ACROSS):
        before = padded[:, 1 - row : 1 - row + height, 1 - column : 1 - column + width]
        after = padded[:, 1 + row : 1 + row + height, 1 + column : 1 + column + width]
        ridge_THW |= (eighth_THW == number) & (strength_THW > before) & (strength_THW >= after)
    return ridge_THW
