"""The autoencoder's objective against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.models.bottleneck import KL
from sora_jax.objectives.autoencoder import AutoencoderLossConfig, gradient_error, halved, make_objective

RNG = np.random.default_rng(0)
CLIP = RNG.integers(0, 256, size=(3, 2, 8, 9, 3), dtype=np.uint8)
MEAN, LOG_VARIANCE = RNG.normal(size=(2, 3, 2, 2, 3, 4)).astype(np.float32)
KEY = jax.random.key(5)


class Stub:
    """Encodes every clip to MEAN and LOG_VARIANCE and decodes by a fixed map, remembering the latent."""

    bottleneck = KL(4)

    def moments(self, clip):
        assert clip.min() >= -1
        assert clip.max() <= 1
        return jnp.asarray(np.concatenate([MEAN, LOG_VARIANCE], axis=-1))

    def decode(self, latent):
        self.latent = latent
        return jnp.broadcast_to(jnp.mean(latent, axis=(2, 3, 4), keepdims=True), CLIP.shape)


def slow_gradient(error):
    """Mean over three scales and two axes of the mean absolute difference of neighbours."""
    terms = []
    for _ in range(3):
        for axis in (2, 3):
            near = [np.take(error, [i + 1], axis) - np.take(error, [i], axis) for i in range(error.shape[axis] - 1)]
            terms.append(np.mean(np.abs(np.concatenate(near, axis))))
        rows, columns = error.shape[2] // 2, error.shape[3] // 2
        small = np.zeros((*error.shape[:2], rows, columns, error.shape[4]))
        for row, column in np.ndindex(rows, columns):
            block = error[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            small[:, :, row, column] = block.mean(axis=(2, 3))
        error = small
    return np.mean(terms)


def weights(**given):
    return AutoencoderLossConfig(**{"squared": 0.0, "absolute": 0.0, "gradient": 0.0, "bottleneck": 0.0} | given)


@pytest.fixture(scope="module")
def expected():
    latent = MEAN + np.exp(LOG_VARIANCE / 2) * np.asarray(jax.random.normal(KEY, MEAN.shape))
    made = latent.astype(np.float64).mean(axis=(2, 3, 4), keepdims=True)
    error = made - (CLIP / 127.5 - 1)
    kl = 0.5 * (MEAN.astype(np.float64) ** 2 + np.exp(LOG_VARIANCE.astype(np.float64)) - 1 - LOG_VARIANCE)
    per_clip = np.mean(error**2, axis=(1, 2, 3, 4))
    return {
        "squared": np.mean(error**2),
        "absolute": np.mean(np.abs(error)),
        "gradient": slow_gradient(error),
        "bottleneck": np.mean(kl),
        "psnr": np.mean(20 * np.log10(2 / np.sqrt(per_clip))),
    }


def test_every_term_is_the_slow_one(expected):
    _, metrics = make_objective(weights())(Stub(), {"clip_BTHWC": CLIP}, KEY)
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name].value(), value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("given", [{"squared": 2.0}, {"absolute": 3.0}, {"gradient": 0.5, "bottleneck": 0.1}, {}])
def test_the_loss_is_the_weighted_sum_and_weighs_by_clips(expected, given):
    loss, _ = make_objective(weights(**given))(Stub(), {"clip_BTHWC": CLIP}, KEY)
    np.testing.assert_allclose(loss.value(), sum(w * expected[name] for name, w in given.items()), rtol=1e-5)
    assert loss.weight == 3


def test_the_latent_is_drawn_by_the_key_around_its_mean():
    stub, objective = Stub(), make_objective(weights(squared=1.0))
    draws = []
    for seed in range(40):
        objective(stub, {"clip_BTHWC": CLIP}, jax.random.key(seed))
        draws.append((np.asarray(stub.latent) - MEAN) / np.exp(LOG_VARIANCE / 2))
    assert abs(np.mean(draws)) < 0.05
    assert abs(np.std(draws) - 1) < 0.05


def test_edges_count_at_every_scale_and_flat_errors_do_not():
    flat = jnp.full((1, 1, 8, 8, 1), 0.7)
    assert gradient_error(flat).value() == 0
    fine = flat.at[0, 0, ::2].add(0.1)
    coarse = flat.at[0, 0, :4].add(0.1)
    for error in (fine, coarse):
        np.testing.assert_allclose(gradient_error(error).value(), slow_gradient(np.asarray(error)), rtol=1e-4)
        assert gradient_error(error).value() > 0


def test_an_odd_side_is_halved_without_its_last_line():
    x = jnp.arange(15.0).reshape(1, 1, 3, 5, 1)
    np.testing.assert_array_equal(halved(x)[0, 0, :, :, 0], [[3.0, 5.0]])
