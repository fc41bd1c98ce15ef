"""Causal space-time convolutions and the resampling steps of the video autoencoder.

Shapes: B clips, T frames, H rows, W columns, C channels. Frame i of an output depends on frames up to i
of the input only, so a prefix of a clip encodes to a prefix of its latent, and an image is a clip of one frame.

A clip may go through in chunks. The first chunk begins with the first frame, which is resampled alone; later chunks
carry on from the `Past` of the one before, and the numbers are those of the clip as a whole.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx

from sora_jax.core.rng import Rngs
from sora_jax.nn import winograd
from sora_jax.nn.linear import truncated_normal

Kept = tuple[jax.Array, ...]

# On CPU, up to this many channels the taps in time are laid side by side as channels of one convolution; beyond,
# copying costs more than it saves, and the convolutions of the taps are added; with many there is `nn/winograd.py`.
_FEW_CHANNELS = 48


class Past:
    """The frames before a chunk that causal layers still need, layer by layer in the order of their calls.

    Args:
      kept: `after` of the chunk before; None at the start of a clip, before which there are zeros.
      is_whole: Whether no chunk will follow, so that nothing needs to be kept.
    """

    def __init__(self, kept: Kept | None = None, *, is_whole: bool = False):
        self._kept = kept
        self._after: list[jax.Array] = []
        self.is_whole = is_whole

    @property
    def is_start(self) -> bool:
        """Whether the chunk begins with the first frame of the clip."""
        return self._kept is None

    @property
    def after(self) -> Kept:
        """What the next chunk needs; complete when every layer has been called."""
        return tuple(self._after)

    def extend(self, x_BTHWC: jax.Array, frames: int) -> jax.Array:
        """Returns `x` with the `frames` frames before it, at the start `x` alone; keeps the last for the next chunk."""
        if self._kept is not None:
            x_BTHWC = jnp.concatenate([self._kept[len(self._after)], x_BTHWC], axis=1)
        if not self.is_whole:
            lacking = max(0, frames - x_BTHWC.shape[1])
            last = x_BTHWC[:, x_BTHWC.shape[1] - (frames - lacking) :]
            self._after.append(_after_zeros(last, lacking))
        return x_BTHWC


class CausalConv(nnx.Module):
    """A 3D convolution that looks at the past in time and around itself in space.

    Args:
      in_dim: Channels of the input.
      out_dim: Channels of the output.
      kernel: Size over (time, height, width).
      stride: Stride over height and width; a strided kernel pads only below and to the right, as Wan does.
      std_scale: Factor on the initial standard deviation 1 / sqrt(fan in); 0 starts as the zero map.
      rngs: Source of the initial values.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        kernel: tuple[int, int, int] = (3, 3, 3),
        *,
        stride: int = 1,
        std_scale: float = 1.0,
        rngs: Rngs,
    ):
        std = std_scale / math.sqrt(in_dim * math.prod(kernel))
        self.kernel = nnx.Param(
            truncated_normal(rngs.params(), (*kernel, in_dim, out_dim), std),
            axes=(None, None, None, "conv_in", "conv_out"),
        )
        self.bias = nnx.Param(jnp.zeros((out_dim,), jnp.float32), axes=("conv_out",))
        self.stride = stride

    def __call__(self, x_BTHWC: jax.Array, past: Past) -> jax.Array:
        taps = self.kernel.shape[0]
        if taps == 1:
            return self.apply(x_BTHWC)
        return self.apply(past.extend(x_BTHWC, taps - 1), zeros=taps - 1 if past.is_start else 0)

    def apply(self, x_BTHWC: jax.Array, *, time_stride: int = 1, zeros: int = 0) -> jax.Array:
        """Returns the result for an input that begins with the past frames of its first window, but for `zeros`."""
        kernel, bias = (param[...].astype(x_BTHWC.dtype) for param in (self.kernel, self.bias))
        return convolve(x_BTHWC, kernel, stride=self.stride, time_stride=time_stride, zeros=zeros) + bias


