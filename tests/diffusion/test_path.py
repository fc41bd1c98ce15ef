"""The identities of the path, exactly where they are exact, in every combination of its switches."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_jax.core.errors import UserError
from sora_jax.diffusion import path
from tests import small

PREDICTIONS = ("clean", "velocity", "noise")
B, L, P = 2, 3, 4


def draw(seed=0):
    rng = np.random.default_rng(seed)
    clean_BLP, noise_BLP, error_BLP = rng.normal(size=(3, B, L, P)).astype(np.float32)
    return jnp.asarray(clean_BLP), jnp.asarray(noise_BLP), jnp.asarray(error_BLP)


def truth(prediction, clean_BLP, noise_BLP):
    return {"clean": clean_BLP, "velocity": noise_BLP - clean_BLP, "noise": noise_BLP}[prediction]


def test_ends_of_the_path_are_exact():
    clean_BLP, noise_BLP, _ = draw()
    sigma_BL = jnp.zeros((B, L))
    np.testing.assert_array_equal(path.add_noise(clean_BLP, noise=noise_BLP, sigma=sigma_BL), clean_BLP)
    np.testing.assert_array_equal(path.add_noise(clean_BLP, noise=noise_BLP, sigma=sigma_BL + 1), noise_BLP)


def test_velocity_is_the_derivative_of_the_path():
    clean_BLP, noise_BLP, _ = draw()
    _, slope_BLP = jax.jvp(
        lambda sigma: path.add_noise(clean_BLP, noise=noise_BLP, sigma=sigma),
        (jnp.float32(0.3),),
        (jnp.float32(1),),
    )
    np.testing.assert_allclose(slope_BLP, path.velocity_target(clean_BLP, noise_BLP), rtol=1e-5, atol=1e-6)


@settings(deadline=None)
@given(prediction=st.sampled_from(PREDICTIONS), sigma=st.floats(0.125, 0.875, width=32), seed=st.integers(0, 9))
def test_a_perfect_prediction_gives_clean_tokens_and_velocity(prediction, sigma, seed):
    clean_BLP, noise_BLP, _ = draw(seed)
    config = small.path_config(prediction=prediction)
    x_sigma = path.add_noise(clean_BLP, noise=noise_BLP, sigma=sigma)
    output_BLP = truth(prediction, clean_BLP, noise_BLP)
    found_BLP = path.to_clean(output_BLP, x_sigma=x_sigma, sigma=sigma, config=config)
    np.testing.assert_allclose(found_BLP, clean_BLP, atol=2e-5)
    found_BLP = path.to_velocity(output_BLP, x_sigma=x_sigma, sigma=sigma, config=config)
    np.testing.assert_allclose(found_BLP, noise_BLP - clean_BLP, atol=2e-5)


@settings(deadline=None)
@given(prediction=st.sampled_from(PREDICTIONS), sigma=st.floats(0.125, 0.875, width=32), seed=st.integers(0, 9))
def test_any_prediction_lies_on_one_path(prediction, sigma, seed):
    """The clean tokens and the velocity implied by one output satisfy x_sigma = clean + sigma velocity."""
    clean_BLP, noise_BLP, output_BLP = draw(seed)
    config = small.path_config(prediction=prediction)
    x_sigma = path.add_noise(clean_BLP, noise=noise_BLP, sigma=sigma)
    found_clean = path.to_clean(output_BLP, x_sigma=x_sigma, sigma=sigma, config=config)
    found_velocity = path.to_velocity(output_BLP, x_sigma=x_sigma, sigma=sigma, config=config)
    np.testing.assert_allclose(found_clean + sigma * found_velocity, x_sigma, atol=5e-5)


@pytest.mark.parametrize(("prediction", "loss_space"), list(itertools.product(PREDICTIONS, ("velocity", "clean"))))
@pytest.mark.parametrize("sigma", [0.0, 0.01, 0.3, 0.7, 0.99, 1.0])
def test_loss_is_the_squared_difference_of_converted_predictions(prediction, loss_space, sigma):
    """Convert the output and the truth, both with the clipped divisor, subtract, square: the slow way."""
    clean_BLP, noise_BLP, error_BLP = draw()
    config = small.path_config(prediction=prediction, loss_space=loss_space)
    sigma_BL = jnp.full((B, L), sigma)
    x_sigma = path.add_noise(clean_BLP, noise=noise_BLP, sigma=sigma_BL)
    convert = {"velocity": path.to_velocity, "clean": path.to_clean}[loss_space]
    output_BLP = truth(prediction, clean_BLP, noise_BLP)
    wrong, right = (
        convert(value, x_sigma=x_sigma, sigma=sigma_BL, config=config) for value in (output_BLP + error_BLP, output_BLP)
    )
    loss_BL = path.token_loss(
        output_BLP + error_BLP, clean_BLP=clean_BLP, noise_BLP=noise_BLP, sigma_BL=sigma_BL, config=config
    )
    assert loss_BL.shape == (B, L)
    assert loss_BL.dtype == jnp.float32
    np.testing.assert_allclose(loss_BL, jnp.mean((wrong - right) ** 2, axis=-1), rtol=2e-3, atol=1e-6)


def test_clean_prediction_divides_by_the_clipped_level_per_token():
    clean_BLP, noise_BLP, error_BLP = draw()
    sigma_BL = jnp.array([[0.0, 0.05, 0.1], [0.2, 0.5, 1.0]])
    config = small.path_config(prediction="clean", loss_space="velocity", min_sigma=0.1)
    loss_BL = path.token_loss(
        clean_BLP + error_BLP, clean_BLP=clean_BLP, noise_BLP=noise_BLP, sigma_BL=sigma_BL, config=config
    )
    divisor_BL = np.array([[0.1, 0.1, 0.1], [0.2, 0.5, 1.0]])
    np.testing.assert_allclose(loss_BL, np.mean(error_BLP**2, -1) / divisor_BL**2, rtol=1e-4)


def test_bfloat16_predictions_are_judged_in_float32():
    clean_BLP, noise_BLP, _ = draw()
    loss_BL = path.token_loss(
        clean_BLP.astype(jnp.bfloat16),
        clean_BLP=clean_BLP,
        noise_BLP=noise_BLP,
        sigma_BL=jnp.ones((B, L)),
        config=small.path_config(),
    )
    assert loss_BL.dtype == jnp.float32
    rounding_BLP = clean_BLP.astype(jnp.bfloat16).astype(jnp.float32) - clean_BLP
    np.testing.assert_allclose(loss_BL, np.mean(rounding_BLP**2, -1), rtol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_weighs_the_clean_error(prediction):
    clean_BLP, noise_BLP, error_BLP = draw()
    sigma_BL = jnp.array([[0.0, 0.1, 0.3], [0.5, 0.9, 1.0]])
    losses = [
        path.token_loss(
            truth(prediction, clean_BLP, noise_BLP) + error_BLP,
            clean_BLP=clean_BLP,
            noise_BLP=noise_BLP,
            sigma_BL=sigma_BL,
            config=small.path_config(prediction=prediction, loss_space="clean", weighting=weighting),
        )
        for weighting in ("flat", "min_snr")
    ]
    # SNR at 0.3 is (7 / 3)^2 = 5.4, still capped; at 0.5 it is 1; at 0.9 it is 1 / 81.
    weight_BL = np.array([[5, 5, 5], [1, 1 / 81, 0]])
    assert np.all(np.isfinite(losses[1]))
    np.testing.assert_allclose(losses[1], losses[0] * weight_BL, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prediction": "x0"}, "'x0' is not one of: clean, velocity, noise"),
        ({"loss_space": "noise"}, "'noise' is not one of: velocity, clean"),
        ({"weighting": "edm"}, "'edm' is not one of: flat, min_snr"),
        ({"min_sigma": 0.0}, "0.0 is outside"),
        ({"weighting": "min_snr"}, "set loss_space to 'clean'"),
    ],
)
def test_bad_settings_are_named(change, words):
    with pytest.raises(UserError, match="path ") as caught:
        small.path_config(**change)
    assert words in str(caught.value)
