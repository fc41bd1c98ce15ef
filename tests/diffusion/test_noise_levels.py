"""Strata are hit once each, levels follow their distribution, shifts move odds."""

from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_jax.core.errors import UserError
from sora_jax.diffusion import noise_levels
from tests import small

B, S = 4, 6
draw = jax.jit(noise_levels.draw, static_argnums=2)


def logit(sigma):
    return np.log(sigma) - np.log1p(-sigma)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), absent=st.lists(st.integers(0, B * S - 1), max_size=B * S - 1))
def test_each_stratum_holds_one_present_segment(seed, absent):
    tokens = np.full(B * S, 100)
    tokens[absent] = 0
    config = small.noise_config(mean=0.5, std=0.8, uniform_share=0.0)
    sigma_BS = np.asarray(draw(jax.random.key(seed), jnp.asarray(tokens.reshape(B, S)), config), np.float64)
    present = tokens > 0
    z = (logit(sigma_BS.reshape(-1)[present]) - 0.5) / 0.8
    u = np.asarray(jax.scipy.stats.norm.cdf(z))
    edges = np.sort(u) * present.sum()
    assert np.all(edges > np.arange(present.sum()) - 1e-3)
    assert np.all(edges < np.arange(present.sum()) + 1 + 1e-3)
    np.testing.assert_array_equal(sigma_BS.reshape(-1)[~present], 1.0)


def test_strata_are_shared_out_at_random():
    """Over many keys a given slot sees the whole distribution: its rank is uniform."""
    config = small.noise_config(uniform_share=0.0)
    tokens_BS = jnp.full((B, S), 100)
    keys = jax.random.split(jax.random.key(0), 2000)
    sigma_NBS = jax.vmap(lambda key: noise_levels.draw(key, tokens_BS, config))(keys)
    u = np.asarray(jax.scipy.stats.norm.cdf(logit(np.asarray(sigma_NBS[:, 1, 2], np.float64))))
    np.testing.assert_allclose(np.quantile(u, [0.1, 0.25, 0.5, 0.75, 0.9]), [0.1, 0.25, 0.5, 0.75, 0.9], atol=0.04)


def test_the_tail_is_uniform_and_unshifted_and_of_its_share():
    config = small.noise_config(mean=30.0, std=0.1, uniform_share=0.25, shift_base_tokens=1.0)
    sigma_BS = np.asarray(draw(jax.random.key(3), jnp.full((B, S), 100), config))
    tail = sigma_BS[sigma_BS < 0.999]
    assert len(tail) in (5, 6)  # 24 / 4, less a tail level that happens to be near 1
    config = small.noise_config(mean=30.0, std=0.1, uniform_share=1.0, shift_base_tokens=1.0)
    sigma = np.sort(np.asarray(draw(jax.random.key(3), jnp.full((B, S), 100), config)).reshape(-1))
    strata = np.ceil(sigma * B * S - 1e-3)
    np.testing.assert_array_equal(strata, np.arange(1, B * S + 1))


def test_levels_stay_in_range_at_extremes():
    for mean in (-60.0, 60.0):
        config = small.noise_config(mean=mean, std=5.0, uniform_share=0.5)
        sigma_BS = np.asarray(draw(jax.random.key(1), jnp.full((B, S), 7), config))
        assert np.all(sigma_BS > 0)
        assert np.all(sigma_BS <= 1)
        assert sigma_BS.dtype == np.float32


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_range_cuts_the_law_off_and_squeezes_nothing(share):
    """The levels are those of the whole law that fall into the range, each still in a stratum of its own."""
    config = small.noise_config(uniform_share=share, uniform_shift=3.0, shift_base_tokens=25.0)
    within, tokens = (0.3, 0.875), jnp.full((64, 64), 100)
    ranged = jax.jit(noise_levels.draw, static_argnums=2, static_argnames="within")
    found, whole = (
        np.sort(np.concatenate([np.asarray(ranged(jax.random.key(n), tokens, config, **k)).ravel() for n in range(8)]))
        for k in ({"within": within}, {})
    )
    assert found.min() >= 0.3
    assert found.max() <= 0.875
    kept = whole[(whole > 0.3) & (whole < 0.875)]
    assert len(kept) < 0.9 * len(whole)
    quantiles = np.linspace(0.02, 0.98, 25)
    np.testing.assert_allclose(np.quantile(found, quantiles), np.quantile(kept, quantiles), atol=0.008)
    one = np.asarray(ranged(jax.random.key(0), jnp.full((4, 6), 100), config, within=within)).ravel()
    if share == 1.0:
        u = np.sort(one / (one + 3.0 * (1 - one)))
        low, high = (level / (level + 3.0 * (1 - level)) for level in within)
        np.testing.assert_array_equal(np.floor((u - low) / (high - low) * 24 + 1e-4), np.arange(24))


