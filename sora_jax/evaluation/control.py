"""Does a clip follow what was given beside it: its edges and its boxes.

Letters: N things, T H W C pixels, 4: top, left, bottom, right in px.
"""

import itertools
from typing import NamedTuple

import numpy as np

from sora_jax.evaluation import shapes_oracle
from sora_jax.preparation.edges import find_edges

# Fixed, in the middle of what is drawn in training, so that figures compare.
_LOW, _HIGH = 20.0, 50.0


def edges_f1(given_THWC: np.ndarray, made_THWC: np.ndarray) -> float | None:
    """Returns the F1 of edges of two uint8 clips of one shape, in [0, 1]: those of one within 1 px of the other's.

    Neighbours by corners are within; frames are compared one by one and counted together. None where neither has an
    edge, 0 where one has none.
    """
    assert given_THWC.shape == made_THWC.shape, (given_THWC.shape, made_THWC.shape)
    given_THW, made_THW = (find_edges(pixels, low=_LOW, high=_HIGH) for pixels in (given_THWC, made_THWC))
    if not given_THW.any() and not made_THW.any():
        return None
    right = np.sum(made_THW & _widened(given_THW)) / max(1, made_THW.sum())
    found = np.sum(given_THW & _widened(made_THW)) / max(1, given_THW.sum())
    return float(2 * right * found / (right + found)) if right and found else 0.0


class BoxError(NamedTuple):
    """How far things are from their boxes.

    Attributes:
      px: Distance of the middles, mean over frames and boxes; where a thing is not seen, the longer side of the frame.
      lost: Share of frames and boxes in which it is not.
    """

    px: float
    lost: float


def box_centre_error(boxes_NT4: np.ndarray, made_THWC: np.ndarray) -> BoxError:
    """Returns how far things of a drawn clip are from the boxes that were given, of which one frame has one at least.

    Things are what the reader of the drawn world sees, of up to as many hues as there are boxes; compared are the
    middles of the boxes around them, under the pairing that is kindest. Frames where a given box is NaN do not count.
    """
    assert boxes_NT4.shape[1] == len(made_THWC), (boxes_NT4.shape, made_THWC.shape)
    given_NT2 = (boxes_NT4[..., :2] + boxes_NT4[..., 2:]) / 2
    asked_NT = np.isfinite(given_NT2).all(axis=-1)
    assert asked_NT.any(), "no box is given"
    seen = [_middles(alpha) for _, alpha in shapes_oracle.coverages(made_THWC, max_objects=len(boxes_NT4))]
    seen += [np.full_like(given_NT2[0], np.nan)] * (len(boxes_NT4) - len(seen))
    found = []
    for order in itertools.permutations(seen):
        distance_NT = np.hypot(*np.moveaxis(given_NT2 - np.stack(order), -1, 0))
        lost_NT = np.isnan(distance_NT)
        px = np.where(lost_NT, max(made_THWC.shape[1:3]), distance_NT)[asked_NT].mean()
        found.append(BoxError(px=float(px), lost=float(lost_NT[asked_NT].mean())))
    return min(found)


def _middles(alpha_THW: np.ndarray) -> np.ndarray:
    """Returns (T, 2), row and column in px, of the middle of the box around an object's coverage; NaN where unseen."""
    middles_T2 = np.full((len(alpha_THW), 2), np.nan)
    for frame, alpha_HW in enumerate(alpha_THW):
        spans = [np.flatnonzero((alpha_HW > 0.5).any(axis=axis)) for axis in (1, 0)]
        if spans[0].size:
            middles_T2[frame] = [(span[0] + span[-1] + 1) / 2 for span in spans]
    return middles_T2


def _widened(edges_THW: np.ndarray) -> np.ndarray:
    """Returns edges and all pixels beside them, by sides or corners."""
    height, width = edges_THW.shape[1:]
    padded = np.pad(edges_THW, ((0, 0), (1, 1), (1, 1)))
    down = padded[:, :height] | padded[:, 1 : height + 1] | padded[:, 2:]
    return down[..., :width] | down[..., 1 : width + 1] | down[..., 2:]
