"""Does a ball keep to the law of its motion?"""

import numpy as np

from sora_jax.data.scenes.physics import BallScene
from sora_jax.evaluation.probes.tracking import ProbeVerdict, cover_of, distance, middle_of, probe_verdict

_SPAN = 4  # frames, over which velocities are taken: a slow ball moves less in one than a place can be told
_OFF = 0.25  # of the speed, that velocities may be off, mean over frames
_SIZES = (0.65, 1.5)  # of the ball's area, over the true one
_FARTHEST = 0.15  # of the height, that it may be from its place, mean over frames
_ENDS = 4  # frames at both ends of what is made, of which energies are compared


def read_ball(scene: BallScene, pixels_THWC: np.ndarray, given: int) -> ProbeVerdict:
    """Returns whether the ball is `there` in its size, and has its `velocity` and `place`, with what is off.

    `velocity_error` is the mean difference over the mean speed, `energy_drift` the change of energy over that at first,
    both at most 1; `angle_error` is the direction at the end, in degrees.
    """
    cover_THW, truth_THW = cover_of(pixels_THWC, scene.colour), cover_of(scene.render(), scene.colour)
    area_T, true_T = cover_THW.sum(axis=(1, 2)), truth_THW.sum(axis=(1, 2))
    size_T = area_T[given:] / true_T[given:]
    place_T2, true_T2 = middle_of(cover_THW)[given - 1 :], middle_of(truth_THW)[given - 1 :]
    if not np.isfinite(place_T2).all():
        return probe_verdict(
            {"there": False, "velocity": False, "place": False}, velocity_error=1.0, energy_drift=1.0, angle_error=180.0
        )
    made_T2, wanted_T2 = (np.asarray(place[_SPAN:] - place[:-_SPAN]) / _SPAN for place in (place_T2, true_T2))
    speed = np.linalg.norm(wanted_T2, axis=1).mean()
    error = float(np.linalg.norm(made_T2 - wanted_T2, axis=1).mean() / speed)
    drift = abs(_energy(scene, place_T2[-_ENDS - 1 :]) / _energy(scene, place_T2[: _ENDS + 1]) - 1)
    last, due = made_T2[-1], wanted_T2[-1]
    cosine = last @ due / max(float(np.linalg.norm(last) * np.linalg.norm(due)), 1e-6)
    return probe_verdict(
        {
            "there": bool(_SIZES[0] < size_T.min() and size_T.max() < _SIZES[1]),
            "velocity": error <= _OFF,
            "place": distance(place_T2, true_T2) < _FARTHEST * scene.form.height,
        },
        velocity_error=min(error, 1.0),
        energy_drift=min(float(drift), 1.0),
        angle_error=float(np.rad2deg(np.arccos(np.clip(cosine, -1, 1)))),
    )


def _energy(scene: BallScene, place_T2: np.ndarray) -> float:
    """Returns the energy of a ball of mass 1 over a few frames, more than 0; height counts from the frame's bottom."""
    # In the frame in which it turns back the ball goes less far.
    squared = np.median(np.sum(np.diff(place_T2, axis=0) ** 2, axis=1))
    return float(squared / 2 + scene.gravity * (scene.form.height - place_T2[:, 0].mean())) + 1e-6
