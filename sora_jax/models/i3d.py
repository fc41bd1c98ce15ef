"""The network whose features the Fréchet video distance compares: I3D (Carreira and Zisserman, arXiv 1705.07750).

It is Inception v1 with kernels over time, trained on Kinetics-400. Names and layout are those of the weights in public
use, `rgb_imagenet.pt` as safetensors: kernels (out, in, time, height, width). Windows are padded as TensorFlow does,
evenly and the odd one behind. The features are those of the FVD of TATS (arXiv 2204.03638): logits of clips resized to
224 x 224 px.

Letters: B clips, T H W frames, rows, columns, C channels, D features.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.models.interop.weights import pick, read_weights
from sora_jax.models.perceptual import NetworkWeights
from sora_jax.nn.conv import same_conv

# Frames that leave the two positions in time over which the last pooling averages.
FEWEST_FRAMES = 9
FEATURES = 400
MARKER = "Conv3d_1a_7x7.conv3d.weight"
_SIDE = 224  # px
_EPSILON = 1e-3
_NORM = ("weight", "bias", "running_mean", "running_var")
# Channels of an inception module's convolutions: alone, 1 then 3, 1 then 3, after the pooling.
_MODULES = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
# Sides of the max pooling before a module, of stride 2 in time and space.
_POOLED = {"Mixed_4b": 3, "Mixed_5b": 2}


def load_i3d(path: str | Path) -> dict[str, np.ndarray]:
    """Returns the weights of a safetensors file by their names, float32.

    UserError if the file is absent, damaged, or not this network with 400 classes.
    """
    remedy = "make it as docs/evaluation.md says"
    weights = read_weights(path, remedy=remedy)
    return pick(weights, shapes(), what=str(path), remedy=remedy)


def shapes() -> dict[str, tuple[int, ...]]:
    """Returns the shapes of all weights by their names."""
    found: dict[str, tuple[int, ...]] = {}

    def unit(name: str, width_in: int, width: int, side: int) -> int:
        found[f"{name}.conv3d.weight"] = (width, width_in, side, side, side)
        found.update({f"{name}.bn.{part}": (width,) for part in _NORM})
        return width

    unit("Conv3d_1a_7x7", 3, 64, 7)
    unit("Conv3d_2b_1x1", 64, 64, 1)
    width = unit("Conv3d_2c_3x3", 64, 192, 3)
    for name, (alone, *pairs, pooled) in _MODULES.items():
        unit(f"{name}.b0", width, alone, 1)
        for number in (1, 2):
            inner, outer = pairs[2 * number - 2 : 2 * number]
            unit(f"{name}.b{number}b", unit(f"{name}.b{number}a", width, inner, 1), outer, 3)
        unit(f"{name}.b3b", width, pooled, 1)
        width = alone + pairs[1] + pairs[3] + pooled
    found["logits.conv3d.weight"] = (FEATURES, width, 1, 1, 1)
    found["logits.conv3d.bias"] = (FEATURES,)
    return found


def fit_i3d(clip_BTHWC: jax.Array) -> jax.Array:
    """Returns clips of any size, float32 in [-1, 1], as the network reads them: 224 x 224 px."""
    batch, frames = clip_BTHWC.shape[:2]
    # Not antialiased, and the sides each by its own factor, as those whose numbers are compared do.
    return jax.image.resize(clip_BTHWC, (batch, frames, _SIDE, _SIDE, 3), "linear", antialias=False)


def i3d_features(weights: NetworkWeights, clip_BTHWC: jax.Array) -> jax.Array:
    """Returns the mean over time of the logits, float32 (B, 400).

    Args:
      weights: As `load_i3d` gives them.
      clip_BTHWC: Clips as `fit_i3d` gives them, of `FEWEST_FRAMES` or more.
    """
    assert clip_BTHWC.shape[1] >= FEWEST_FRAMES, clip_BTHWC.shape
    x = clip_BTHWC
    x = unit(weights, "Conv3d_1a_7x7", x, stride=2)
    x = _pool(x, (1, 3, 3), (1, 2, 2))
    x = unit(weights, "Conv3d_2c_3x3", unit(weights, "Conv3d_2b_1x1", x))
    x = _pool(x, (1, 3, 3), (1, 2, 2))
    for name in _MODULES:
        if side := _POOLED.get(name):
            x = _pool(x, (side, side, side), (2, 2, 2))
        x = mixed(weights, name, x)
    x_BTC = jnp.mean(x, axis=(2, 3))
    # Windows of two positions, then the mean over them; what follows is linear and may come last.
    x_BC = jnp.mean((x_BTC[:, :-1] + x_BTC[:, 1:]) / 2, axis=1)
    kernel_DC = jnp.asarray(weights["logits.conv3d.weight"])[:, :, 0, 0, 0]
    return x_BC @ kernel_DC.T + weights["logits.conv3d.bias"]


def unit(weights: NetworkWeights, name: str, x_BTHWC: jax.Array, *, stride: int = 1) -> jax.Array:
    """Returns a convolution, normalised by what was measured in training, without its negative values."""
    weight, bias, mean, variance = (jnp.asarray(weights[f"{name}.bn.{part}"]) for part in _NORM)
    kernel = jnp.asarray(weights[f"{name}.conv3d.weight"]).transpose(2, 3, 4, 1, 0)
    x = same_conv(x_BTHWC, kernel, stride=(stride, stride))
    return jax.nn.relu((x - mean) * (weight * jax.lax.rsqrt(variance + _EPSILON)) + bias)


def mixed(weights: NetworkWeights, name: str, x_BTHWC: jax.Array) -> jax.Array:
    """Returns an inception module: four branches side by side as channels."""

    def branch(x: jax.Array, *parts: str) -> jax.Array:
        for part in parts:
            x = unit(weights, f"{name}.{part}", x)
        return x

    pooled = _pool(x_BTHWC, (3, 3, 3), (1, 1, 1))
    branches = (branch(x_BTHWC, "b0"), branch(x_BTHWC, "b1a", "b1b"), branch(x_BTHWC, "b2a", "b2b"))
    return jnp.concatenate([*branches, branch(pooled, "b3b")], axis=-1)


def _pool(x_BTHWC: jax.Array, window: tuple[int, int, int], stride: tuple[int, int, int]) -> jax.Array:
    return jax.lax.reduce_window(x_BTHWC, -jnp.inf, jax.lax.max, (1, *window, 1), (1, *stride, 1), "SAME")