def convolve(
    x_BTHWC: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    time_stride: int = 1,
    zeros: int = 0,
    pad: Sequence[tuple[int, int]] | None = None,
) -> jax.Array:
    """Returns the convolution of a clip with a (time, height, width, in, out) kernel.

    In space `pad` zeros are put before and behind rows and columns; None: as Wan does, to the size of the input over
    `stride`. In time there are `zeros` frames of zeros before the clip: T frames give (zeros + T - taps) / time_stride
    + 1. On CPU they cost nothing, which a clip of few frames notices.
    """
    frames = (zeros + x_BTHWC.shape[1] - kernel.shape[0]) // time_stride + 1
    windows = _windows(frames, taps=kernel.shape[0], zeros=zeros, time_stride=time_stride)
    idle = kernel.shape[0] - len(windows)
    kernel, zeros = kernel[idle:], zeros - idle
    sides = list(kernel.shape[1:3])
    pad = _wan_pad(sides, stride) if pad is None else pad

    def in_2d(x_BTHWC: jax.Array, kernel: jax.Array) -> jax.Array:
        keeps_size = sides == [3, 3] and stride == time_stride == 1 and all(side == (1, 1) for side in pad)
        if keeps_size and winograd.pays(x_BTHWC.shape, kernel.shape):
            return winograd.convolve_3x3(x_BTHWC, kernel, windows, frames)
        parts = [x_BTHWC[:, start:stop:time_stride] for _, start, stop in windows]
        if kernel.shape[-2] <= _FEW_CHANNELS:
            side_by_side = [_after_zeros(part, begin) for part, (begin, _, _) in zip(parts, windows, strict=True)]
            return image_map(jnp.concatenate(side_by_side, axis=-1), jnp.concatenate(list(kernel), axis=-2))
        maps = [
            _after_zeros(image_map(part, kernel_2d), begin)
            for part, kernel_2d, (begin, _, _) in zip(parts, kernel, windows, strict=True)
        ]
        return functools.reduce(jnp.add, maps)

    def image_map(x_BTHWC: jax.Array, kernel_2d: jax.Array) -> jax.Array:
        if sides == [1, 1] and stride == 1:
            return x_BTHWC @ kernel_2d[0, 0]
        images = rearrange(x_BTHWC, "B T H W C -> (B T) H W C")
        numbers = ("NHWC", "HWIO", "NHWC")
        result = jax.lax.conv_general_dilated(images, kernel_2d, (stride, stride), pad, dimension_numbers=numbers)
        return rearrange(result, "(B T) H W C -> B T H W C", B=x_BTHWC.shape[0])

    def in_3d(x_BTHWC: jax.Array, kernel: jax.Array) -> jax.Array:
        strides, numbers = (time_stride, stride, stride), ("NDHWC", "DHWIO", "NDHWC")
        return jax.lax.conv_general_dilated(x_BTHWC, kernel, strides, [(zeros, 0), *pad], dimension_numbers=numbers)

    # On CPU 2D convolutions are two to four times as fast as one in 3D.
    return jax.lax.platform_dependent(x_BTHWC, kernel, cpu=in_2d, default=in_3d)


