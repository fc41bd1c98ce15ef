"""Bottlenecks against numpy: what is drawn, what is rounded, which code is nearest, and where gradients go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sora_jax.core.rng import Rngs
from sora_jax.models.bottleneck import FSQ, KL, VQ, make_bottleneck

KEY = jax.random.key(0)


def draw(*shape, seed=0, scale=1.0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape, scale=scale).astype(np.float32))


def test_a_gaussian_is_drawn_around_its_mean_and_a_big_log_variance_is_clipped():
    moments = draw(2, 1, 3, 3, 8)
    mean, log_variance = np.split(np.asarray(moments, np.float64), 2, axis=-1)
    latent, metrics = KL(4).sample(moments, KEY)
    noise = np.asarray(jax.random.normal(KEY, mean.shape))
    np.testing.assert_allclose(latent, mean + np.exp(log_variance / 2) * noise, atol=1e-5)
    expected = np.mean(mean**2 + np.exp(log_variance) - 1 - log_variance) / 2
    np.testing.assert_allclose(metrics["bottleneck"].value(), expected, rtol=1e-5)
    np.testing.assert_array_equal(KL(4).mode(moments), moments[..., :4])
    assert np.isfinite(KL(4).sample(moments * 1e6, KEY)[1]["bottleneck"].value())


@pytest.mark.parametrize("levels", [2, 3, 5, 8])
def test_rounded_numbers_take_all_of_their_values_and_no_other(levels):
    values = np.unique(FSQ(1, levels).mode(jnp.linspace(-9, 9, 4001)[:, None]))
    expected = (np.arange(levels) - levels // 2) / (levels // 2)
    np.testing.assert_allclose(values, expected, atol=1e-6)


def test_rounding_lets_gradients_through_and_counts_its_codes():
    bottleneck, numbers = FSQ(2, 4), jnp.asarray([[[[[0.1, 9.0], [-0.2, 9.0], [-9.0, 9.0]]]]])
    gradient = jax.grad(lambda x: bottleneck.mode(x)[..., 0].sum())(numbers)
    assert np.all(np.asarray(gradient)[..., 0][..., :2] > 0.1)
    latent, metrics = bottleneck.sample(numbers, KEY)
    seen = [len(np.unique(np.asarray(latent)[..., channel])) for channel in range(2)]
    np.testing.assert_allclose(metrics["code_use"].value(), sum(seen) / 8, rtol=1e-6)
    assert metrics["bottleneck"].value() == 0


def test_the_nearest_code_is_the_nearest():
    bottleneck, numbers = VQ(3, 7, rngs=Rngs(0)), draw(2, 1, 4, 4, 3)
    book = np.asarray(bottleneck.codebook[...], np.float64)
    book /= np.linalg.norm(book, axis=-1, keepdims=True)
    unit = np.asarray(numbers, np.float64) / np.linalg.norm(numbers, axis=-1, keepdims=True)
    nearest = np.square(unit[..., None, :] - book).sum(-1).argmin(-1)
    np.testing.assert_allclose(bottleneck.mode(numbers), book[nearest], atol=1e-5)
    latent, metrics = bottleneck.sample(numbers, KEY)
    np.testing.assert_allclose(latent, book[nearest], atol=1e-5)
    np.testing.assert_allclose(metrics["code_use"].value(), len(np.unique(nearest)) / 7, rtol=1e-6)
    np.testing.assert_allclose(metrics["bottleneck"].value(), 1.25 * np.mean((unit - book[nearest]) ** 2), rtol=1e-4)


def test_codes_and_numbers_are_drawn_to_each_other():
    structure, params = nnx.split(VQ(3, 7, rngs=Rngs(0)))
    numbers = draw(1, 1, 4, 4, 3)

    def distance(params, numbers):
        return nnx.merge(structure, params).sample(numbers, KEY)[1]["bottleneck"].value()

    of_book, of_numbers = jax.grad(distance, argnums=(0, 1))(params, numbers)
    before = distance(params, numbers)
    moved = jax.tree.map(lambda p, g: p - 0.3 * g, params, of_book)
    assert distance(moved, numbers) < before
    assert distance(params, numbers - 0.3 * of_numbers) < before


def test_the_noise_is_that_of_the_posterior_or_of_what_rounding_takes_away():
    moments, gaussian = draw(2, 1, 3, 3, 8), KL(4)
    spread = np.std([gaussian.sample(moments, jax.random.key(seed))[0] for seed in range(400)], axis=0)
    np.testing.assert_allclose(np.sqrt(gaussian.noise(moments)), spread, rtol=0.2)
    numbers = draw(4000, 1, scale=0.4)
    for levels in (3, 8):
        rounding = FSQ(1, levels)
        step = np.diff(np.unique(rounding.mode(numbers)))[0]
        np.testing.assert_allclose(rounding.noise(numbers), step**2 / 12, rtol=1e-6)
    book = VQ(3, 7, rngs=Rngs(0))
    unit = numbers.reshape(-1, 1)[:3999].reshape(-1, 3)
    unit = unit / jnp.linalg.norm(unit, axis=-1, keepdims=True)
    np.testing.assert_allclose(book.noise(unit).sum(), jnp.square(unit - book.mode(unit)).sum(), rtol=1e-4)


@pytest.mark.parametrize(("name", "width"), [("kl", 8), ("fsq", 4), ("vq", 4)])
def test_each_name_gives_its_bottleneck_and_width(name, width):
    bottleneck = make_bottleneck(name, 4, None if name == "kl" else 5, rngs=Rngs(0))
    assert bottleneck.width == width
    moments = draw(1, 1, 2, 2, width).astype(jnp.bfloat16)
    assert bottleneck.mode(moments).shape == (1, 1, 2, 2, 4)
    assert bottleneck.mode(moments).dtype == bottleneck.sample(moments, KEY)[0].dtype == jnp.bfloat16
