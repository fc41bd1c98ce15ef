"""Does a camera's motion give near and far things their own speeds, and does a cube turn as one?"""

import dataclasses
import functools

import numpy as np

from sora_jax.data.scenes.parallax import PassingScene, TurningScene
from sora_jax.evaluation.probes.tracking import ProbeVerdict, chroma, cover_of, distance, middle_of, probe_verdict

_RATIO = 0.1  # of the ratio of distances, that it may be off
_RIGID = 0.5  # px, root mean square of what a steady motion leaves
_FARTHEST = 0.1  # of the height, that the object may be from its place, mean over frames
_STEPS = ((3.0, 0.05), (0.06, 0.004))  # px per frame: reach and step of a coarse and a fine search
_JITTER = np.arange(-1.5, 1.51, 0.1)  # px, in which a frame's own place is sought
_UNLIKE = 0.5  # of a wall's variance, that may differ between frames
_ANGLES = np.deg2rad(np.arange(0, 180, 3.0))
_UNLIKE_CUBE = 0.4  # of a cube's squared chroma, that may differ from a cube's
_CORNERS = 0.07  # of the height, that corners may be off, mean over frames


def read_passing(scene: PassingScene, pixels_THWC: np.ndarray, given: int) -> ProbeVerdict:
    """Returns whether speeds have the `ratio` of distances, both layers are `rigid` and the object is in `place`."""
    made_THWC, first = pixels_THWC[given - 1 :], given - 1
    cover_THW = cover_of(made_THWC, scene.colour)
    place_T2 = middle_of(cover_THW)
    truth_T2 = middle_of(cover_of(scene.render()[first:], scene.colour))
    frame_T = np.arange(len(made_THWC), dtype=np.float64)
    error = distance(place_T2, truth_T2)
    if not np.isfinite(error):
        return probe_verdict({"ratio": False, "rigid": False, "place": False, "wall": False}, ratio_error=1.0)
    near, start = np.polyfit(frame_T, place_T2[:, 1], 1)
    near_residual = float(np.sqrt(np.mean((place_T2[:, 1] - start - near * frame_T) ** 2)))
    rows = np.abs(np.arange(scene.form.height) + 0.5 - scene.start[0]) > scene.radius + 1
    wall_TW = made_THWC.mean(axis=-1, dtype=np.float64)[:, rows].mean(axis=1)
    far, unlike = _steady_speed(wall_TW)
    off = abs(near / far / scene.ratio - 1) if abs(far) > 1e-3 else 1.0
    return probe_verdict(
        {
            "ratio": off <= _RATIO,
            "rigid": max(near_residual, _jitter(wall_TW, far)) <= _RIGID,
            "place": error < _FARTHEST * scene.form.height,
            "wall": unlike < _UNLIKE,
        },
        ratio_error=min(off, 1.0),
    )


def _aligned(wall_TW: np.ndarray, speed: float) -> np.ndarray:
    """Returns the wall as each frame sees it, in the places of the first frame; NaN beyond the frame."""
    column_W = np.arange(wall_TW.shape[1], dtype=np.float64)
    rows = [
        np.interp(column_W + speed * number, column_W, line, left=np.nan, right=np.nan)
        for number, line in enumerate(wall_TW)
    ]
    return np.stack(rows)


def _differences(aligned_TW: np.ndarray) -> float:
    """Returns the mean variance over frames of places that at least half of the frames see."""
    seen_W = np.isfinite(aligned_TW).sum(axis=0) >= len(aligned_TW) / 2
    return float(np.nanvar(aligned_TW[:, seen_W], axis=0).mean()) if seen_W.sum() >= 4 else np.inf


def _steady_speed(wall_TW: np.ndarray) -> tuple[float, float]:
    """Returns the speed in px per frame at which frames agree best, and the share of the variance that is left."""
    speed, left = 0.0, np.inf
    for reach, step in _STEPS:
        tried = speed + np.arange(-reach, reach + step / 2, step)
        found = [_differences(_aligned(wall_TW, one)) for one in tried]
        speed, left = float(tried[int(np.argmin(found))]), min(found)
    return speed, left / max(float(wall_TW.var(axis=1).mean()), 1.0)


def _jitter(wall_TW: np.ndarray, speed: float) -> float:
    """Returns by how much frames are off a steady motion, root mean square in px."""
    aligned_TW = _aligned(wall_TW, speed)
    seen_W = np.isfinite(aligned_TW).sum(axis=0) >= len(aligned_TW) / 2
    column_W = np.arange(wall_TW.shape[1], dtype=np.float64)
    mean_W = np.nanmean(aligned_TW[:, seen_W], axis=0)
    found = []
    for number, line in enumerate(wall_TW):
        tried_JW = np.stack(
            [
                np.interp(column_W[seen_W] + speed * number + shift, column_W, line, left=np.nan, right=np.nan)
                for shift in _JITTER
            ]
        )
        found.append(_JITTER[int(np.argmin(np.nanmean((tried_JW - mean_W) ** 2, axis=1)))])
    return float(np.sqrt(np.mean(np.square(found))))


@functools.lru_cache(maxsize=64)
def _cubes(scene: TurningScene) -> np.ndarray:
    """Returns the chroma of the scene's cube at all `_ANGLES`, flat (A, D); what was made and its floor ask for it."""
    return chroma(scene.draw_cubes(_ANGLES)).reshape(len(_ANGLES), -1)


def read_turning(scene: TurningScene, pixels_THWC: np.ndarray, given: int) -> ProbeVerdict:
    """Returns whether the picture is that of a `cube`, and its upper `corners` are where a steady turn has them."""
    seen_TD = chroma(pixels_THWC[given:]).reshape(len(pixels_THWC) - given, -1)
    cubes_AD = _cubes(dataclasses.replace(scene, direction="left", start=0.0, turn=0.0))
    power_A = np.sum(cubes_AD**2, axis=1)
    squares_TA = np.sum(seen_TD**2, axis=1)[:, None] - 2 * seen_TD @ cubes_AD.T + power_A
    best_T = squares_TA.argmin(axis=1)
    unlike = float(np.mean(squares_TA.min(axis=1) / power_A[best_T]))
    truth_T = scene.angle_T()[given:]
    # A cube with two colours looks the same after half a turn.
    off_T = np.mod(_ANGLES[best_T] - truth_T + np.pi / 2, np.pi) - np.pi / 2
    corners_T42, moved_T42 = scene.corners_T42(truth_T), scene.corners_T42(truth_T + off_T)
    error = float(np.linalg.norm(corners_T42 - moved_T42, axis=-1).mean())
    return probe_verdict(
        {"cube": unlike < _UNLIKE_CUBE, "corners": error < _CORNERS * scene.form.height},
        corners_px=error,
    )
