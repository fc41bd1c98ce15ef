"""The autoencoder's objective: reconstruction, multi-scale gradients, the bottleneck's own term, and a judge.

Shapes: B clips, T H W frames, rows, columns, C channels.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sora_jax.core.mean import Mean
from sora_jax.core.tree import Batch
from sora_jax.models.autoencoder import Autoencoder
from sora_jax.models.discriminator import AdversarialAutoencoder, Discriminator
from sora_jax.video.pixels import to_float

Means = dict[str, Mean]
# Clip and reconstruction in [-1, 1] -> a distance for each frame, (B, T).
Distance = Callable[[jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderLossConfig:
    """Weights of the terms, each a mean over what it measures.

    Attributes:
      squared: Of the squared error; it finds small moving things that an absolute error gives up on at the start.
      absolute: Of the absolute error.
      gradient: Of the absolute error of spatial gradients at full, half and quarter scale (edges).
      perceptual: Of the distance that a network sees (`models/perceptual.py`).
      bottleneck: Of the bottleneck's own term (`models/bottleneck.py`): the divergence from a unit normal per number
        (kl), the distance to the nearest code (vq), nothing (fsq).
      latent_noise: Largest deviation of the noise that latents are decoded with in training, as a share of their own;
        each clip draws a level up to it. A decoder that saw such latents draws clean forms from latents that are a
        little off, as sampled ones are (arXiv 2510.11690, section 4.3, which leaves its encoder as it is).
    """

    squared: float
    absolute: float
    gradient: float
    perceptual: float
    bottleneck: float
    latent_noise: float


def make_objective(
    config: AutoencoderLossConfig,
    *,
    adversarial: float = 0.0,
    perceptual: Distance | None = None,
    dtype: Any = jnp.float32,
) -> Callable[[Autoencoder, Batch, jax.Array], tuple[Mean, Means]]:
    """Returns the objective `(autoencoder, batch, key) -> (loss, metrics)`; the batch holds clip_BTHWC uint8.

    Args:
      config: Weights of the terms.
      adversarial: Length of the judge's gradient with respect to the pixels, as a share of that of all other terms; 0:
        there is no judge. Otherwise the model is an `AdversarialAutoencoder`.
      perceptual: The distance of that term; None where its weight is 0.
      dtype: Of the activations; losses are float32.
    """

    def of_pixels(made: jax.Array, clip: jax.Array) -> Means:
        error = made - clip
        terms = {
            "squared": Mean.of(jnp.square(error)),
            "absolute": Mean.of(jnp.abs(error)),
            "gradient": gradient_error(error),
        }
        return terms | ({} if perceptual is None else {"perceptual": Mean.of(perceptual(made, clip))})

    def weighted(terms: Means) -> jax.Array:
        return jnp.sum(jnp.stack([getattr(config, name) * term.value() for name, term in terms.items()]))

    def objective(model: Autoencoder, batch: Batch, key: jax.Array) -> tuple[Mean, Means]:
        clip = to_float(batch["clip_BTHWC"])
        latent, of_bottleneck = model.bottleneck.sample(model.moments(clip.astype(dtype)), key)
        if config.latent_noise:
            latent = disturbed(latent, jax.random.fold_in(key, 1), level=config.latent_noise)
        made = model.decode(latent).astype(jnp.float32)
        terms = of_pixels(made, clip)
        loss = weighted(terms) + config.bottleneck * of_bottleneck["bottleneck"].value()
        if adversarial:
            assert isinstance(model, AdversarialAutoencoder)
            pull = jax.grad(lambda made: weighted(of_pixels(made, clip)))(jax.lax.stop_gradient(made))
            of_judge, judged = adversarial_loss(model.discriminator, made, clip, pull, share=adversarial)
            loss, terms = loss + of_judge, terms | judged
        clips = jnp.float32(clip.shape[0])
        # Pixels span [-1, 1], so the peak is 2.
        error = jnp.mean(jnp.square(made - clip), axis=(1, 2, 3, 4))
        psnr = Mean.of(10 * jnp.log10(4.0 / jnp.maximum(error, 1e-10)))
        return Mean(loss * clips, clips), {"psnr": psnr, **terms, **of_bottleneck}

    return objective


def disturbed(latent_BTHWC: jax.Array, key: jax.Array, *, level: float) -> jax.Array:
    """Returns the latent with noise of a deviation uniform in [0, `level`] for each clip, in units of the latent's own.

    The unit has no gradient, and grows with the latent: the encoder cannot outgrow the noise.
    """
    level_key, noise_key = jax.random.split(key)
    level_B1111 = level * jax.random.uniform(level_key, (latent_BTHWC.shape[0], 1, 1, 1, 1))
    unit_C = jax.lax.stop_gradient(jnp.std(latent_BTHWC.astype(jnp.float32), axis=(0, 1, 2, 3)))
    noise = level_B1111 * unit_C * jax.random.normal(noise_key, latent_BTHWC.shape)
    return latent_BTHWC + noise.astype(latent_BTHWC.dtype)


def adversarial_loss(
    discriminator: Discriminator, made: jax.Array, clip: jax.Array, pull: jax.Array, *, share: float
) -> tuple[jax.Array, Means]:
    """Returns the loss of judge and autoencoder together, whose gradient with respect to each is its own; metrics.

    The judge has the hinge loss. The autoencoder is pushed towards a better verdict with a gradient of adaptive length
    (as in VQGAN, arXiv 2012.09841, equation 7): a `share` of that of the other terms. Lengths are taken at the pixels
    instead of the last layer, which bounds the push from the first step on: the judge needs no delay to warm up.

    Args:
      discriminator: The judge.
      made: The reconstruction, float32 (B, T, H, W, 3).
      clip: The clip, of the same shape.
      pull: Gradient of the other terms with respect to `made`.
      share: See above.
    """
    structure, weights = nnx.split(discriminator)
    frozen = nnx.merge(structure, jax.lax.stop_gradient(weights))
    still = jax.lax.stop_gradient(made)
    verdict = jax.grad(lambda made: -jnp.mean(frozen(made)))(still)
    length = share * jnp.linalg.norm(pull.ravel()) / (jnp.linalg.norm(verdict.ravel()) + 1e-12)
    push = jax.lax.stop_gradient(length * verdict)
    real, fake = discriminator(clip), discriminator(still)
    hinge = Mean.of(jax.nn.relu(1.0 - real)).value() + Mean.of(jax.nn.relu(1.0 + fake)).value()
    # Zero in value: its gradient with respect to `made` is the push.
    pushed = jnp.sum(push * (made - still))
    metrics = {"judge": Mean.of(hinge), "judged_real": Mean.of(real), "judged_made": Mean.of(fake)}
    return hinge + pushed, metrics


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
