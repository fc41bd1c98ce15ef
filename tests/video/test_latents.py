"""Latent statistics against numpy over everything at once, in any order of merging."""

import functools

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_jax.video import latents


def clips(seed, lengths):
    rng = np.random.default_rng(seed)
    return [rng.normal([3, -1, 0], [0.1, 2, 7], size=(n, 2, 3, 3)).astype(np.float32) for n in lengths]


@settings(deadline=None)
@given(seed=st.integers(0, 99), lengths=st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_merged_statistics_are_those_of_all_positions(seed, lengths):
    found = [latents.LatentStatistics.of(clip) for clip in clips(seed, lengths)]
    forward = functools.reduce(latents.LatentStatistics.merge, found)
    backward = functools.reduce(latents.LatentStatistics.merge, found[::-1])
    every_MC = np.concatenate(clips(seed, lengths)).astype(np.float64).reshape(-1, 3)
    for statistics in (forward, backward):
        np.testing.assert_allclose(statistics.mean_C, every_MC.mean(0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(statistics.scale_C, every_MC.std(0), rtol=1e-9)  # without noise
        assert statistics.count == len(every_MC)


def test_normalised_latents_have_zero_mean_and_unit_variance_and_come_back():
    latent_THWC = clips(0, [20])[0]
    statistics = latents.LatentStatistics.of(latent_THWC)
    unit_THWC = latents.normalise(latent_THWC, statistics.mean_C, statistics.scale_C)
    assert unit_THWC.dtype == np.float32
    np.testing.assert_allclose(unit_THWC.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(unit_THWC.std((0, 1, 2)), 1, atol=1e-4)
    back_THWC = latents.denormalise(unit_THWC, statistics.mean_C, statistics.scale_C)
    np.testing.assert_allclose(back_THWC, latent_THWC, rtol=1e-5, atol=1e-5)
    on_device_THWC = latents.normalise(jnp.asarray(latent_THWC), statistics.mean_C, statistics.scale_C)
    np.testing.assert_allclose(on_device_THWC, unit_THWC, rtol=1e-5, atol=1e-5)


def test_a_constant_channel_is_centred_not_blown_up():
    statistics = latents.LatentStatistics.of(np.full((2, 3, 3, 1), 0.7, np.float32))
    np.testing.assert_array_equal(statistics.scale_C, [1.0])
    unit = latents.normalise(np.full((1, 1, 1, 1), 0.7, np.float32), statistics.mean_C, statistics.scale_C)
    np.testing.assert_allclose(unit, 0, atol=1e-6)


@given(seed=st.integers(0, 99), clips=st.integers(1, 3))
def test_the_noise_of_all_channels_is_equal_and_their_mean_variance_one(seed, clips):
    rng = np.random.default_rng(seed)
    deviation_C, noise_C = rng.uniform(0.05, 3, size=(2, 4))
    found = []
    for _ in range(clips):
        latent_THWC = rng.normal(2, deviation_C, size=(3, 5, 5, 4))
        found.append(latents.LatentStatistics.of(latent_THWC, np.broadcast_to(noise_C**2, latent_THWC.shape)))
    statistics = functools.reduce(latents.LatentStatistics.merge, found)
    noise_after_C = noise_C / statistics.scale_C
    np.testing.assert_allclose(noise_after_C, noise_after_C[0], rtol=1e-6)
    np.testing.assert_allclose(np.mean(statistics.variance_C / statistics.scale_C**2), 1, rtol=1e-6)


def test_a_channel_of_noise_alone_becomes_small_and_a_silent_one_counts_by_its_deviation():
    rng = np.random.default_rng(0)
    latent_THWC = rng.normal(size=(50, 8, 8, 3)) * [1.0, 0.1, 1.0]
    noise_THWC = np.broadcast_to([0.01, 1.0, 0.0], latent_THWC.shape)
    statistics = latents.LatentStatistics.of(latent_THWC, noise_THWC)
    loud, hidden, silent = latent_THWC.std((0, 1, 2)) / statistics.scale_C
    np.testing.assert_allclose(hidden / loud, 0.1 / 10, rtol=0.05)
    np.testing.assert_allclose(silent / loud, 100 / 10, rtol=0.05)  # its deviation over a hundredth of it
