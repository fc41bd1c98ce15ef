"""How far two sets of features lie apart: the distance of Gaussians fitted to them, and that of means under a kernel.

Letters: N and M samples, D features, R at most D rows. numpy; float64 inside.
"""

from typing import NamedTuple

import numpy as np

# Into how many parts, at most, `frechet_limit` divides the sets; the smallest must outnumber the features.
LIMIT_PARTS = 5
# Of the matrix of a kernel, which bounds its memory.
_ROWS_AT_ONCE = 1024
_SEED = 0


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    stderr: float


def frechet_distance(first_ND: np.ndarray, second_ND: np.ndarray) -> float:
    """Returns |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), at least 0, of two sets of two samples or more each.

    Dowson and Landau 1982; FID and FVD are this distance (arXiv 1706.08500, 1812.01717). Covariances are S = F'F of
    centred samples F. The eigenvalues of the symmetric product S1^(1/2) S2 S1^(1/2) are the squared singular values of
    F1 F2', so the trace of its root is their sum: no root of a matrix is taken, and fewer samples than features,
    where that root is ill-conditioned, do no harm.
    """
    first, second = np.asarray(first_ND, np.float64), np.asarray(second_ND, np.float64)
    assert min(len(first), len(second)) >= 2, (len(first), len(second))
    apart = np.sum(np.square(first.mean(0) - second.mean(0)))
    first_RD, second_RD = _factor(first), _factor(second)
    common = np.linalg.svd(first_RD @ second_RD.T, compute_uv=False).sum()
    return float(max(0.0, apart + np.sum(np.square(first_RD)) + np.sum(np.square(second_RD)) - 2 * common))


def frechet_estimate(first_ND: np.ndarray, second_ND: np.ndarray) -> Estimate:
    """Returns `frechet_distance` and how it would vary were the sets drawn again, at about the cost of computing it.

    The distance changes with the weight of a sample x of the first set by |x - m1|^2 - (x - m1)' A (x - m1) + 2 (x -
    m1)'(m1 - m2), with A the matrix that carries the first Gaussian to the second; the variance of this over samples,
    divided by their number, is the first set's part. Of equal or few samples it is somewhat large, but less so than
    that of sets resampled with replacement, whose repeats look like fewer samples. It knows nothing of the bias that
    `frechet_limit` takes away.
    """
    sets = [np.asarray(x, np.float64) for x in (first_ND, second_ND)]
    assert min(map(len, sets)) >= 2, list(map(len, sets))
    (first_RD, first_NR), (second_RD, second_NR) = map(_factors, sets)
    left, common, right = np.linalg.svd(first_RD @ second_RD.T, full_matrices=False)
    means = [x.mean(0) for x in sets]
    variance = 0.0
    for number, turned in enumerate((first_NR @ left, second_NR @ right.T)):
        centred, count = sets[number] - means[number], len(sets[number])
        change_N = np.sum(np.square(centred), axis=1) - (count - 1) * np.square(turned) @ common
        change_N += 2 * centred @ (means[number] - means[1 - number])
        variance += change_N.var(ddof=1) / count
    spread = np.sum(np.square(first_RD)) + np.sum(np.square(second_RD)) - 2 * common.sum()
    return Estimate(float(max(0.0, np.sum(np.square(means[0] - means[1])) + spread)), float(np.sqrt(variance)))


