"""The network whose features the Fréchet inception distance compares (Heusel et al. 2017, arXiv 1706.08500).

It is Inception v3 (arXiv 1512.00567) as TensorFlow had it in 2015, not torchvision's: 1008 classes, average pooling
that leaves the padding out, and a last module that pools with max where all others average. That was a mistake once,
and every published number has it. Names and layout are those of `pt_inception-2015-12-05-6726825d.pth` as safetensors,
kernels (out, in, height, width). Frames are scaled as clean-fid does (arXiv 2104.11222).

Letters: N frames, H W rows, columns, C channels, D features.
"""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.models.interop.weights import pick, read_weights
from sora_jax.models.perceptual import NetworkWeights
from sora_jax.models.resizing import scale_as_pillow

FEATURES = 2048
MARKER = "Mixed_7c.branch3x3dbl_3b.conv.weight"
_CLASSES = 1008
_SIDE = 299  # px
_EPSILON = 1e-3
_NORM = ("weight", "bias", "running_mean", "running_var")


class _Convolution(NamedTuple):
    """A convolution of a module: its name, width, sides of the kernel, stride, and whether it keeps the size."""

    name: str
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    same: bool = True


class _Module(NamedTuple):
    """Branches side by side, each a chain of convolutions whose last may be two side by side; then the pooled one."""

    branches: tuple[tuple[_Convolution | tuple[_Convolution, _Convolution], ...], ...]
    pooling: str  # "average" and "max" of stride 1, or "reduce": max of stride 2
    pooled: tuple[_Convolution, ...] = ()


def _three(name: str, width: int, *, stride: int = 1, same: bool = True) -> _Convolution:
    return _Convolution(name, width, (3, 3), stride, same)


def _wide(name: str, width: int, side: int = 7) -> _Convolution:
    return _Convolution(name, width, (1, side))


def _tall(name: str, width: int, side: int = 7) -> _Convolution:
    return _Convolution(name, width, (side, 1))


def _small(pooled: int) -> _Module:
    """Returns a module of 35 px."""
    return _Module(
        (
            (_Convolution("branch1x1", 64),),
            (_Convolution("branch5x5_1", 48), _Convolution("branch5x5_2", 64, (5, 5))),
            (_Convolution("branch3x3dbl_1", 64), _three("branch3x3dbl_2", 96), _three("branch3x3dbl_3", 96)),
        ),
        "average",
        (_Convolution("branch_pool", pooled),),
    )


def _middle(width: int) -> _Module:
    """Returns a module of 17 px."""
    name = "branch7x7dbl"
    chain = (_tall(f"{name}_2", width), _wide(f"{name}_3", width), _tall(f"{name}_4", width), _wide(f"{name}_5", 192))
    return _Module(
        (
            (_Convolution("branch1x1", 192),),
            (_Convolution("branch7x7_1", width), _wide("branch7x7_2", width), _tall("branch7x7_3", 192)),
            (_Convolution(f"{name}_1", width), *chain),
        ),
        "average",
        (_Convolution("branch_pool", 192),),
    )


def _large(pooling: str) -> _Module:
    """Returns a module of 8 px."""

    def both(name: str) -> tuple[_Convolution, _Convolution]:
        return _wide(f"{name}a", 384, 3), _tall(f"{name}b", 384, 3)

    return _Module(
        (
            (_Convolution("branch1x1", 320),),
            (_Convolution("branch3x3_1", 384), both("branch3x3_2")),
            (_Convolution("branch3x3dbl_1", 448), _three("branch3x3dbl_2", 384), both("branch3x3dbl_3")),
        ),
        pooling,
        (_Convolution("branch_pool", 192),),
    )


_STEM = (
    _three("Conv2d_1a_3x3", 32, stride=2, same=False),
    _three("Conv2d_2a_3x3", 32, same=False),
    _three("Conv2d_2b_3x3", 64),
    _Convolution("Conv2d_3b_1x1", 80),
    _three("Conv2d_4a_3x3", 192, same=False),
)
# Convolutions of the stem that max pooling of stride 2 follows.
_POOLED = ("Conv2d_2b_3x3", "Conv2d_4a_3x3")
_MODULES = {
    "Mixed_5b": _small(32),
    "Mixed_5c": _small(64),
    "Mixed_5d": _small(64),
    "Mixed_6a": _Module(
        (
            (_three("branch3x3", 384, stride=2, same=False),),
            (
                _Convolution("branch3x3dbl_1", 64),
                _three("branch3x3dbl_2", 96),
                _three("branch3x3dbl_3", 96, stride=2, same=False),
            ),
        ),
        "reduce",
    ),
    "Mixed_6b": _middle(128),
    "Mixed_6c": _middle(160),
    "Mixed_6d": _middle(160),
    "Mixed_6e": _middle(192),
    "Mixed_7a": _Module(
        (
            (_Convolution("branch3x3_1", 192), _three("branch3x3_2", 320, stride=2, same=False)),
            (
                _Convolution("branch7x7x3_1", 192),
                _wide("branch7x7x3_2", 192),
                _tall("branch7x7x3_3", 192),
                _three("branch7x7x3_4", 192, stride=2, same=False),
            ),
        ),
        "reduce",
    ),
    "Mixed_7b": _large("average"),
    "Mixed_7c": _large("max"),
}


