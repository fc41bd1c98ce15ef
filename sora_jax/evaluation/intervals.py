"""How sure a number about two sets of clips is: intervals of 95 %, by what other clips would have given.

A resampled set holds some clips twice, and a Fréchet distance of such sets lies higher than that of sets of as many
different clips. So the bootstrap gives the deviation alone, and the interval lies around what was measured.

Letters: N M samples of a set, D features, R rounds. numpy; float64 inside.
"""

import dataclasses

import numpy as np

from sora_jax.evaluation.distances import frechet_distance

# Deviations of a normal distribution that hold 95 % of it.
_DEVIATIONS = 1.96
# Rounds of the bootstrap, and fewer where each takes seconds: the deviation is then known to a sixth.
_ROUNDS, _FEW_ROUNDS = 100, 20
_LARGE = 512  # the smaller of samples and features, from which on a round takes long


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """What was measured, and between which ends it would lie for other clips of the same kind, at 95 %."""

    value: float
    low: float
    high: float

    def facts(self) -> dict[str, float]:
        """Returns the three, fit for JSON."""
        return dataclasses.asdict(self)


def around(value: float, deviation: float, *, least: float = -np.inf) -> Interval:
    """Returns the interval of a value with a standard error; its lower end is `least` or more."""
    reach = _DEVIATIONS * deviation
    return Interval(value=value, low=max(least, value - reach), high=value + reach)


def mean_interval(values_N: np.ndarray) -> Interval:
    """Returns the mean of two values or more, one of each clip."""
    return around(float(values_N.mean()), float(values_N.std(ddof=1)) / np.sqrt(len(values_N)))


def frechet_interval(first_ND: np.ndarray, second_MD: np.ndarray, generator: np.random.Generator) -> Interval:
    """Returns the Fréchet distance of two sets of two clips or more, each with a row."""
    small = min(len(first_ND), len(second_MD), first_ND.shape[1])
    found = [
        frechet_distance(_drawn(first_ND, generator), _drawn(second_MD, generator))
        for _ in range(_ROUNDS if small < _LARGE else _FEW_ROUNDS)
    ]
    return around(frechet_distance(first_ND, second_MD), float(np.std(found, ddof=1)), least=0.0)


def earth_mover(first_N: np.ndarray, second_M: np.ndarray) -> float:
    """Returns the mean distance by which one set of numbers must be moved to become the other (Wasserstein-1)."""
    edges = np.sort(np.concatenate([first_N, second_M]))
    shares = [
        np.searchsorted(np.sort(values), edges[:-1], side="right") / len(values) for values in (first_N, second_M)
    ]
    return float(np.sum(np.abs(shares[0] - shares[1]) * np.diff(edges)))


def _drawn(rows_ND: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Returns as many rows, drawn with replacement."""
    return np.repeat(rows_ND, _counts(len(rows_ND), generator), axis=0)


def _counts(size: int, generator: np.random.Generator) -> np.ndarray:
    """Returns how often each is drawn with replacement, in as many draws; at least two are drawn."""
    while True:
        counts_N = generator.multinomial(size, np.full(size, 1 / size))
        if np.count_nonzero(counts_N) > 1:
            return counts_N
