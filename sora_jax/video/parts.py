"""Clips beside a clip: a segment is the clip that is made and the clips that are given beside it, each with its role.

A clip beside may have another size, another rate and other frames; its tokens stand where they would stand in the
clip that is made, so attention finds by place what belongs together.

Letters: T H W C latent, L tokens of one clip.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from sora_jax.video import shapes

# What a clip beside is to the one that is made, and its row in the table of role vectors: numbers never change, and a
# new role takes the next. Own roles are for what a user brings and none of these names says.
ROLES = {
    "target": 0,  # the clip that is made; it has no vector
    "edges": 1,
    "low": 2,
    "boxes": 3,
    "grey": 4,
    "reference": 5,
    "blur": 6,
    "palette": 7,
    "flow": 8,
    "depth": 9,
    "pose": 10,
    "segmentation": 11,
    "sketch": 12,
    "own_1": 13,
    "own_2": 14,
    "own_3": 15,
}
# A picture of what is to be seen, and not of when: it stands so many seconds before the clip.
_LONG_BEFORE = {"reference": 10.0}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ContextClip:
    """A clip that is given beside the one that is made.

    Attributes:
      latent_THWC: float32; raw where it is written to shards, normalised where it comes from them or goes into a row.
      fps: Frames of pixels per second.
      role: A key of `ROLES`, "target" left out.
      scale: s, at least 1: its height and width are those of the other clip over s, rounded up to whole tokens.
      drawn: What was drawn to make it, such as thresholds, by name.
    """

    latent_THWC: np.ndarray
    fps: float
    role: str
    scale: int
    drawn: Mapping[str, float | str] = dataclasses.field(default_factory=dict)

    def positions(self, patch: shapes.Size, *, temporal_stride: int, time_rate: float) -> np.ndarray:
        """Returns position_L3 float32 (time, row, column) of its tokens in the coordinates of the clip that is made.

        A token of a clip of 1/s the size covers s x s of that one's, and stands in their middle: s i + (s - 1) / 2.
        Time is in seconds x `time_rate` from the start, as everywhere; references stand before it.
        """
        shape = self.latent_THWC.shape
        grid = shapes.token_grid((shape[0], shape[1], shape[2]), patch)
        step = shapes.time_step(self.fps, temporal_stride=temporal_stride, temporal_patch=patch[0], time_rate=time_rate)
        scale, before = self.scale, _LONG_BEFORE.get(self.role, 0.0) * time_rate
        there_L3 = shapes.positions(grid, step) * np.array([1, scale, scale], np.float32)
        return there_L3 + np.array([-before, (scale - 1) / 2, (scale - 1) / 2], np.float32)