def _wan_pad(sides: Sequence[int], stride: int) -> list[tuple[int, int]]:
    """Returns the zeros before and behind rows and columns; a strided kernel has them only below and to the right."""
    return [((size - 1) // 2, size // 2) if stride == 1 else (0, size // 2) for size in sides]


def _windows(frames: int, *, taps: int, zeros: int, time_stride: int) -> list[tuple[int, int, int]]:
    """Returns for each tap (begin, start, stop): frames [start, stop) of the clip add to the results from `begin` on.

    The clip has `zeros` frames of zeros before it and gives `frames` results. Taps that see zeros alone are left out.
    """
    begins = [-(-max(0, zeros - tap) // time_stride) for tap in range(taps)]
    return [
        (begin, begin * time_stride + tap - zeros, (frames - 1) * time_stride + tap - zeros + 1)
        for tap, begin in enumerate(begins)
        if begin < frames
    ]


def _after_zeros(x_BTHWC: jax.Array, frames: int) -> jax.Array:
    return jnp.pad(x_BTHWC, ((0, 0), (frames, 0), (0, 0), (0, 0), (0, 0))) if frames else x_BTHWC


class ChannelNorm(nnx.Module):
    """RMS norm over the channels of each position alone, so that it cannot break causality or chunking."""

    def __init__(self, dim: int):
        self.scale = nnx.Param(jnp.ones((dim,), jnp.float32), axes=("norm",))

    def __call__(self, x_BTHWC: jax.Array) -> jax.Array:
        x = x_BTHWC.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-12)
        return (x * self.scale[...]).astype(x_BTHWC.dtype)


def same_conv(x_BTHWC: jax.Array, kernel: jax.Array, *, stride: tuple[int, int] = (1, 1)) -> jax.Array:
    """Returns a convolution that looks ahead too, of `stride` over (time, height and width): for networks that measure.

    Each axis has ceil(size / stride) positions; zeros are put around evenly, an odd one behind, as TensorFlow's "SAME".
    """
    pads = []
    for size, taps, step in zip(x_BTHWC.shape[1:4], kernel.shape[:3], (stride[0], stride[1], stride[1]), strict=True):
        pad = max((-(-size // step) - 1) * step + taps - size, 0)
        pads.append((pad // 2, pad - pad // 2))
    padded = jnp.pad(x_BTHWC, ((0, 0), pads[0], (0, 0), (0, 0), (0, 0)))
    return convolve(padded, kernel, stride=stride[1], time_stride=stride[0], pad=pads[1:])


def halve_time(x_BTHWC: jax.Array, conv: CausalConv, past: Past) -> jax.Array:
    """Returns half as many frames, each pair convolved with the frame before it; the first of a clip is kept alone.

    `conv` has three taps. A clip of 1 + 2k frames gives 1 + k.
    """
    is_start, frames = past.is_start, x_BTHWC.shape[1]
    x = past.extend(x_BTHWC, 1)
    if not is_start:
        return conv.apply(x, time_stride=2)
    if frames == 1:
        return x_BTHWC
    return jnp.concatenate([x_BTHWC[:, :1], conv.apply(x_BTHWC, time_stride=2)], axis=1)


def double_time(x_BTHWC: jax.Array, conv: CausalConv, past: Past) -> jax.Array:
    """Returns two frames for each; the first of a clip is kept alone.

    `conv` has three taps and doubles the channels; their halves are the two frames. As in Wan, it does not see the
    first frame. A clip of 1 + k frames gives 1 + 2k.
    """
    is_start = past.is_start
    later = x_BTHWC[:, 1:] if is_start else x_BTHWC
    x = past.extend(later, 2)
    if later.shape[1] == 0:
        return x_BTHWC
    doubled = conv.apply(x, zeros=2 if is_start else 0)
    doubled = rearrange(doubled, "B T H W (two C) -> B (T two) H W C", two=2)
    return jnp.concatenate([x_BTHWC[:, :1], doubled], axis=1) if is_start else doubled


def double_space(x_BTHWC: jax.Array) -> jax.Array:
    """Returns the clip with every pixel repeated twice in height and width."""
    return repeat(x_BTHWC, "B T H W C -> B T (H a) (W b) C", a=2, b=2)


def fold_mean(x_BTHWC: jax.Array, out_dim: int, *, time: int, space: int) -> jax.Array:
    """Returns the parameter-free shortcut of a downsampling level (DC-AE, arXiv 2410.10733; Wan 2.2 AvgDown3D).

    Blocks of (time, space, space) positions become channels, then groups of channels are averaged to `out_dim`.
    The first frame of a clip stands alone: zeros are put before it.
    """
    frames = x_BTHWC.shape[1]
    x = jnp.pad(x_BTHWC, ((0, 0), (-frames % time, 0), (0, 0), (0, 0), (0, 0)))
    x = rearrange(x, "B (T t) (H h) (W w) C -> B T H W (C t h w)", t=time, h=space, w=space)
    return jnp.mean(rearrange(x, "B T H W (C g) -> B T H W C g", C=out_dim), axis=-1)


def unfold_repeat(x_BTHWC: jax.Array, out_dim: int, *, time: int, space: int, is_start: bool) -> jax.Array:
    """Returns the parameter-free shortcut of an upsampling level (Wan 2.2 DupUp3D), the reverse of `fold_mean`.

    The first frame of a clip (`is_start`) gives one frame.
    """
    repeats = out_dim * time * space * space // x_BTHWC.shape[-1]
    x = jnp.repeat(x_BTHWC, repeats, axis=-1)
    x = rearrange(x, "B T H W (C t h w) -> B (T t) (H h) (W w) C", t=time, h=space, w=space)
    return x[:, time - 1 :] if is_start else x
