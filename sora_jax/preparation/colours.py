"""What is left of a clip without its detail or without its colours, at half its size.

Letters: T H W C pixels.
"""

import dataclasses

import numpy as np
from PIL import Image, ImageFilter

from sora_jax.data.clips import Clip
from sora_jax.preparation.context import Drawn

BLURS = (0.02, 0.1)  # standard deviation, of the short side
BLOCKS = (4, 16)  # along the short side


def half_size(pixels_THWC: np.ndarray) -> np.ndarray:
    """Returns the means of 2 x 2 pixels, float32 (T, H / 2, W / 2, C), of frames of even height and width."""
    rows = pixels_THWC[:, 0::2].astype(np.float32) + pixels_THWC[:, 1::2]
    return (rows[:, :, 0::2] + rows[:, :, 1::2]) / 4


def luma(pixels_THWC: np.ndarray) -> np.ndarray:
    """Returns the luma (BT.601) of pixels, float64 (T, H, W), in the range of the pixels."""
    return pixels_THWC @ np.array([0.299, 0.587, 0.114])


def half_grey(clip: Clip, generator: np.random.Generator) -> tuple[Clip, Drawn]:
    """Returns the luma of a clip, at half its size."""
    del generator
    half_THW1 = np.rint(luma(half_size(clip.pixels_THWC))).astype(np.uint8)[..., None]
    return dataclasses.replace(clip, pixels_THWC=np.repeat(half_THW1, 3, axis=-1)), {}


def half_blur(clip: Clip, generator: np.random.Generator) -> tuple[Clip, Drawn]:
    """Returns a clip blurred by a Gaussian, at half its size, and its drawn deviation as a share of the short side."""
    share = float(generator.uniform(*BLURS))
    half_THWC = np.rint(half_size(clip.pixels_THWC)).astype(np.uint8)
    kernel = ImageFilter.GaussianBlur(share * min(half_THWC.shape[1:3]))
    frames = [np.asarray(Image.fromarray(frame_HWC).filter(kernel)) for frame_HWC in half_THWC]
    return dataclasses.replace(clip, pixels_THWC=np.stack(frames)), {"blur": share}


def half_palette(clip: Clip, generator: np.random.Generator) -> tuple[Clip, Drawn]:
    """Returns a clip as blocks of one colour, their mean, at half its size, and how many the short side has."""
    blocks = int(generator.integers(*BLOCKS, endpoint=True))
    means = half_size(clip.pixels_THWC)
    blocks = min(blocks, *means.shape[1:3])
    side = min(means.shape[1:3]) / blocks
    for axis in (1, 2):
        size = means.shape[axis]
        starts = np.rint(np.linspace(0, size, max(1, round(size / side)) + 1)).astype(int)
        lengths = np.diff(starts)
        sums = np.moveaxis(np.add.reduceat(means, starts[:-1], axis=axis), axis, -1)
        means = np.moveaxis(np.repeat(sums / lengths, lengths, axis=-1), -1, axis)
    return dataclasses.replace(clip, pixels_THWC=np.rint(means).astype(np.uint8)), {"blocks": blocks}
