"""Laws of how a loss falls with what is spent on it: L = E + A x^-a, or with a second term B y^-b.

E is the floor, what no model of any size would be without: of a loss of diffusion it is large, and depends on
autoencoder, noise levels and weighting. For given exponents the rest is linear, so the fit searches them alone
("variable projection", arXiv 2603.22339), on a grid that closes in on the best. What is minimised is the sum over runs
of Huber's function, with delta 1e-3, of the difference of the logarithms of both losses: a run that went wrong counts
little.

R runs, V terms, K = V + 1 coefficients, G points of the grid.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

_HUBER = 1e-3
_EXPONENTS = 0.02, 3.0  # that are searched
_FIRST, _NEXT, _ROUNDS = 25, 7, 6  # points of an exponent on the first grid and on the finer ones, and how many grids
_NEAR, _NEAR_FIRST, _NEAR_ROUNDS = 3.0, 9, 4  # where the law is known to a factor of this; points and grids then
_STEPS = 14  # of reweighting; Huber's delta is halved in each, from the first one on, until it is what it should be
_FIRST_HUBER = 0.3
_LEAST = 1e-12  # of a loss, that a logarithm is taken of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Law:
    """L = floor + sum over terms of scale (size / centre)^-exponent.

    Attributes:
      floor: E, in the unit of the loss.
      scales: Of each term, what it adds at its centre.
      exponents: Of each term.
      centres: Of each term, geometric mean of the sizes that it was fitted to.
    """

    floor: float
    scales: tuple[float, ...]
    exponents: tuple[float, ...]
    centres: tuple[float, ...]

    def loss(self, *sizes: np.ndarray | float) -> np.ndarray:
        """Returns the loss at sizes, one array or number for each term, float64."""
        terms = zip(self.scales, self.exponents, self.centres, sizes, strict=True)
        return np.asarray(self.floor + sum(s * (np.asarray(x, float) / c) ** -e for s, e, c, x in terms))


def fit_law(loss_R: np.ndarray, sizes_VR: np.ndarray, *, near: Law | None = None) -> Law:
    """Returns the law that fits runs best, its floor and scales not negative.

    Args:
      loss_R: Of each run, more than 0.
      sizes_VR: What was spent on each, more than 0, of 2 V + 1 or more different values.
      near: A law whose exponents are about those that are sought; None: nothing is known.

    Raises:
      ValueError: There are too few different sizes.
    """
    loss_R, sizes_VR = np.asarray(loss_R, float), np.asarray(sizes_VR, float)
    needed, there = 2 * len(sizes_VR) + 1, len(np.unique(sizes_VR.round(12), axis=1).T)
    if there < needed:
        raise ValueError(f"{there} different sizes: a law of {needed} numbers needs as many")
    centre_V = np.exp(np.log(sizes_VR).mean(axis=1))
    log_VR = np.log(sizes_VR / centre_V[:, None])
    if near is None:
        axes, rounds = [np.geomspace(*_EXPONENTS, _FIRST)] * len(log_VR), _ROUNDS
    else:
        axes, rounds = [_around(exponent, _NEAR, _NEAR_FIRST) for exponent in near.exponents], _NEAR_ROUNDS
    for _ in range(rounds):
        exponent_GV = np.array(list(itertools.product(*axes)))
        coefficient_GK, error_G = _solve(loss_R, log_VR, exponent_GV)
        best = int(error_G.argmin())
        axes = [_around(e, axis[1] / axis[0], _NEXT) for e, axis in zip(exponent_GV[best], axes, strict=True)]
    floor, *scales = map(float, coefficient_GK[best])
    exponents = tuple(map(float, exponent_GV[best]))
    return Law(floor=floor, scales=tuple(scales), exponents=exponents, centres=tuple(map(float, centre_V)))


def _around(exponent: float, ratio: float, count: int) -> np.ndarray:
    """Returns exponents from one `ratio` times smaller to one as much larger, within those that are searched."""
    low, high = _EXPONENTS
    return np.geomspace(max(low, exponent / ratio), min(high, exponent * ratio), count)


def _solve(loss_R: np.ndarray, log_VR: np.ndarray, exponent_GV: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the coefficients (G, K) that fit best for the exponents of each point of the grid, and the errors (G)."""
    term_GVR = np.exp(-exponent_GV[:, :, None] * log_VR)
    term_GKR = np.concatenate([np.ones_like(term_GVR[:, :1]), term_GVR], axis=1)
    coefficient_GK = np.zeros(term_GKR.shape[:2])
    model_GR = np.full((len(term_GKR), len(loss_R)), loss_R.mean())
    for step in range(_STEPS):
        # Near the model, the difference of the logarithms is that of the losses, divided by the model's.
        difference_GR = np.log(loss_R / model_GR)
        delta = max(_HUBER, _FIRST_HUBER * 0.5**step)
        weight_GR = np.minimum(1.0, delta / np.maximum(np.abs(difference_GR), _LEAST)) / model_GR**2
        coefficient_GK = _not_negative(term_GKR, model_GR * (1 + difference_GR), weight_GR)
        model_GR = np.maximum(np.einsum("gk,gkr->gr", coefficient_GK, term_GKR), _LEAST)
    size_GR = np.abs(np.log(loss_R / model_GR))
    return coefficient_GK, np.where(size_GR <= _HUBER, size_GR**2 / 2, _HUBER * (size_GR - _HUBER / 2)).sum(axis=1)


def _not_negative(term_GKR: np.ndarray, target_GR: np.ndarray, weight_GR: np.ndarray) -> np.ndarray:
    """Returns the coefficients (G, K) of least squares that are not negative, by trying every set of terms."""
    weighted_GKR = term_GKR * weight_GR[:, None]
    square_GKK = np.einsum("gkr,gjr->gkj", weighted_GKR, term_GKR)
    right_GK = np.einsum("gkr,gr->gk", weighted_GKR, target_GR)
    best_GK, least_G = np.zeros_like(right_GK), np.full(len(right_GK), np.inf)
    count = right_GK.shape[1]
    for kept in (set_ for size in range(count, 0, -1) for set_ in itertools.combinations(range(count), size)):
        found_GK = np.zeros_like(right_GK)
        found_GK[:, kept] = _of_set(square_GKK, right_GK, kept)
        # Of least squares, without what is the same for all: x' S x - 2 r' x.
        error_G = np.einsum("gk,gkj,gj->g", found_GK, square_GKK, found_GK) - 2 * (right_GK * found_GK).sum(axis=1)
        better_G = (found_GK >= 0).all(axis=1) & (error_G < least_G)
        best_GK[better_G], least_G[better_G] = found_GK[better_G], error_G[better_G]
        if len(kept) == count and better_G.all():
            break  # fewer terms cannot fit better
    return best_GK


def _of_set(square_GKK: np.ndarray, right_GK: np.ndarray, kept: Sequence[int]) -> np.ndarray:
    """Returns the coefficients of some terms alone; a ridge too small to be seen keeps equal terms apart."""
    chosen_GKK = square_GKK[:, kept][:, :, kept]
    ridge_G = 1e-12 * np.trace(chosen_GKK, axis1=1, axis2=2)
    chosen_GKK = chosen_GKK + ridge_G[:, None, None] * np.eye(len(kept))
    return np.linalg.solve(chosen_GKK, right_GK[:, kept, None])[..., 0]
