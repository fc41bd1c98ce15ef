"""The arithmetic between pixels, latents and tokens.

Letters, used as suffixes of array names throughout the project:
  B rows, L tokens of a row, S segments of a row, K text tokens of a row, P patch width,
  T H W C pixels or latents, D model width, N heads, Q bytes of a text token.

Every size here is a triple (time, height, width). Three sizes follow one another:
  pixels (T, H, W)  --stride (st, sh, sw)-->  latent (t, h, w)  --patch (pt, ph, pw)-->  token grid
Time is causal: the first frame alone gives the first latent frame and every further `st` frames give one
more, so T = 1 + k st and t = 1 + k; an image is the clip of one frame.

Plain integers and numpy: the data plane calls this, and it makes no device arrays.
"""

import math

import numpy as np

from sora_jax.core.errors import UserError

Size = tuple[int, int, int]
_SIDES = ("frames", "height", "width")


def latent_grid(pixels: Size, stride: Size) -> Size:
    """Returns the latent size (t, h, w) of a clip of `pixels` (frames, height, width).

    Raises UserError, with the nearest legal numbers, when a side is not on the stride.
    """
    _check_pixels(pixels, stride, patch=(1, 1, 1))
    return 1 + (pixels[0] - 1) // stride[0], pixels[1] // stride[1], pixels[2] // stride[2]


def token_grid(latent: Size, patch: Size) -> Size:
    """Returns the token grid of a latent (t, h, w).

    Raises UserError, with the nearest legal numbers, when a side is not a multiple of `patch`.
    """
    for side, size, step in zip(_SIDES, latent, patch, strict=True):
        _check(f"latent {side}", size, first=step, step=step, origin=f"{step} (patch)")
    return latent[0] // patch[0], latent[1] // patch[1], latent[2] // patch[2]


def clip_token_grid(pixels: Size, *, stride: Size, patch: Size) -> Size:
    """Returns the token grid of a clip of `pixels` (frames, height, width).

    Raises UserError naming both the autoencoder's and the patch's share of the step, e.g. "height 250 is not
    divisible by 16 = 8 (autoencoder) x 2 (patch); nearest: 240, 256".
    """
    _check_pixels(pixels, stride, patch)
    return token_grid(latent_grid(pixels, stride), patch)


def count(grid: Size) -> int:
    """Returns the number of cells of a grid."""
    return math.prod(grid)


def time_step(fps: float, *, temporal_stride: int, temporal_patch: int, time_rate: float) -> float:
    """Returns the distance in time position between neighbouring token frames.

    A position is seconds times `time_rate`, so clips of different fps share one axis.
    """
    return temporal_patch * temporal_stride / fps * time_rate


def positions(grid: Size, step: float) -> np.ndarray:
    """Returns position_L3 float32 (time, row, column) of a token grid in raster order.

    Time is in units of `time_step` = `step` per token frame, row and column in patches; all start at 0.
    """
    position_L3 = np.indices(grid).reshape(3, -1).T.astype(np.float32)
    return position_L3 * np.array([step, 1, 1], np.float32)


def _check_pixels(pixels: Size, stride: Size, patch: Size) -> None:
    for axis, side in enumerate(_SIDES):
        step = stride[axis] * patch[axis]
        # The first latent frame costs one frame of pixels, not a whole stride of them.
        first = step if axis else step - stride[0] + 1
        origin = f"{stride[axis]} (autoencoder)"
        if patch[axis] > 1:
            origin = f"{step} = {origin} x {patch[axis]} (patch)"
        _check(side, pixels[axis], first=first, step=step, origin=origin)


def _check(side: str, size: int, *, first: int, step: int, origin: str) -> None:
    """Raises UserError unless `size` is one of first, first + step, first + 2 step..."""
    if size >= first and (size - first) % step == 0:
        return
    rule = f"divisible by {origin}" if first == step else f"{first} plus a multiple of {origin}"
    below = first + (size - first) // step * step
    nearest = f"{first}" if size < first else f"{below}, {below + step}"
    raise UserError(f"{side} {size} is not {rule}; nearest: {nearest}")
