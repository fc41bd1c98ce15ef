"""Masks of `fill`: white where something new is made.

Letters: T H W C frames, rows, columns, colours of pixels.
"""

import numpy as np

from sora_jax.core.errors import UserError
from sora_jax.data.clips import covering
from sora_jax.generate.given import in_time

# A mask is white where its mean over colours is over this.
_WHITE = 127


def check_mask_size(name: str, pixels_THWC: np.ndarray, clip: np.ndarray) -> None:
    """Raises UserError where a mask is not of the size of its clip."""
    height, width = pixels_THWC.shape[1:3]
    if (height, width) != clip.shape[1:3]:
        raise UserError(f"the mask {name} is {height}x{width} px, the video {clip.shape[1]}x{clip.shape[2]}: scale it")


def mask_as_long(path: str, pixels_THWC: np.ndarray, clip: np.ndarray) -> np.ndarray:
    """Returns the mask, uint8 (T, H, W, 3), as long as the clip; UserError where that cannot be, or nothing is white.

    It was read as opaque: its alpha may be the mask, or its colours, and only who made it knows.
    """
    check_mask_size(path, pixels_THWC, clip)
    frames = len(pixels_THWC)
    if frames not in (1, len(clip)):
        raise UserError(f"the mask {path} has {frames} frames, the video {len(clip)}: give one frame, or as many")
    if not whiter(pixels_THWC).any():
        raise UserError(f"the mask {path} is black: nothing would be made; white says where to fill in")
    return np.broadcast_to(pixels_THWC, clip.shape)


def mask_of_size(path: str, pixels_THWC: np.ndarray, size: tuple[int, int], *, rate: float, fps: float) -> np.ndarray:
    """Returns bool (T, H, W): where a mask at `rate` is white once it is scaled and cut to `size`, at `fps`.

    Raises UserError where that is nowhere.
    """
    mask_THW = in_time(whiter(covering(pixels_THWC, size)), rate, fps)
    if not mask_THW.any():
        raise UserError(
            f"the mask {path} is black where the video is scaled and cut to {size[0]}x{size[1]} px, at {fps:g} frames "
            "per second: nothing would be made; give another --size or --fps, or another mask"
        )
    return mask_THW


def whiter(pixels_THWC: np.ndarray) -> np.ndarray:
    """Returns bool (T, H, W): where a mask is white."""
    return pixels_THWC.mean(axis=-1) > _WHITE
