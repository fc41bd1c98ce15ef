"""Which averages of the weights make up another: profiles over the updates, and their best mixture.

An average of relative width w after t updates weighs the past by (gamma + 1) i^gamma / t^(gamma + 1), i in (0, t]
(arXiv 2312.02696, equation 4). Averages of two widths, kept now and then, span nearly every other one: its profile is
fitted by theirs in least squares (section 3.2), and what holds for profiles holds for the averages, which are linear.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from sora_jax.core.errors import UserError
from sora_jax.train.state import ema_exponent

# Singular values of the products of unit profiles below this share of the largest one are left out: shares that cancel
# would multiply the rounding of float32 averages.
_SMALLEST = 1e-10
# Error of a fitted profile, as a share of the wanted one, above which the mixture is another average.
MOST_ERROR = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """How an average weighs the past.

    Attributes:
      updates: t, of the weights that it is over; more than 0.
      width: Its relative width, in (0, 0.28).
    """

    updates: int
    width: float

    @property
    def exponent(self) -> float:
        """Gamma."""
        return ema_exponent(self.width)


def inner(one: Profile, other: Profile) -> float:
    """Returns the integral of the product of two profiles, per update."""
    first, last = sorted((one, other), key=lambda profile: profile.updates)
    a, b = first.exponent, last.exponent
    return (a + 1) * (b + 1) / (a + b + 1) * (first.updates / last.updates) ** b / last.updates


def mixture(found: Sequence[Profile], wanted: Profile) -> tuple[np.ndarray, float]:
    """Returns (float64 shares of the profiles that are there, which sum to 1; error as a share of the wanted one).

    The error is that of the profile, in the root mean square over updates; profiles past the wanted one get nothing.
    Raises UserError where it exceeds `MOST_ERROR`: what is there does not span the wanted one.
    """
    used = [number for number, profile in enumerate(found) if profile.updates <= wanted.updates]
    lengths = np.array([inner(found[i], found[i]) for i in used]) ** 0.5
    products = np.array([[inner(found[i], found[j]) for j in used] for i in used]) / np.outer(lengths, lengths)
    target = np.array([inner(found[i], wanted) for i in used]) / lengths
    solved = np.linalg.lstsq(products, target, rcond=_SMALLEST)[0] / lengths
    shares = np.zeros(len(found))
    shares[used] = solved / np.sum(solved)
    scaled, whole = shares[used] * lengths, inner(wanted, wanted)
    error = float(np.sqrt(max(0.0, 1 + (scaled @ products @ scaled - 2 * scaled @ target) / whole)))
    if not error <= MOST_ERROR:
        there = ", ".join(f"{width:g}" for width in sorted({found[i].width for i in used}))
        raise UserError(
            f"an average of width {wanted.width:g} after {wanted.updates} updates cannot be made of those of "
            f"widths {there} at {len({found[i].updates for i in used})} moments: their best mixture misses its profile "
            f"by {error:.0%}, and at most {MOST_ERROR:.0%} will do; ask for a width nearer to these, or train with "
            "more ema.snapshots"
        )
    return shares, error
