"""The autoencoder's objective against numpy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sora_jax.core.rng import Rngs
from sora_jax.models.bottleneck import KL
from sora_jax.models.discriminator import AdversarialAutoencoder, Discriminator, DiscriminatorConfig
from sora_jax.objectives.autoencoder import (
    AutoencoderLossConfig,
    adversarial_loss,
    disturbed,
    gradient_error,
    halved,
    make_objective,
)
from tests import small

RNG = np.random.default_rng(0)
CLIP = RNG.integers(0, 256, size=(3, 2, 8, 9, 3), dtype=np.uint8)
MEAN, LOG_VARIANCE = RNG.normal(size=(2, 3, 2, 2, 3, 4)).astype(np.float32)
KEY = jax.random.key(5)
SHAPE = dataclasses.replace(small.AUTOENCODER, patch=2, multipliers=(1, 1, 2), space_down=(True, False), channels=3)


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
    return AutoencoderLossConfig(
        **{"squared": 0.0, "absolute": 0.0, "gradient": 0.0, "perceptual": 0.0, "bottleneck": 0.0, "latent_noise": 0.0}
        | given
    )


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


def test_noise_on_latents_is_in_units_of_each_channel_and_up_to_its_level():
    scale_C = np.array([0.1, 1.0, 30.0], np.float32)
    latent = jnp.asarray(RNG.normal(size=(400, 2, 4, 4, 3)).astype(np.float32) * scale_C)
    noise = (disturbed(latent, KEY, level=0.6) - latent) / scale_C
    deviation_B = np.std(noise, axis=(1, 2, 3, 4))
    assert deviation_B.max() < 0.6 * 1.3
    # Uniform levels have a mean of half the largest, and a deviation of that over the root of three.
    assert np.mean(deviation_B) == pytest.approx(0.3, rel=0.1)
    assert np.std(deviation_B) == pytest.approx(0.3 / np.sqrt(3), rel=0.15)
    np.testing.assert_allclose(np.std(noise, axis=(0, 1, 2, 3)), 0.6 / np.sqrt(3), rtol=0.1)


def test_noise_on_latents_reaches_the_decoder_and_no_gradient_its_unit():
    clean, noisy = Stub(), Stub()
    for model, level in ((clean, 0.0), (noisy, 0.5)):
        make_objective(weights(latent_noise=level))(model, {"clip_BTHWC": jnp.asarray(CLIP)}, KEY)
    np.testing.assert_allclose(
        noisy.latent, disturbed(clean.latent, jax.random.fold_in(KEY, 1), level=0.5), rtol=1e-5, atol=1e-6
    )
    pull = jax.grad(lambda latent: jnp.sum(disturbed(latent, KEY, level=0.5)))(jnp.asarray(MEAN))
    np.testing.assert_array_equal(pull, 1.0)


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


def test_a_perceptual_distance_is_a_term_with_its_weight():
    def distance(made, clip):
        assert made.shape == clip.shape == CLIP.shape
        return jnp.mean(jnp.abs(made - clip), axis=(2, 3, 4)) + 1

    objective = make_objective(weights(absolute=1.0, perceptual=0.5), perceptual=distance)
    loss, metrics = objective(Stub(), {"clip_BTHWC": CLIP}, KEY)
    np.testing.assert_allclose(metrics["perceptual"].value(), metrics["absolute"].value() + 1, rtol=1e-6)
    np.testing.assert_allclose(loss.value(), 1.5 * metrics["absolute"].value() + 0.5, rtol=1e-6)


JUDGE = DiscriminatorConfig(width=4, levels=2)


@pytest.fixture(scope="module")
def judged():
    """Returns (structure, weights, made, clip, pull) for a judge of two clips."""
    structure, weights = nnx.split(Discriminator(JUDGE, rngs=Rngs(0)))
    made, clip, pull = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, size=(3, 2, 3, 16, 16, 3)), jnp.float32)
    return structure, weights, made, clip, pull


def test_the_autoencoder_is_pushed_by_a_share_of_its_other_gradient(judged):
    structure, weights, made, clip, pull = judged
    model = nnx.merge(structure, weights)
    push = jax.jit(jax.grad(lambda made: adversarial_loss(model, made, clip, pull, share=0.1)[0]))(made)
    towards = jax.jit(jax.grad(lambda made: -jnp.mean(model(made))))(made)
    np.testing.assert_allclose(jnp.linalg.norm(push), 0.1 * jnp.linalg.norm(pull), rtol=1e-4)
    np.testing.assert_allclose(push / jnp.linalg.norm(push), towards / jnp.linalg.norm(towards), atol=1e-6)
    assert jnp.mean(model(made - 1e-2 * push / jnp.linalg.norm(push))) > jnp.mean(model(made))


def test_the_judge_learns_the_hinge_loss_and_nothing_of_the_push(judged):
    structure, weights, made, clip, pull = judged

    def loss(weights):
        return adversarial_loss(nnx.merge(structure, weights), made, clip, pull, share=0.1)[0]

    def hinge(weights):
        model = nnx.merge(structure, weights)
        return jnp.mean(jax.nn.relu(1 - model(clip))) + jnp.mean(jax.nn.relu(1 + model(made)))

    np.testing.assert_allclose(loss(weights), hinge(weights), rtol=1e-6)
    got, expected = (jax.jit(jax.grad(function))(weights) for function in (loss, hinge))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, expected)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(got)) > 0


def test_one_loss_trains_both_and_the_judge_sees_patches_in_float32(judged):
    clip = judged[3]
    model = AdversarialAutoencoder(SHAPE, JUDGE, rngs=Rngs(0))
    verdict = model.discriminator(clip.astype(jnp.bfloat16))
    assert verdict.shape == (2, 3, 4, 4, 1)
    assert verdict.dtype == jnp.float32
    structure, weights_of_both = nnx.split(model)
    objective = make_objective(weights(absolute=1.0), adversarial=0.1, dtype=jnp.bfloat16)
    batch = {"clip_BTHWC": np.random.default_rng(0).integers(0, 256, size=(2, 5, 16, 16, 3), dtype=np.uint8)}

    @functools.partial(jax.grad, has_aux=True)
    def differentiated(weights):
        loss, metrics = objective(nnx.merge(structure, weights), batch, KEY)
        return loss.value(), metrics

    gradient, metrics = jax.jit(differentiated)(weights_of_both)
    parts = nnx.to_flat_state(gradient)
    silent = [".".join(map(str, path)) for path, leaf in parts if not np.abs(leaf.get_value()).max() > 0]
    assert silent == []
    assert {"judge", "judged_real", "judged_made", "psnr", "absolute", "bottleneck"} <= metrics.keys()
