"""A trained autoencoder as everybody after its training sees it: uint8 clips to latents and back.

Shapes: B clips, T H W frames, rows, columns of pixels or latents, C channels.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from sora_jax.core.tree import Params, abstract_model, merge_model
from sora_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from sora_jax.video import latents, shapes
from sora_jax.video.pixels import to_float, to_pixels

Program = Callable[[Params, Any], jax.Array]

# Clips are lengthened to 1 + k * this many frames before encoding, so that few lengths are compiled.
_FRAME_LADDER = 8


class Codec:
    """Frozen weights of an autoencoder with the per-channel statistics of its latents.

    Args:
      config: Shape of the autoencoder.
      params: Its parameters by name.
      mean_C: Mean of each latent channel over the training clips.
      scale_C: Standard deviation of each latent channel.
    """

    def __init__(self, config: AutoencoderConfig, params: Params, *, mean_C: np.ndarray, scale_C: np.ndarray):
        self.config = config
        self.params = params
        self.mean_C = np.asarray(mean_C, np.float64)
        self.scale_C = np.asarray(scale_C, np.float64)
        self._encode, self._decode = _programs(config)

    @property
    def stride(self) -> shapes.Size:
        """Frames, rows and columns of pixels of one latent position."""
        return self.config.time_stride, self.config.space_stride, self.config.space_stride

    def encode(self, pixels_BTHWC: np.ndarray) -> np.ndarray:
        """Returns raw latents, float32 (B, t, h, w, C), of uint8 clips of one legal size.

        The last frame is repeated up to the next length of a ladder and the surplus cut from the latent: the encoder
        is causal, so this changes no kept number.
        """
        frames = pixels_BTHWC.shape[1]
        surplus = 0 if frames == 1 else -(frames - 1) % _FRAME_LADDER
        padded = np.concatenate([pixels_BTHWC, np.repeat(pixels_BTHWC[:, -1:], surplus, axis=1)], axis=1)
        return np.asarray(self._encode(self.params, padded))[:, : 1 + (frames - 1) // self.stride[0]]

    def decode(self, latent_BTHWC: np.ndarray) -> np.ndarray:
        """Returns uint8 clips (B, T, H, W, 3) of normalised latents."""
        return np.asarray(self._decode(self.params, latents.denormalise(latent_BTHWC, self.mean_C, self.scale_C)))

    def reconstruct(self, pixels_BTHWC: np.ndarray) -> np.ndarray:
        """Returns uint8 clips after encoding and decoding."""
        return self.decode(latents.normalise(self.encode(pixels_BTHWC), self.mean_C, self.scale_C))

    def fingerprint(self) -> str:
        """Returns a sha256 in hex of the weights and the statistics."""
        digest = hashlib.sha256()
        for name in sorted(self.params):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(self.params[name]).tobytes())
        digest.update(self.mean_C.tobytes() + self.scale_C.tobytes())
        return digest.hexdigest()


@functools.cache
def _programs(config: AutoencoderConfig) -> tuple[Program, Program]:
    """Returns (encode, decode) of raw latents, jitted: one pair for all weights of one shape."""
    structure, _, _ = abstract_model(lambda key: Autoencoder(config, rngs=nnx.Rngs(key)))

    def encode(params: Params, pixels_BTHWC: jax.Array) -> jax.Array:
        return merge_model(structure, params).encode(to_float(pixels_BTHWC))[0]

    def decode(params: Params, latent_BTHWC: jax.Array) -> jax.Array:
        return to_pixels(merge_model(structure, params).decode(latent_BTHWC))

    return jax.jit(encode), jax.jit(decode)


def measure_latents(codec: Codec, clips: Sequence[np.ndarray]) -> latents.LatentStatistics:
    """Returns the statistics of the raw latents of uint8 clips (T, H, W, 3), each of a legal size."""
    result = latents.LatentStatistics.of(codec.encode(clips[0][None]))
    for pixels_THWC in clips[1:]:
        result = result.merge(latents.LatentStatistics.of(codec.encode(pixels_THWC[None])))
    return result
