"""The autoencoder's objective: reconstruction, multi-scale gradients, and the bottleneck's own term.

Shapes: B clips, T H W frames, rows, columns, C channels.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sora_jax.core.mean import Mean
from sora_jax.models.autoencoder import Autoencoder
from sora_jax.video.pixels import to_float


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderLossConfig:
    """Weights of the terms, each a mean over what it measures.

    Attributes:
      squared: Of the squared error; it finds small moving things that an absolute error gives up on at the start.
      absolute: Of the absolute error.
      gradient: Of the absolute error of spatial gradients at full, half and quarter scale (edges).
      bottleneck: Of the bottleneck's own term (`models/bottleneck.py`): the divergence from a unit normal per number
        (kl), the distance to the nearest code (vq), nothing (fsq).
    """

    squared: float
    absolute: float
    gradient: float
    bottleneck: float


WEIGHTED = tuple(field.name for field in dataclasses.fields(AutoencoderLossConfig))

Batch = dict[str, jax.Array]


def make_objective(
    config: AutoencoderLossConfig,
) -> Callable[[Autoencoder, Batch, jax.Array], tuple[Mean, dict[str, Mean]]]:
    """Returns the objective `(autoencoder, batch, key) -> (loss, metrics)`; the batch holds clip_BTHWC uint8."""

    def objective(model: Autoencoder, batch: Batch, key: jax.Array) -> tuple[Mean, dict[str, Mean]]:
        clip = to_float(batch["clip_BTHWC"])
        latent, of_bottleneck = model.bottleneck.sample(model.moments(clip), key)
        error = (model.decode(latent) - clip).astype(jnp.float32)
        squared = Mean.of(jnp.mean(jnp.square(error), axis=(1, 2, 3, 4)))
        terms = {
            "squared": squared,
            "absolute": Mean.of(jnp.abs(error)),
            "gradient": gradient_error(error),
            **of_bottleneck,
        }
        loss = sum(getattr(config, name) * terms[name].value() for name in WEIGHTED)
        clips = jnp.float32(clip.shape[0])
        # Pixels span [-1, 1], so the peak is 2.
        psnr = Mean.of(10 * jnp.log10(4.0 / jnp.maximum(jnp.mean(jnp.square(error), axis=(1, 2, 3, 4)), 1e-10)))
        return Mean(loss * clips, clips), {"psnr": psnr, **terms}

    return objective


def gradient_error(error_BTHWC: jax.Array) -> Mean:
    """Returns the mean absolute spatial gradient of the error over three scales.

    It stands where others put a perceptual network, which would need weights from elsewhere.
    """
    result = Mean(jnp.float32(0), jnp.float32(0))
    for _ in range(3):
        for axis in (2, 3):
            term = Mean.of(jnp.abs(jnp.diff(error_BTHWC, axis=axis)))
            result = result.merge(Mean(term.value(), jnp.float32(1)))
        error_BTHWC = halved(error_BTHWC)
    return result


def halved(x_BTHWC: jax.Array) -> jax.Array:
    """Returns means over blocks of 2 x 2 positions; an odd last row or column is dropped."""
    height, width = (side // 2 * 2 for side in x_BTHWC.shape[2:4])
    x_BTHWC = x_BTHWC[:, :, :height, :width]
    return (
        x_BTHWC[:, :, ::2, ::2] + x_BTHWC[:, :, ::2, 1::2] + x_BTHWC[:, :, 1::2, ::2] + x_BTHWC[:, :, 1::2, 1::2]
    ) / 4