def frechet_limit(first_ND: np.ndarray, second_ND: np.ndarray) -> Estimate:
    """Returns what the Fréchet distance of two sets tends to with ever more samples, which may be below 0.

    The distance of N samples of each set is too large by a term in 1/N that depends on the sets (arXiv 1911.07023).
    Both are divided, in a fixed random order, into 1 to `LIMIT_PARTS` parts of equal sizes N; a line through the mean
    distances of the parts against 1/N ends in the limit. The standard error is that of the line, so it knows nothing
    of how the sets were drawn.

    AssertionError where the smallest part has no more samples than features: there the line is none.
    """
    order = np.random.RandomState(_SEED)
    first, second = (np.asarray(x, np.float64)[order.permutation(len(x))] for x in (first_ND, second_ND))
    most = min(len(first), len(second))
    assert most // LIMIT_PARTS > first.shape[1], (most, first.shape[1])
    inverse, distance = [], []
    for parts in range(1, LIMIT_PARTS + 1):
        size = most // parts
        starts = range(0, parts * size, size)
        found = [frechet_distance(*(x[start : start + size] for x in (first, second))) for start in starts]
        inverse.append(1 / size)
        distance.append(np.mean(found))
    design = np.stack([np.ones(LIMIT_PARTS), inverse], axis=1)
    solution, *_ = np.linalg.lstsq(design, np.asarray(distance), rcond=None)
    spread = np.sum(np.square(design @ solution - distance)) / (LIMIT_PARTS - 2)
    return Estimate(float(solution[0]), float(np.sqrt(spread * np.linalg.inv(design.T @ design)[0, 0])))


def kernel_distance(first_ND: np.ndarray, second_ND: np.ndarray) -> Estimate:
    """Returns the squared maximum mean discrepancy of the kernel (x.y / D + 1)^3, without bias: it may be below 0.

    KID of images (arXiv 1801.01401), KVD of videos; the sets have three samples or more and may differ in size, and
    distances of other sizes compare with it. Others take the mean over random subsets of 1,000 samples, to compute
    less; here all pairs count, which is what that mean tends to with ever more subsets. The standard error is the
    jackknife's: how the distance varies as each sample is left out (of equal distributions it is somewhat large).
    """
    first, second = np.asarray(first_ND, np.float64), np.asarray(second_ND, np.float64)
    assert min(len(first), len(second)) >= 3, (len(first), len(second))
    across_N, across_M = _kernel_sums(first, second), _kernel_sums(second, first)
    found, variance = -2 * across_N.sum() / (len(first) * len(second)), 0.0
    for one, across in ((first, across_N), (second, across_M)):
        count, others = len(one), len(first) + len(second) - len(one)
        within = _kernel_sums(one, one) - _kernel(np.sum(np.square(one), axis=1), one.shape[1])
        found += within.sum() / (count * (count - 1))
        # The terms in which a sample has a part, without each sample in turn.
        left = (within.sum() - 2 * within) / ((count - 1) * (count - 2))
        left -= 2 * (across.sum() - across) / ((count - 1) * others)
        variance += (count - 1) / count * np.sum(np.square(left - left.mean()))
    return Estimate(float(found), float(np.sqrt(variance)))


def _kernel_sums(first_ND: np.ndarray, second_MD: np.ndarray) -> np.ndarray:
    """Returns (N,): the sum of the kernel of each sample of one set with all of another."""
    blocks = range(0, len(first_ND), _ROWS_AT_ONCE)
    width = first_ND.shape[1]
    rows = [_kernel(first_ND[start : start + _ROWS_AT_ONCE] @ second_MD.T, width).sum(axis=1) for start in blocks]
    return np.concatenate(rows)


def _kernel(products: np.ndarray, width: int) -> np.ndarray:
    return (products / width + 1) ** 3


def _factor(samples_ND: np.ndarray) -> np.ndarray:
    """Returns F with F'F the unbiased covariance, of as few rows as will do."""
    centred = _scaled(samples_ND)
    return centred if len(centred) <= centred.shape[1] else np.linalg.qr(centred).R


def _factors(samples_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns F, and the orthonormal Q of (N, R) with QF the centred samples over the root of N - 1."""
    centred = _scaled(samples_ND)
    if len(centred) <= centred.shape[1]:
        return centred, np.eye(len(centred))
    result = np.linalg.qr(centred)
    return result.R, result.Q


def _scaled(samples_ND: np.ndarray) -> np.ndarray:
    return (samples_ND - samples_ND.mean(0)) / np.sqrt(len(samples_ND) - 1)
