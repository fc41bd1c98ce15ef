"""How sure a number about two sets of clips is: between which ends it would lie for other clips, at 95 %.

Letters: N M clips. numpy; float64 inside.
"""

import dataclasses

import numpy as np

# Deviations of a normal distribution that hold 95 % of it.
_DEVIATIONS = 1.96


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """What was measured, and between which ends it would lie for other clips of the same kind, at 95 %."""

    value: float
    low: float
    high: float

    def facts(self) -> dict[str, float]:
        """Returns the three, fit for JSON."""
        return dataclasses.asdict(self)


def around(value: float, deviation: float, *, least: float = -np.inf, most: float = np.inf) -> Interval:
    """Returns the interval of a value with a standard error; its ends are cut to `least` and `most`.

    What is cut off cannot be the value of any clips, so that the interval holds 95 % as before.
    """
    reach = _DEVIATIONS * deviation
    return Interval(value=value, low=max(least, value - reach), high=min(most, value + reach))


def mean_interval(values_N: np.ndarray, *, least: float = -np.inf, most: float = np.inf) -> Interval:
    """Returns the mean of two values or more, one of each clip, each from `least` to `most`, with its interval."""
    return around(float(values_N.mean()), float(values_N.std(ddof=1)) / np.sqrt(len(values_N)), least=least, most=most)


def earth_mover(first_N: np.ndarray, second_M: np.ndarray) -> float:
    """Returns the mean distance by which one set of numbers must be moved to become the other (Wasserstein-1)."""
    edges = np.sort(np.concatenate([first_N, second_M]))
    shares = [
        np.searchsorted(np.sort(values), edges[:-1], side="right") / len(values) for values in (first_N, second_M)
    ]
    return float(np.sum(np.abs(shares[0] - shares[1]) * np.diff(edges)))