def load_inception(path: str | Path) -> dict[str, np.ndarray]:
    """Returns the weights of a safetensors file by their names, float32, without those of the classes.

    UserError if the file is absent, damaged, or not this network with 1008 classes.
    """
    remedy = "make it as docs/evaluation.md says"
    weights = pick(read_weights(path, remedy=remedy), shapes(), what=str(path), remedy=remedy)
    return {name: value for name, value in weights.items() if not name.startswith("fc.")}


def shapes() -> dict[str, tuple[int, ...]]:
    """Returns the shapes of all weights by their names; those of the classes tell it from torchvision's."""
    found: dict[str, tuple[int, ...]] = {}

    def add(name: str, width_in: int, one: _Convolution) -> int:
        found[f"{name}.conv.weight"] = (one.width, width_in, *one.kernel)
        found.update({f"{name}.bn.{part}": (one.width,) for part in _NORM})
        return one.width

    width = 3
    for one in _STEM:
        width = add(one.name, width, one)
    for name, module in _MODULES.items():
        total = 0 if module.pooled else width
        for chain in (*module.branches, module.pooled):
            inner = width
            for step in chain:
                beside = (step,) if isinstance(step, _Convolution) else step
                inner = sum(add(f"{name}.{one.name}", inner, one) for one in beside)
            total += inner if chain else 0
        width = total
    return {**found, "fc.weight": (_CLASSES, width), "fc.bias": (_CLASSES,)}


def fit_inception(frame_NHWC: jax.Array) -> jax.Array:
    """Returns uint8 frames of any size as the network reads them: float32 of 299 x 299 px.

    Pillow's bicubic filter on channels that are not rounded: "clean" in clean-fid.
    """
    scaled = scale_as_pillow(frame_NHWC, (_SIDE, _SIDE), "bicubic")
    return (jnp.clip(scaled, 0, 255) - 128) / 128


def inception_features(weights: NetworkWeights, frame_NHWC: jax.Array) -> jax.Array:
    """Returns the mean over positions of the last module, float32 (N, 2048).

    Args:
      weights: As `load_inception` gives them.
      frame_NHWC: Frames as `fit_inception` gives them.
    """
    x = frame_NHWC
    for one in _STEM:
        x = _unit(weights, one.name, x, one)
        if one.name in _POOLED:
            x = _max_pool(x, stride=2)
    for name, module in _MODULES.items():
        x = _mixed(weights, name, module, x)
    return jnp.mean(x, axis=(1, 2))


def _mixed(weights: NetworkWeights, name: str, module: _Module, x_NHWC: jax.Array) -> jax.Array:
    pooled = {
        "average": average_pool,
        "max": lambda x: _max_pool(x, stride=1),
        "reduce": lambda x: _max_pool(x, stride=2),
    }[module.pooling](x_NHWC)
    found = []
    for chain, x in (*((chain, x_NHWC) for chain in module.branches), (module.pooled, pooled)):
        for step in chain:
            beside = (step,) if isinstance(step, _Convolution) else step
            x = jnp.concatenate([_unit(weights, f"{name}.{one.name}", x, one) for one in beside], axis=-1)
        found.append(x)
    return jnp.concatenate(found, axis=-1)


def _unit(weights: NetworkWeights, name: str, x_NHWC: jax.Array, form: _Convolution) -> jax.Array:
    """Returns a convolution, normalised by what was measured in training, without its negative values."""
    weight, bias, mean, variance = (jnp.asarray(weights[f"{name}.bn.{part}"]) for part in _NORM)
    pads = [(side - 1) // 2 if form.same else 0 for side in form.kernel]
    kernel, numbers = jnp.asarray(weights[f"{name}.conv.weight"]), ("NHWC", "OIHW", "NHWC")
    x = jax.lax.conv_general_dilated(
        x_NHWC, kernel, (form.stride,) * 2, [(pad, pad) for pad in pads], dimension_numbers=numbers
    )
    return jax.nn.relu((x - mean) * (weight * jax.lax.rsqrt(variance + _EPSILON)) + bias)


def _max_pool(x_NHWC: jax.Array, *, stride: int) -> jax.Array:
    padding = "SAME" if stride == 1 else "VALID"
    return jax.lax.reduce_window(x_NHWC, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding)


def average_pool(x_NHWC: jax.Array) -> jax.Array:
    """Returns means over the neighbours of each position that lie inside."""

    def total(x: jax.Array) -> jax.Array:
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")

    return total(x_NHWC) / total(jnp.ones((1, *x_NHWC.shape[1:3], 1), x_NHWC.dtype))
