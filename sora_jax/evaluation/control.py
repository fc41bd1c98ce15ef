"""Does a clip follow what was given beside it: its edges and its boxes.

Letters: N things, T H W C pixels, 4: top, left, bottom, right in px.
"""

import itertools

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


def box_centre_error(boxes_NT4: np.ndarray, made_THWC: np.ndarray) -> float | None:
    """Returns how far things of a drawn clip are from the boxes that were given, px, mean over frames and boxes.

    Things are what the reader of the drawn world sees, of up to as many hues as there are boxes; compared are the
    middles of the boxes around them, under the pairing that is kindest. None where it sees fewer than boxes, or no
    frame has both; frames where a given box is NaN do not count.
    """
    assert boxes_NT4.shape[1] == len(made_THWC), (boxes_NT4.shape, made_THWC.shape)
    seen = shapes_oracle.coverages(made_THWC, max_objects=len(boxes_NT4))
    if not seen or len(seen) < len(boxes_NT4):
        return None
    seen_NT2 = np.stack([_middles(alpha_THW) for _, alpha_THW in seen])
    given_NT2 = (boxes_NT4[..., :2] + boxes_NT4[..., 2:]) / 2
    orders = itertools.permutations(range(len(seen)))
    distances = [np.hypot(*np.moveaxis(given_NT2 - seen_NT2[list(order)], -1, 0)) for order in orders]
    means = [float(np.nanmean(one)) for one in distances if np.isfinite(one).any()]
    return min(means) if means else None


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
