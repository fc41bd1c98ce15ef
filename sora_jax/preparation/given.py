"""Controls that a user makes: depth, poses and the like come as files beside the clips, and not of their pixels."""

import dataclasses

import numpy as np

from sora_jax.data.clips import Clip
from sora_jax.preparation.colours import half_size
from sora_jax.preparation.context import Drawn

# Each is a role of `video.parts.ROLES`; the last three are for what none of the others says.
GIVEN_KINDS = ("depth", "pose", "segmentation", "sketch", "own_1", "own_2", "own_3")


def half_given(clip: Clip, generator: np.random.Generator, *, kind: str) -> tuple[Clip, Drawn] | None:
    """Returns what was given beside a clip as `kind`, at half its size; None where nothing was."""
    del generator
    if kind not in clip.beside:
        return None
    half_THWC = np.rint(half_size(clip.beside[kind])).astype(np.uint8)
    return dataclasses.replace(clip, pixels_THWC=half_THWC, beside={}), {}
