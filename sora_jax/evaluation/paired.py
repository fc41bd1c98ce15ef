"""What two runs came to on the same prompts with the same noise: shares, their difference, and whether it is chance.

Samples of one prompt are alike, so prompts are what is drawn again and whose signs are flipped, not samples.

P prompts, S samples of each, R repeats; a value is NaN where a sample could not be judged.
"""

from typing import Any

import numpy as np

_REPEATS = 10_000
_INTERVAL = (2.5, 97.5)  # percent


def mean_of(values_PS: np.ndarray) -> dict[str, float | None]:
    """Returns the mean `value` and its 95 % interval, `low` to `high`, by bootstrap over prompts; None without any."""
    return _bootstrap(values_PS)


def gap_of(one_PS: np.ndarray, other_PS: np.ndarray) -> dict[str, Any]:
    """Returns how much more `one` has than `other` on the samples that could be judged in both.

    `gap` with its 95 % interval, `low` to `high`, by bootstrap over prompts; `p`, two-sided, by flipping the sign of
    each prompt, at least 1e-4; `pairs`, how many samples that is of. All but `pairs` are None without any.
    """
    difference_PS = one_PS - other_PS
    found = _bootstrap(difference_PS)
    sums_P = np.nansum(difference_PS, axis=1)
    signs_RP = np.random.default_rng(1).choice((-1.0, 1.0), (_REPEATS, len(sums_P)))
    # Sums of the same numbers in another order differ by roundings.
    extreme = np.abs(signs_RP @ sums_P) >= abs(sums_P.sum()) - 1e-9
    pairs = int(np.isfinite(difference_PS).sum())
    p = float((1 + extreme.sum()) / (1 + _REPEATS)) if pairs else None
    return {"gap": found["value"], "low": found["low"], "high": found["high"], "p": p, "pairs": pairs}


def _bootstrap(values_PS: np.ndarray) -> dict[str, float | None]:
    counts_P = np.isfinite(values_PS).sum(axis=1)
    sums_P, counts_P = np.nansum(values_PS, axis=1)[counts_P > 0], counts_P[counts_P > 0]
    if not len(sums_P):
        return {"value": None, "low": None, "high": None}
    drawn_RP = np.random.default_rng(0).integers(len(sums_P), size=(_REPEATS, len(sums_P)))
    means_R = sums_P[drawn_RP].sum(axis=1) / counts_P[drawn_RP].sum(axis=1)
    low, high = np.percentile(means_R, _INTERVAL)
    return {"value": float(sums_P.sum() / counts_P.sum()), "low": float(low), "high": float(high)}
