"""Where things go from each frame to the next, found by blocks and shown as a wheel of colours.

Hue is the direction, white is rest (Baker et al., "A database and evaluation methodology for optical flow", 2011).

Letters: T H W C pixels, F pairs of frames, R K rows and columns of blocks, 2: rows and columns, px per frame.
"""

import dataclasses

import numpy as np

from sora_jax.data.clips import Clip
from sora_jax.preparation.colours import half_size, luma
from sora_jax.preparation.context import Drawn

FULL_SPEED = 1.0  # short sides per second, of full colour; the root of the speed is shown, so that slow things differ
_BLOCKS = 24  # along the short side, of 2 px at least; each is told by the 3 x 3 around it
_REACH = 7  # px of the half size per frame
_SAME = 2.0  # mean squared difference of luma, up to which nothing has moved
_LONGER = 0.5  # of it, that each pixel of way must be worth


def half_flow(clip: Clip, generator: np.random.Generator) -> tuple[Clip, Drawn] | None:
    """Returns the picture of a clip's motion at half its size, its last frame twice; None of an image."""
    del generator
    if len(clip.pixels_THWC) < 2:
        return None
    luma_THW = luma(half_size(clip.pixels_THWC))
    height, width = luma_THW.shape[1:]
    block = max(2, round(min(height, width) / _BLOCKS))
    speed_FRK2 = block_flow(luma_THW, block=block) * clip.fps / min(height, width)
    colours_FRKC = _wheel(speed_FRK2)
    pixels = colours_FRKC.repeat(block, axis=1).repeat(block, axis=2)[:, :height, :width]
    return dataclasses.replace(clip, pixels_THWC=np.concatenate([pixels, pixels[-1:]])), {}


def block_flow(luma_THW: np.ndarray, *, block: int) -> np.ndarray:
    """Returns flow_FRK2 float32, how far each square block goes to the next frame, at most 7 px, to parts of a pixel.

    `luma_THW` is 0..255; a block has `block` px a side, and the last ones may be cut off. Where nothing changes, the
    way is 0.
    """
    frames, height, width = luma_THW.shape
    before, after = luma_THW[:-1].astype(np.float32), luma_THW[1:].astype(np.float32)
    padded = np.pad(after, ((0, 0), (_REACH, _REACH), (_REACH, _REACH)), mode="edge")
    ways = np.arange(-_REACH, _REACH + 1)
    rows, columns = -(-height // block), -(-width // block)
    cost = np.empty((len(ways), len(ways), frames - 1, rows, columns), np.float32)
    for row in range(len(ways)):
        for column in range(len(ways)):
            moved = padded[:, row : row + height, column : column + width]
            cost[row, column] = _by_block(np.square(before - moved), block)
    still_FRK = cost[_REACH, _REACH] <= _SAME
    priced = cost + _LONGER * np.hypot(ways[:, None], ways)[..., None, None, None]
    best = priced.reshape(-1, *priced.shape[2:]).argmin(axis=0)
    way = np.stack(np.unravel_index(best, (len(ways), len(ways))))
    flow_FRK2 = np.stack([way[axis] - _REACH + _within_pixel(cost, way, axis) for axis in (0, 1)], axis=-1)
    return np.where(still_FRK[..., None], 0, flow_FRK2).astype(np.float32)


def _by_block(error_FHW: np.ndarray, block: int) -> np.ndarray:
    """Returns the mean of each block and those around it, (F, R, K); the rim is continued."""
    height, width = error_FHW.shape[1:]
    whole = np.pad(error_FHW, ((0, 0), (0, -height % block), (0, -width % block)), mode="edge")
    tall = np.sum([whole[:, start::block] for start in range(block)], axis=0)
    means = np.sum([tall[:, :, start::block] for start in range(block)], axis=0) / block**2
    around = np.pad(means, ((0, 0), (1, 1), (1, 1)), mode="edge")
    down = around[:, :-2] + around[:, 1:-1] + around[:, 2:]
    return (down[:, :, :-2] + down[:, :, 1:-1] + down[:, :, 2:]) / 9


def _within_pixel(cost: np.ndarray, way: np.ndarray, axis: int) -> np.ndarray:
    """Returns how far the lowest point of a parabola through three costs is from the middle one, at most 0.5 px."""
    last = cost.shape[axis] - 1
    places = np.indices(way.shape[1:])
    below, above = way.copy(), way.copy()
    below[axis], above[axis] = np.maximum(way[axis] - 1, 0), np.minimum(way[axis] + 1, last)
    lower, middle, upper = (cost[(*index, *places)] for index in (below, way, above))
    bend = lower + upper - 2 * middle
    inner = (way[axis] > 0) & (way[axis] < last) & (bend > 0)
    return np.where(inner, np.clip((lower - upper) / (2 * np.where(bend > 0, bend, 1)), -0.5, 0.5), 0)


def _wheel(speed_FRK2: np.ndarray) -> np.ndarray:
    """Returns uint8 (F, R, K, 3): red goes right, yellow-green down, cyan left and violet up."""
    down, right = np.moveaxis(speed_FRK2, -1, 0)
    hue = np.arctan2(down, right) / (2 * np.pi) * 6
    full = np.sqrt(np.minimum(np.hypot(down, right) / FULL_SPEED, 1))
    pure = np.clip(np.abs((hue[..., None] + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return np.rint(255 * (1 - full[..., None] * (1 - pure))).astype(np.uint8)
