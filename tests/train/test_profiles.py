"""Averages as mixtures of other averages: profiles, their products, and what comes of weights."""

import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.train.profiles import MOST_ERROR, Profile, inner, mixture
from sora_jax.train.state import ema_exponent

UPDATES = 1200


def density(profile, time):
    gamma = profile.exponent
    return np.where(time <= profile.updates, (gamma + 1) * time**gamma / profile.updates ** (gamma + 1), 0.0)


@pytest.mark.parametrize("times", [(700, 1200), (1200, 700), (900, 900)])
def test_the_product_of_two_profiles_is_their_integral(times):
    one, other = Profile(updates=times[0], width=0.05), Profile(updates=times[1], width=0.12)
    time = np.linspace(0, 1200, 1_200_001)
    expected = np.trapezoid(density(one, time) * density(other, time), time)
    assert inner(one, other) == pytest.approx(expected, rel=1e-4)


def test_a_profile_that_is_there_is_taken_alone():
    found = [Profile(updates=t, width=w) for t in (400, 800, 1200) for w in (0.05, 0.1)]
    shares, error = mixture(found, found[3])
    np.testing.assert_allclose(shares, [0, 0, 0, 1, 0, 0], atol=1e-6)
    assert error < 1e-6
    assert shares[4] == shares[5] == 0, "no later weights enter an earlier average"


def averages_of(weights, width):
    """Returns the average after every update, in float32 as training keeps it."""
    average, found = np.zeros_like(weights[0]), []
    for number, now in enumerate(weights, start=1):
        beta = np.float32((1 - 1 / number) ** (ema_exponent(width) + 1))
        average = beta * average + (1 - beta) * now
        found.append(average)
    return found


def test_a_mixture_is_the_average_that_was_tracked():
    rng = np.random.default_rng(0)
    falling = np.linspace(1, 0.02, UPDATES)[:, None]  # as the learning rate does
    weights = (1 + np.cumsum(0.01 * falling * rng.normal(size=(UPDATES, 40)), axis=0)).astype(np.float32)
    moments = [UPDATES * (i + 1) // 16 for i in range(16)]
    found = [Profile(updates=t, width=w) for t in moments for w in (0.05, 0.1)]
    tracks = {width: averages_of(weights, width) for width in (0.05, 0.1)}
    for width, most in ((0.04, 1e-2), (0.08, 1e-3), (0.15, 1e-2)):
        shares, error = mixture(found, Profile(updates=UPDATES, width=width))
        assert shares.sum() == pytest.approx(1)
        assert error < MOST_ERROR
        made = sum(share * tracks[one.width][one.updates - 1] for share, one in zip(shares, found, strict=True))
        tracked = averages_of(weights, width)[-1]
        distance = np.linalg.norm(made - tracked) / np.linalg.norm(tracked - weights[-1])
        assert distance < most, (width, distance)


def test_a_width_that_is_out_of_reach_is_refused():
    found = [Profile(updates=t, width=w) for t in (600, 1200) for w in (0.05, 0.1)]
    with pytest.raises(UserError, match=r"width 0.01 after 1200 updates cannot be made .* 0.05, 0.1 at 2 moments"):
        mixture(found, Profile(updates=1200, width=0.01))
