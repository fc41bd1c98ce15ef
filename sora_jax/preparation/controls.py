"""What is given beside a clip and computed of its pixels alone: one table. A new control is a function and a row.

Letters: T H W C pixels.
"""

import dataclasses
import functools

import numpy as np

from sora_jax.data.clips import Clip
from sora_jax.preparation.context import Control, Drawn
from sora_jax.preparation.degrade import LowConfig, degraded


def half_grey(clip: Clip, generator: np.random.Generator) -> tuple[Clip, Drawn]:
    """Returns the luma of a clip (BT.601), at half its size."""
    del generator
    luma_THW = clip.pixels_THWC @ np.array([0.299, 0.587, 0.114])
    frames, height, width = luma_THW.shape
    half_THW = luma_THW.reshape(frames, height // 2, 2, width // 2, 2).mean(axis=(2, 4))
    pixels_THWC = np.repeat(np.rint(half_THW).astype(np.uint8)[..., None], 3, axis=-1)
    return dataclasses.replace(clip, pixels_THWC=pixels_THWC), {}


# Half as large, and up to four times slower: what a refiner is given.
_LOW = LowConfig(space=(2,), time=(1, 2, 4))

# By the names that `context.kinds` and the shares of stages have.
CONTROLS: dict[str, Control] = {
    "grey": Control(make=half_grey, role="grey", scale=2, recipe="luma at 1/2"),
    "low": Control(make=functools.partial(degraded, config=_LOW), role="low", scale=2, recipe=_LOW.recipe),
}
