"""How far two sets of features lie apart: the Fréchet distance of the Gaussians fitted to them.

Letters: N samples, D features, R at most D rows. numpy; float64 inside.
"""

import numpy as np


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


def _factor(samples_ND: np.ndarray) -> np.ndarray:
    """Returns F with F'F the unbiased covariance, of as few rows as will do."""
    centred = (samples_ND - samples_ND.mean(0)) / np.sqrt(len(samples_ND) - 1)
    return np.linalg.qr(centred).R
