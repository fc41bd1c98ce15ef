"""A picture of what a clip shows, that says nothing of when and where."""

import dataclasses

import numpy as np

from sora_jax.data.clips import Clip
from sora_jax.preparation.colours import half_size
from sora_jax.preparation.context import Drawn


def half_frame(clip: Clip, generator: np.random.Generator) -> tuple[Clip, Drawn] | None:
    """Returns one frame of a clip, drawn, at half its size; None of an image, which would be given itself."""
    frames = len(clip.pixels_THWC)
    if frames == 1:
        return None
    frame = int(generator.integers(frames))
    half_1HWC = np.rint(half_size(clip.pixels_THWC[frame : frame + 1])).astype(np.uint8)
    return dataclasses.replace(clip, pixels_THWC=half_1HWC), {"frame": frame}
