"""What stands between encoder and decoder: a Gaussian (KL), rounded numbers (FSQ), or a codebook (VQ).

Shapes: B clips, t h w latent positions, C channels of the latent, E numbers that the encoder gives for each position,
M positions, V entries of a codebook.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from sora_jax.core.mean import Mean
from sora_jax.core.rng import Rngs
from sora_jax.nn.linear import truncated_normal

BottleneckName = Literal["kl", "fsq", "vq"]
Terms = dict[str, Mean]

# Weight of the commitment of the encoder to its code, against that of the code to the encoder (arXiv 1711.00937).
_COMMITMENT = 0.25


class KL(nnx.Module):
    """A Gaussian for each number, drawn towards the unit normal (arXiv 1312.6114)."""

    def __init__(self, channels: int):
        self.width = 2 * channels

    def mode(self, moments_BTHWE: jax.Array) -> jax.Array:
        """Returns the mean, (B, t, h, w, C)."""
        return jnp.split(moments_BTHWE, 2, axis=-1)[0]

    def noise(self, moments_BTHWE: jax.Array) -> jax.Array:
        """Returns the variance of the Gaussian, float32 (B, t, h, w, C)."""
        return jnp.exp(_log_variance(moments_BTHWE))

    def sample(self, moments_BTHWE: jax.Array, key: jax.Array) -> tuple[jax.Array, Terms]:
        """Returns (latent, metrics); `bottleneck` is the divergence from a unit normal, per number."""
        mean, log_variance = self.mode(moments_BTHWE).astype(jnp.float32), _log_variance(moments_BTHWE)
        latent = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)
        divergence = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance)
        return latent.astype(moments_BTHWE.dtype), {"bottleneck": Mean.of(divergence)}


def _log_variance(moments_BTHWE: jax.Array) -> jax.Array:
    return jnp.clip(jnp.split(moments_BTHWE.astype(jnp.float32), 2, axis=-1)[1], -30.0, 20.0)


class FSQ(nnx.Module):
    """Each number squashed and rounded to one of `levels` values in [-1, 1] (arXiv 2309.15505)."""

    def __init__(self, channels: int, levels: int):
        self.width = channels
        self.levels = levels

    def mode(self, moments_BTHWE: jax.Array) -> jax.Array:
        """Returns the rounded numbers, (B, t, h, w, C)."""
        numbers = moments_BTHWE.astype(jnp.float32)
        # As published: an even number of levels lies half a step off centre, and zero stays in the middle of tanh.
        half = (self.levels - 1) * (1 + 1e-3) / 2
        offset = 0.0 if self.levels % 2 else 0.5
        squashed = jnp.tanh(numbers + jnp.arctanh(offset / half)) * half - offset
        rounded = squashed + jax.lax.stop_gradient(jnp.round(squashed) - squashed)
        return (rounded / (self.levels // 2)).astype(moments_BTHWE.dtype)

    def noise(self, moments_BTHWE: jax.Array) -> jax.Array:
        """Returns the variance of a number within its level, the same for all: float32, shaped as the latent."""
        return jnp.full(moments_BTHWE.shape, 1 / (12 * (self.levels // 2) ** 2), jnp.float32)

    def sample(self, moments_BTHWE: jax.Array, key: jax.Array) -> tuple[jax.Array, Terms]:
        """Returns (latent, metrics), with nothing drawn: `bottleneck` is 0, `code_use` the share of codes used."""
        latent = self.mode(moments_BTHWE)
        codes_MC = jnp.round(latent.astype(jnp.float32) * (self.levels // 2)).reshape(-1, self.width)
        codes_MC = codes_MC.astype(jnp.int32) + self.levels // 2
        used_CV = jax.vmap(lambda codes_M: jnp.bincount(codes_M, length=self.levels) > 0, in_axes=1)(codes_MC)
        return latent, {"bottleneck": Mean.of(jnp.zeros(())), "code_use": Mean.of(used_CV.astype(jnp.float32))}


class VQ(nnx.Module):
    """The nearest of `entries` directions of a codebook (arXiv 1711.00937).

    Codes and numbers are compared as unit vectors, which keeps more of the codebook in use (arXiv 2110.04627,
    section 3.2).
    """

    def __init__(self, channels: int, entries: int, *, rngs: Rngs):
        self.width = channels
        self.codebook = nnx.Param(truncated_normal(rngs.params(), (entries, channels), 1.0), axes=("vocabulary", None))

    def mode(self, moments_BTHWE: jax.Array) -> jax.Array:
        """Returns the nearest codes, unit vectors (B, t, h, w, C)."""
        return self._nearest(_unit(moments_BTHWE))[0].astype(moments_BTHWE.dtype)

    def noise(self, moments_BTHWE: jax.Array) -> jax.Array:
        """Returns the squared distance to the code, over the channels: float32, shaped as the latent."""
        numbers = _unit(moments_BTHWE)
        error = jnp.square(numbers - self._nearest(numbers)[0])
        return jnp.broadcast_to(jnp.mean(error, axis=-1, keepdims=True), error.shape)

    def sample(self, moments_BTHWE: jax.Array, key: jax.Array) -> tuple[jax.Array, Terms]:
        """Returns (latent, metrics); `bottleneck` is the distance to the code, `code_use` the share of codes used."""
        numbers = _unit(moments_BTHWE)
        code, index = self._nearest(numbers)
        towards_code = jnp.square(numbers - jax.lax.stop_gradient(code))
        towards_numbers = jnp.square(jax.lax.stop_gradient(numbers) - code)
        used_V = jnp.bincount(index.reshape(-1), length=self.codebook.shape[0]) > 0
        latent = numbers + jax.lax.stop_gradient(code - numbers)
        return latent.astype(moments_BTHWE.dtype), {
            "bottleneck": Mean.of(towards_numbers + _COMMITMENT * towards_code),
            "code_use": Mean.of(used_V.astype(jnp.float32)),
        }

    def _nearest(self, numbers_BTHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
        codes_VC = _unit(self.codebook[...])
        index_BTHW = jnp.argmax(numbers_BTHWC @ codes_VC.T, axis=-1)
        return codes_VC[index_BTHW], index_BTHW


def _unit(x: jax.Array) -> jax.Array:
    """Returns float32 vectors of length one along the last axis."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


Bottleneck = KL | FSQ | VQ


def make_bottleneck(name: BottleneckName, channels: int, codes: int | None, *, rngs: Rngs) -> Bottleneck:
    """Returns the bottleneck of that name; `codes` are the levels of a number (fsq) or the entries of the book (vq)."""
    if name == "kl":
        return KL(channels)
    assert codes is not None, name
    return FSQ(channels, codes) if name == "fsq" else VQ(channels, codes, rngs=rngs)
