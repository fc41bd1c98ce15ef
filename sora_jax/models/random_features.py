"""Features of clips from a network that was never trained: four random convolutions over space and time.

Distances between random embeddings rank generators much as those between trained ones do (Naeem et al. 2020, arXiv
2002.09797), and they need no file. But the numbers compare only with themselves: not with a published FVD, nor with
those of another version of this network.

Letters: B clips, T H W frames, rows, columns, C channels, D features.
"""

import functools
import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.nn.conv import same_conv

_WIDTHS = (32, 64, 128, 128)
_TIME_STRIDES = (1, 1, 2, 2)
_SEED = 20020979
FEATURES = sum(_WIDTHS)


def random_features(clip_BTHWC: jax.Array) -> jax.Array:
    """Returns the means over all positions of each layer's channels, float32 (B, D).

    Clips are in [-1, 1], C = 3, of any length and size; at 16 px a side the last layer has one position in space.
    """
    x, found = clip_BTHWC.astype(jnp.float32), []
    for kernel, time_stride in zip(_kernels(), _TIME_STRIDES, strict=True):
        x = jax.nn.relu(same_conv(x, jnp.asarray(kernel), stride=(time_stride, 2)))
        found.append(jnp.mean(x, axis=(1, 2, 3)))
    return jnp.concatenate(found, axis=-1)


def random_digest() -> str:
    """Returns the sha256 in hex of the network's weights: scores of one digest compare."""
    return hashlib.sha256(b"".join(kernel.tobytes() for kernel in _kernels())).hexdigest()


@functools.cache
def _kernels() -> tuple[np.ndarray, ...]:
    """Returns the kernels, float32 (3, 3, 3, in, out), of a scale that rectified activations keep."""
    # Of numpy's generators, this one is promised never to change its numbers.
    random = np.random.RandomState(_SEED)
    shapes = [(3, 3, 3, width_in, width) for width_in, width in zip((3, *_WIDTHS), _WIDTHS, strict=False)]
    return tuple(
        (random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1]))).astype(np.float32) for shape in shapes
    )
