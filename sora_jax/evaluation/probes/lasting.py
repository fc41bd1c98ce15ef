"""Does what was painted stay, and what was eaten stay away, also in clips longer than those of training?

A clip longer than its scene goes on as it ended: brush and mouth rest.
"""

import numpy as np

from sora_jax.data.scenes.drawing import centres
from sora_jax.data.scenes.trail import EatingScene, PaintingScene
from sora_jax.evaluation.probes.tracking import ProbeVerdict, cover_of, distance, middle_of, probe_verdict

_KEPT = 0.9  # of painted pixels
_LIKE = 0.7  # intersection over union of trails, mean over frames
_PAINTED, _STILL_PAINTED = 0.6, 0.4  # of a pixel's colour, at first and later
_THERE = 0.4  # of a dot's colour
_STEADY, _EATEN = 0.95, 0.9  # shares of frames without a revival, and of dots and frames that are right
_FARTHEST = 0.1  # of the height, that the mouth may be from its place, mean over frames


def _frames(pixels_THWC: np.ndarray, scene_frames: int, given: int) -> np.ndarray:
    """Returns which frame of the scene each new frame of a clip must show."""
    return np.minimum(np.arange(given, len(pixels_THWC)), scene_frames - 1)


def read_painting(scene: PaintingScene, pixels_THWC: np.ndarray, given: int) -> ProbeVerdict:
    """Returns whether new frames show the `trail` so far, and whether what was painted is `kept`.

    `kept_share` is that of painted pixels that are still painted, in the last frame or, where it is less, on average.
    """
    frames = _frames(pixels_THWC, scene.form.frames, given)
    cover_THW = cover_of(pixels_THWC[given:], scene.colour)
    open_THW = scene.brush_THW()[frames] < 0.05
    trail_THW = (scene.trail_THW()[frames] > 0.5) & open_THW
    seen_THW = (cover_THW > 0.5) & open_THW
    shared_T = (trail_THW & seen_THW).sum(axis=(1, 2))
    like = float(np.mean(shared_T / np.maximum((trail_THW | seen_THW).sum(axis=(1, 2)), 1)))
    before_THW = np.logical_or.accumulate((cover_THW > _PAINTED) & open_THW, axis=0)[:-1] & open_THW[1:]
    left_T = (before_THW & (cover_THW[1:] > _STILL_PAINTED)).sum(axis=(1, 2)) / np.maximum(
        before_THW.sum(axis=(1, 2)), 1
    )
    kept = float(min(left_T.mean(), left_T[-1]))
    parts = {"trail": like >= _LIKE, "kept": kept >= _KEPT}
    return probe_verdict(parts, kept_share=kept, trail_overlap=like)


def read_eating(scene: EatingScene, pixels_THWC: np.ndarray, given: int) -> ProbeVerdict:
    """Returns whether dots are `eaten` when the mouth comes, `steady`: none comes back, and the mouth is in `place`."""
    frames = _frames(pixels_THWC, scene.form.frames, given)
    food_THW = cover_of(pixels_THWC, scene.food)
    row_H1, column_W = centres(scene.form)
    there = [
        food_THW[:, (row_H1 - scene.row) ** 2 + (column_W - column) ** 2 < scene.dot_radius**2].mean(axis=1) > _THERE
        for column in scene.dots
    ]
    there_TN = np.stack(there, axis=1)
    revived_T = (there_TN[given:] & ~there_TN[given - 1 : -1]).any(axis=1)
    agreed = float(np.mean(there_TN[given:] == scene.left_TN()[frames]))
    steady = float(1 - np.mean(revived_T))
    place_T2 = middle_of(cover_of(pixels_THWC[given:], scene.colour))
    true_T2 = np.stack([np.full(len(frames), scene.row), scene.column_T()[frames]], axis=1)
    error = distance(place_T2, true_T2)
    return probe_verdict(
        {
            "eaten": agreed >= _EATEN,
            "steady": steady >= _STEADY,
            "place": error < _FARTHEST * scene.form.height,
        },
        kept_share=steady,
    )