@pytest.mark.parametrize(("within", "tokens"), [((0.995, 1.0), 4), ((0.99, 0.999), 4), ((0.0, 0.02), 126)])
def test_a_range_that_the_law_hardly_reaches_has_its_levels_too(within, tokens):
    config = small.noise_config(mean=0.4, shift_base_tokens=16.0, uniform_share=0.0)
    sigma = np.asarray(noise_levels.draw(jax.random.key(0), jnp.full((1024, 1), tokens), config, within=within))
    # The logits of the range before the shift, and, in float64, the quantiles between: from the end that is near.
    with np.errstate(divide="ignore"):
        low, high = (logit(np.float64(level)) - 0.5 * np.log(tokens / 16) - 0.4 for level in within)
    sign, normal = np.where(low > 0, -1, 1), NormalDist()
    first, last = normal.cdf(sign * low), normal.cdf(sign * high)
    assert abs(last - first) < 1e-6
    shares = (0.1, 0.5, 0.9)
    numbers = np.array([0.4 + sign * normal.inv_cdf(first + share * (last - first)) for share in shares])
    exact = 1 / (1 + np.exp(-numbers - 0.5 * np.log(tokens / 16)))
    width = np.ptp(exact)
    np.testing.assert_allclose(np.quantile(sigma, shares), exact, atol=5e-3 * width, rtol=0)


def test_the_public_law_is_a_shifted_uniform_one():
    config = small.noise_config(uniform_share=1.0, uniform_shift=5.0, shift_base_tokens=1.0)
    sigma = np.sort(np.asarray(draw(jax.random.key(3), jnp.full((B, S), 100), config)).ravel())
    strata = np.ceil(sigma / (sigma + 5.0 * (1 - sigma)) * B * S - 1e-3)
    np.testing.assert_array_equal(strata, np.arange(1, B * S + 1))


@settings(deadline=None)
@given(sigma=st.floats(0.01, 0.99), factor=st.floats(0.1, 20))
def test_shift_multiplies_the_odds_and_is_the_published_formula(sigma, factor):
    shifted = float(noise_levels.shift(jnp.float32(sigma), jnp.float32(factor)))
    np.testing.assert_allclose(shifted, factor * sigma / (1 + (factor - 1) * sigma), rtol=1e-4)
    np.testing.assert_allclose(shifted / (1 - shifted), factor * sigma / (1 - sigma), rtol=1e-3)


def test_alpha_grows_as_the_root_of_tokens_within_limits():
    config = small.noise_config(shift_base_tokens=100.0, shift_limits=(0.5, 3.0))
    found = noise_levels.alpha(jnp.array([1, 25, 100, 400, 10_000]), config)
    np.testing.assert_allclose(found, [0.5, 0.5, 1, 2, 3], rtol=1e-6)
    np.testing.assert_array_equal(noise_levels.alpha(jnp.array([1, 400]), small.noise_config()), 1.0)


def test_more_tokens_draw_more_noise():
    """The same key at four times the tokens doubles the odds of every level."""
    config = small.noise_config(shift_base_tokens=100.0, uniform_share=0.0)
    few, many = (np.asarray(draw(jax.random.key(0), jnp.full((B, S), n), config), np.float64) for n in (100, 400))
    np.testing.assert_allclose(logit(many) - logit(few), np.log(2), atol=1e-3)


def test_schedule_falls_from_one_to_zero_with_the_same_shift():
    config = small.noise_config(shift_base_tokens=100.0)
    tokens_BS = jnp.array([[100, 400], [0, 10_000]])
    sigma = np.asarray(noise_levels.schedule(8, tokens_BS, config))
    assert sigma.shape == (9, 2, 2)
    np.testing.assert_array_equal(sigma[0], 1.0)
    np.testing.assert_array_equal(sigma[-1], 0.0)
    assert np.all(np.diff(sigma, axis=0) < 0)
    np.testing.assert_allclose(sigma[:, 0, 0], np.linspace(1, 0, 9), atol=1e-6)
    np.testing.assert_allclose(sigma[4, 0, 1], 2 / 3, rtol=1e-5)
    np.testing.assert_array_equal(noise_levels.schedule(8, 400, config), sigma[:, 0, 1])
    with pytest.raises(UserError, match="at least 1"):
        noise_levels.schedule(0, 400, config)


@pytest.mark.parametrize("steps", [1, 2, 5, 50])
def test_a_schedule_meets_the_levels_it_is_told(steps):
    config = small.noise_config(shift_base_tokens=100.0)
    tokens_BS, start_BS = jnp.array([[100, 400, 3000]]), jnp.array([[1.0, 1.0, 0.5]])
    plain = np.asarray(noise_levels.schedule(steps, tokens_BS, config, start=start_BS))
    found = np.asarray(noise_levels.schedule(steps, tokens_BS, config, start=start_BS, through=(0.3, 0.9)))
    np.testing.assert_array_equal(found[[0, -1]], plain[[0, -1]])
    assert np.all(np.diff(found, axis=0) < 0)
    assert np.sum(found != plain, axis=0).max() <= 2
    if steps >= 5:
        met = np.any(found == np.float32(0.3), axis=0) & np.any(found == np.float32(0.9), axis=0)
        assert met.tolist() == [[True, True, False]], "the third starts below 0.9"


@pytest.mark.parametrize(
    "change",
    [
        {"std": 0.0},
        {"shift_base_tokens": 0.0},
        {"shift_limits": (2.0, 1.0)},
        {"uniform_share": 1.5},
        {"uniform_shift": 0.0},
    ],
)
def test_bad_settings_are_named(change):
    with pytest.raises(UserError, match=next(iter(change))):
        small.noise_config(**change)
