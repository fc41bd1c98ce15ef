"""Is what was out of sight the same thing when it comes back, and where its speed says?"""

import numpy as np

from sora_jax.data.scenes.permanence import HidingScene
from sora_jax.evaluation import shapes_oracle
from sora_jax.evaluation.probes.tracking import ProbeVerdict, cover_of, distance, middle_of, probe_verdict

_HIDDEN, _WHOLE = 0.05, 0.99  # shares of the object's width in sight
_FARTHEST = 0.1  # of the height, that it may be from its place, mean over frames
_SIZES = (0.65, 1.5)  # of its area, over the true one
_GHOST = 0.25  # of its area, that may be seen while it is hidden


def read_hiding(scene: HidingScene, pixels_THWC: np.ndarray, given: int) -> ProbeVerdict:
    """Returns whether the object is `gone` while it is hidden, and after that has its colour, shape, size and place."""
    shown_T, number_T = scene.shown_T(), np.arange(scene.form.frames)
    # In a short clip no frame may show it wholly hidden; then those count that show least.
    hidden_T = shown_T <= max(_HIDDEN, shown_T.min())
    last_hidden = number_T[hidden_T].max()
    after_T = (number_T > last_hidden) & (shown_T > _WHOLE) & (number_T >= given)
    reading = shapes_oracle.read(pixels_THWC[after_T])
    cover_THW = cover_of(pixels_THWC, scene.colour)
    truth_THW = cover_of(scene.render(), scene.colour)
    area = truth_THW[after_T].sum(axis=(1, 2)).mean()
    size = cover_THW[after_T].sum(axis=(1, 2)).mean() / area
    ghost = cover_THW[hidden_T & (number_T >= given)].sum(axis=(1, 2)).max(initial=0.0) / area
    error = distance(middle_of(cover_THW[after_T]), middle_of(truth_THW[after_T]))
    return probe_verdict(
        {
            "gone": ghost < _GHOST,
            "colour": reading.colour == scene.colour,
            "shape": reading.shape == scene.shape,
            "size": _SIZES[0] < size < _SIZES[1],
            "place": error < _FARTHEST * scene.form.height,
        },
        place_px=min(error, float(scene.form.width)),
    )
