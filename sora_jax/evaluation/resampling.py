"""What an autoencoder has to beat: the clip scaled down to as many numbers as its latent holds, and up again.

Letters: T H W C pixels.
"""

import math

import numpy as np
from PIL import Image

from sora_jax.evaluation.pixels import psnr
from sora_jax.video.shapes import Size


def resample(pixels_THWC: np.ndarray, *, values: int) -> np.ndarray:
    """Returns a uint8 clip of the same shape that went through at most `values` numbers (3 or more).

    Time is kept, halved or quartered, height and width are scaled by one factor to fill what is left; the way with the
    highest PSNR is taken. Lanczos along each axis, both ways, in float32.
    """
    sizes = dict.fromkeys(scaled_size(pixels_THWC.shape, values=values, time=time) for time in (1, 2, 4))
    clips, (frames, height, width) = [], pixels_THWC.shape[:3]
    for size in sizes:
        clip = pixels_THWC.astype(np.float32)
        for target in (size, (frames, height, width)):
            clip = _resized(clip, target)
        clips.append(_rounded(clip))
    return max(clips, key=lambda clip: psnr(pixels_THWC, clip))


def scaled_size(shape: tuple[int, ...], *, values: int, time: int) -> Size:
    """Returns (frames, height, width) of at most `values` numbers in 3 channels, with `time` times fewer frames."""
    frames, height, width = shape[:3]
    frames = min(1 + math.ceil((frames - 1) / time), max(1, values // 3))
    scale = min(1.0, math.sqrt(values / (3 * frames * height * width)))
    rows = max(1, min(math.floor(height * scale), values // (3 * frames)))
    return frames, rows, max(1, min(width, values // (3 * frames * rows)))


def lanczos(pixels_THWC: np.ndarray, size: Size) -> np.ndarray:
    """Returns a uint8 clip of (frames, height, width) `size`: Lanczos along each axis, in float32."""
    return _rounded(_resized(pixels_THWC.astype(np.float32), size))


def _resized(clip_THWC: np.ndarray, size: Size) -> np.ndarray:
    for axis in range(3):
        clip_THWC = _resize(clip_THWC, size[axis], axis=axis)
    return clip_THWC


def _rounded(clip_THWC: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(clip_THWC), 0, 255).astype(np.uint8)


def _resize(clip_THWC: np.ndarray, size: int, *, axis: int) -> np.ndarray:
    """Returns the clip with `size` positions along an axis."""
    if clip_THWC.shape[axis] == size:
        return clip_THWC
    lines = np.moveaxis(clip_THWC, axis, 0)
    image = Image.fromarray(np.ascontiguousarray(lines.reshape(len(lines), -1)))
    scaled = np.asarray(image.resize((image.width, size), Image.Resampling.LANCZOS))
    return np.moveaxis(scaled.reshape(size, *lines.shape[1:]), 0, axis)
