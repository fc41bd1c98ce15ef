"""The path from data to noise, what the network predicts on it, and the loss.

    x_sigma = (1 - sigma) clean + sigma noise,        velocity = d x_sigma / d sigma = noise - clean

sigma = 0 is clean and sigma = 1 is pure noise. (arXiv 2511.13720, whose clean prediction with a velocity loss
is one choice here, lets its t run the other way: t = 1 - sigma, and its velocity is minus ours.)

Letters: B rows, L tokens, P patch width. Wherever (..., P) is said, sigma has the leading shape or broadcasts
to it: a scalar, (B, 1) and (B, L) all do. Everything is float32.
"""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from sora_jax.core.errors import UserError

PredictionType = Literal["clean", "velocity", "noise"]
LossSpace = Literal["velocity", "clean"]
Weighting = Literal["flat", "min_snr"]

_MIN_SNR_GAMMA = 5.0  # arXiv 2303.09556, section 4.3


@dataclasses.dataclass(frozen=True, kw_only=True)
class PathConfig:
    """Three independent switches and a guard; raises UserError on a value outside them.

    prediction: what the network outputs.
    loss_space: where its error is squared. An affine map relates the two, so this is a weight in sigma.
    weighting:  "flat" leaves that loss as it is; "min_snr" (arXiv 2303.09556) weighs the clean error by
                min(SNR, 5) with SNR = ((1 - sigma) / sigma)^2, and so needs loss_space "clean".
    min_sigma:  smallest divisor of a conversion, in (0, 1): it stands for sigma under a clean prediction and
                for 1 - sigma under a noise prediction.
    """

    prediction: PredictionType
    loss_space: LossSpace
    weighting: Weighting
    min_sigma: float

    def __post_init__(self):
        for name, kind in (("prediction", PredictionType), ("loss_space", LossSpace), ("weighting", Weighting)):
            if getattr(self, name) not in get_args(kind):
                choices = ", ".join(get_args(kind))
                raise UserError(f"path {name} {getattr(self, name)!r} is not one of: {choices}")
        if not 0 < self.min_sigma < 1:
            raise UserError(f"path min_sigma {self.min_sigma} is outside (0, 1); 0.05 is usual")
        if self.weighting == "min_snr" and self.loss_space != "clean":
            raise UserError(
                f"path weighting 'min_snr' weighs the clean error but loss_space is {self.loss_space!r}: "
                "set loss_space to 'clean' or weighting to 'flat'"
            )


def add_noise(clean: jax.Array, *, noise: jax.Array, sigma: jax.Array) -> jax.Array:
    """Returns x_sigma (..., P): clean at sigma 0, noise at sigma 1, both exactly."""
    sigma = _over_patch(sigma)
    return (1 - sigma) * clean + sigma * noise


def velocity_target(clean: jax.Array, noise: jax.Array) -> jax.Array:
    """Returns noise - clean (..., P): the velocity of the path, the same at every sigma."""
    return noise.astype(jnp.float32) - clean


def to_clean(prediction: jax.Array, *, x_sigma: jax.Array, sigma: jax.Array, config: PathConfig) -> jax.Array:
    """Returns the clean tokens (..., P) that a network output implies at `x_sigma`.

    A noise prediction says nothing of the clean tokens at sigma = 1, hence the clipped divisor.
    """
    prediction, sigma = prediction.astype(jnp.float32), _over_patch(sigma)
    if config.prediction == "clean":
        return prediction
    if config.prediction == "velocity":
        return x_sigma - sigma * prediction
    return (x_sigma - sigma * prediction) / jnp.maximum(1 - sigma, config.min_sigma)


def to_velocity(prediction: jax.Array, *, x_sigma: jax.Array, sigma: jax.Array, config: PathConfig) -> jax.Array:
    """Returns the velocity (..., P) that a network output implies at `x_sigma`.

    A clean prediction gives (x_sigma - clean) / max(sigma, min_sigma): below min_sigma a step to sigma = 0
    stops short of the prediction instead of multiplying its error.
    """
    prediction, sigma = prediction.astype(jnp.float32), _over_patch(sigma)
    if config.prediction == "clean":
        return (x_sigma - prediction) / jnp.maximum(sigma, config.min_sigma)
    if config.prediction == "velocity":
        return prediction
    return (prediction - x_sigma) / jnp.maximum(1 - sigma, config.min_sigma)


def token_loss(
    prediction_BLP: jax.Array,
    *,
    clean_BLP: jax.Array,
    noise_BLP: jax.Array,
    sigma_BL: jax.Array,
    config: PathConfig,
) -> jax.Array:
    """Returns loss_BL float32: each token's squared error, mean over P, weighted; finite for sigma in [0, 1].

    The error is convert(prediction) - convert(truth) in the loss space, both with the same clipped divisor.
    The conversion is affine in the network output, so this is the output's own error times a gain: x_sigma
    drops out and nothing cancels.
    """
    truth_BLP = {
        "clean": clean_BLP,
        "velocity": velocity_target(clean_BLP, noise_BLP),
        "noise": noise_BLP,
    }[config.prediction]
    error_BLP = prediction_BLP.astype(jnp.float32) - truth_BLP
    scale_BL = _gain(sigma_BL, config) ** 2 * _weight(sigma_BL, config)
    return scale_BL * jnp.mean(jnp.square(error_BLP), axis=-1)


def _gain(sigma_BL: jax.Array, config: PathConfig) -> jax.Array:
    """Returns |d converted / d prediction|, the slope of `to_velocity` or of `to_clean`."""
    to_velocity_BL = {
        "clean": 1 / jnp.maximum(sigma_BL, config.min_sigma),
        "velocity": jnp.ones_like(sigma_BL),
        "noise": 1 / jnp.maximum(1 - sigma_BL, config.min_sigma),
    }[config.prediction]
    if config.loss_space == "velocity":
        return to_velocity_BL
    return jnp.ones_like(sigma_BL) if config.prediction == "clean" else sigma_BL * to_velocity_BL


def _weight(sigma_BL: jax.Array, config: PathConfig) -> jax.Array:
    if config.weighting == "flat":
        return jnp.ones_like(sigma_BL)
    snr_BL = ((1 - sigma_BL) / jnp.maximum(sigma_BL, 1e-6)) ** 2
    return jnp.minimum(snr_BL, _MIN_SNR_GAMMA)


def _over_patch(sigma: jax.Array) -> jax.Array:
    return jnp.asarray(sigma, jnp.float32)[..., None]
