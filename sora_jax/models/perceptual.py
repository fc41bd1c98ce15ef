"""LPIPS: how different two clips look, frame by frame (Zhang et al. 2018, arXiv 1801.03924, section 3).

A classifier's features are scaled to unit length at each position; their squared differences are weighted by channel,
as fitted to what people see, averaged over the frame, and summed over five layers. The numbers are those of version 0.1
of the lpips package with VGG16 or AlexNet. The weights are the user's (docs/evaluation.md says how to make it) and they
keep their foreign names and layout, kernels (out, in, height, width), so that a loss may take them as a dict of arrays.

Letters: B clips, T H W frames, rows, columns, C channels, N frames of all clips.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.core.errors import UserError
from sora_jax.models.interop.weights import pick, read_weights

NetworkWeights = Mapping[str, jax.Array | np.ndarray]

# ImageNet's mean and deviation, for clips in [-1, 1].
_SHIFT_C, _SCALE_C = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPSILON = 1e-10
_FIRST = "features.0.weight"
_REMEDY = "make it as docs/evaluation.md says"


class _Convolution(NamedTuple):
    """A convolution of torchvision's: its place among the layers, and its form."""

    place: int
    width: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Network:
    """Five stages of convolutions, each ending in a feature; those of `pooled` begin with max pooling of stride 2."""

    stages: tuple[tuple[_Convolution, ...], ...]
    pooled: tuple[int, ...]
    window: int  # of the pooling, px
    smallest_side: int  # px of a frame from which every stage has a position

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of all weights by their names."""
        found: dict[str, tuple[int, ...]] = {}
        width = 3
        for number, stage in enumerate(self.stages):
            for one in stage:
                found[f"features.{one.place}.weight"] = (one.width, width, one.kernel, one.kernel)
                found[f"features.{one.place}.bias"] = (one.width,)
                width = one.width
            found[f"lin{number}.model.1.weight"] = (1, width, 1, 1)
        return found


_VGG16 = _Network(
    stages=(
        (_Convolution(0, 64), _Convolution(2, 64)),
        (_Convolution(5, 128), _Convolution(7, 128)),
        (_Convolution(10, 256), _Convolution(12, 256), _Convolution(14, 256)),
        (_Convolution(17, 512), _Convolution(19, 512), _Convolution(21, 512)),
        (_Convolution(24, 512), _Convolution(26, 512), _Convolution(28, 512)),
    ),
    pooled=(1, 2, 3, 4),
    window=2,
    smallest_side=16,
)
_ALEXNET = _Network(
    stages=(
        (_Convolution(0, 64, kernel=11, stride=4, padding=2),),
        (_Convolution(3, 192, kernel=5, padding=2),),
        (_Convolution(6, 384),),
        (_Convolution(8, 256),),
        (_Convolution(10, 256),),
    ),
    pooled=(1, 2),
    window=3,
    smallest_side=31,
)
# By the side of the first kernel, px.
_NETWORKS = {3: _VGG16, 11: _ALEXNET}


def load_perceptual(path: str | Path) -> dict[str, np.ndarray]:
    """Returns the weights of a safetensors file by their names, float32.

    UserError if the file is absent, damaged, or holds neither network whole.
    """
    weights = read_weights(path, remedy=_REMEDY)
    first = weights[_FIRST].shape if _FIRST in weights else ()
    network = _NETWORKS.get(first[-1]) if len(first) == 4 else None
    if network is None:
        found = f"{_FIRST} has shape {first}" if first else f"{_FIRST} is missing"
        raise UserError(f"{path} holds neither VGG16 nor AlexNet ({found}); {_REMEDY}")
    return pick(weights, network.shapes(), what=str(path), remedy=_REMEDY)


def shapes(network: Literal["vgg16", "alexnet"]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of all weights of a network by their names."""
    return {"vgg16": _VGG16, "alexnet": _ALEXNET}[network].shapes()


def smallest_side(weights: NetworkWeights) -> int:
    """Returns the px that a frame must have in height and in width: 16 for VGG16, 31 for AlexNet."""
    return _network(weights).smallest_side


def lpips(weights: NetworkWeights, first_BTHWC: jax.Array, second_BTHWC: jax.Array) -> jax.Array:
    """Returns the distance of each frame, float32 (B, T), 0 for equal frames; differentiable in both clips.

    Args:
      weights: As `load_perceptual` gives them.
      first_BTHWC: Clips in [-1, 1], C = 3, at least `smallest_side` px a side; the network runs in their dtype.
      second_BTHWC: Clips of the same shape.
    """
    frames = first_BTHWC.shape[:2]
    pairs = zip(_features(weights, first_BTHWC), _features(weights, second_BTHWC), strict=True)
    total_N = jnp.zeros((), jnp.float32)
    for number, (a_NHWC, b_NHWC) in enumerate(pairs):
        weight_C = jnp.asarray(weights[f"lin{number}.model.1.weight"], jnp.float32)[0, :, 0, 0]
        total_N += jnp.mean(jnp.square(_unit(a_NHWC) - _unit(b_NHWC)) @ weight_C, axis=(1, 2))
    return total_N.reshape(frames)


def _network(weights: NetworkWeights) -> _Network:
    return _NETWORKS[weights[_FIRST].shape[-1]]


def _features(weights: NetworkWeights, clip_BTHWC: jax.Array) -> list[jax.Array]:
    """Returns the feature of each stage, (N, h, w, c)."""
    network = _network(weights)
    x = clip_BTHWC.reshape(-1, *clip_BTHWC.shape[2:])
    x = (x - jnp.array(_SHIFT_C, x.dtype)) / jnp.array(_SCALE_C, x.dtype)
    found = []
    for number, stage in enumerate(network.stages):
        if number in network.pooled:
            window = (1, network.window, network.window, 1)
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, (1, 2, 2, 1), "VALID")
        for one in stage:
            kernel = jnp.asarray(weights[f"features.{one.place}.weight"], x.dtype)
            pad, numbers = [(one.padding, one.padding)] * 2, ("NHWC", "OIHW", "NHWC")
            x = jax.lax.conv_general_dilated(x, kernel, (one.stride,) * 2, pad, dimension_numbers=numbers)
            x = jax.nn.relu(x + jnp.asarray(weights[f"features.{one.place}.bias"], x.dtype))
        found.append(x)
    return found


def _unit(x_NHWC: jax.Array) -> jax.Array:
    """Returns features scaled to unit length over channels, float32; where all are 0 they stay 0."""
    x_NHWC = x_NHWC.astype(jnp.float32)
    square = jnp.sum(jnp.square(x_NHWC), axis=-1, keepdims=True)
    # The root has no finite slope at 0, which dead positions of a rectified network do reach.
    return x_NHWC / (jnp.sqrt(jnp.where(square > 0, square, 1.0)) + _EPSILON)
