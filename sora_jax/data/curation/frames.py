"""Some frames of a clip, small and grey, as measures look at them.

Letters: T frames, G frames looked at, H rows, W columns, C colours.
"""

import numpy as np
from PIL import Image

# Frames on which a clip is measured, spread evenly.
FRAMES = 16


def spread(frames: int, count: int) -> np.ndarray:
    """Returns at most `count` numbers of frames, evenly from the first to the last, ascending."""
    return np.unique(np.linspace(0, frames - 1, min(count, frames)).round().astype(int))


def grey(pixels_GHWC: np.ndarray, *, short_side: int) -> np.ndarray:
    """Returns uint8 luma (G, H, W), 0 to 255 (BT.601), scaled down to a short side where it is larger, px."""
    height, width = pixels_GHWC.shape[1:3]
    scale = min(1.0, short_side / min(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    images = [Image.fromarray(frame_HWC).convert("L") for frame_HWC in pixels_GHWC]
    return np.stack([np.asarray(image.resize(size, Image.Resampling.BOX)) for image in images])
