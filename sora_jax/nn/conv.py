"""Causal space-time convolutions and the resampling steps of the video autoencoder.

Shapes: B clips, T frames, H rows, W columns, C channels. Frame i of an output depends on frames up to i
of the input only, so a prefix of a clip encodes to a prefix of its latent, and an image is a clip of one frame.
"""

import math

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx

from sora_jax.nn.linear import truncated_normal


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
        rngs: nnx.Rngs,
    ):
        std = std_scale / math.sqrt(in_dim * math.prod(kernel))
        self.kernel = nnx.Param(
            truncated_normal(rngs.params(), (*kernel, in_dim, out_dim), std),
            axes=(None, None, None, "conv_in", "conv_out"),
        )
        self.bias = nnx.Param(jnp.zeros((out_dim,), jnp.float32), axes=("conv_out",))
        self.stride = stride

    def __call__(self, x_BTHWC: jax.Array) -> jax.Array:
        kernel = self.kernel[...].astype(x_BTHWC.dtype)
        y = causal_conv(x_BTHWC, kernel, stride=self.stride)
        return y + self.bias[...].astype(x_BTHWC.dtype)


def causal_conv(x_BTHWC: jax.Array, kernel: jax.Array, *, stride: int = 1) -> jax.Array:
    """Returns the causal convolution of a clip with a (time, height, width, in, out) kernel.

    The taps in time are laid side by side as channels of one 2D convolution: the same sums, and two to three
    times the speed of a 3D convolution on CPU.
    """
    taps, height, width = kernel.shape[:3]
    batch, frames = x_BTHWC.shape[:2]
    if taps > 1:
        padded = jnp.pad(x_BTHWC, ((0, 0), (taps - 1, 0), (0, 0), (0, 0), (0, 0)))
        x_BTHWC = jnp.concatenate([padded[:, i : i + frames] for i in range(taps)], axis=-1)
    images = rearrange(x_BTHWC, "B T H W C -> (B T) H W C")
    kernel_2d = rearrange(kernel, "t h w i o -> h w (t i) o")
    if height == width == 1 and stride == 1:
        result = images @ kernel_2d[0, 0]
    else:
        pad = [((size - 1) // 2, size // 2) if stride == 1 else (0, size // 2) for size in (height, width)]
        numbers = ("NHWC", "HWIO", "NHWC")
        result = jax.lax.conv_general_dilated(images, kernel_2d, (stride, stride), pad, dimension_numbers=numbers)
    return rearrange(result, "(B T) H W C -> B T H W C", B=batch)


class ChannelNorm(nnx.Module):
    """RMS norm over the channels of each position alone, so that it cannot break causality or chunking."""

    def __init__(self, dim: int):
        self.scale = nnx.Param(jnp.ones((dim,), jnp.float32), axes=("norm",))

    def __call__(self, x_BTHWC: jax.Array) -> jax.Array:
        x = x_BTHWC.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-12)
        return (x * self.scale[...]).astype(x_BTHWC.dtype)


def halve_time(x_BTHWC: jax.Array, conv: CausalConv) -> jax.Array:
    """Returns 1 + k frames from 1 + 2k: the first is kept, each later pair is convolved with its past frame."""
    convolved = conv(x_BTHWC)[:, 2::2]
    return jnp.concatenate([x_BTHWC[:, :1], convolved], axis=1)


def double_time(x_BTHWC: jax.Array, conv: CausalConv) -> jax.Array:
    """Returns 1 + 2k frames from 1 + k: the first is kept, each later one becomes two.

    `conv` doubles the channels; their halves are the two frames. As in Wan, it does not see the first frame.
    """
    if x_BTHWC.shape[1] == 1:
        return x_BTHWC
    doubled = rearrange(conv(x_BTHWC[:, 1:]), "B T H W (two C) -> B (T two) H W C", two=2)
    return jnp.concatenate([x_BTHWC[:, :1], doubled], axis=1)


def double_space(x_BTHWC: jax.Array) -> jax.Array:
    """Returns the clip with every pixel repeated twice in height and width."""
    return repeat(x_BTHWC, "B T H W C -> B T (H a) (W b) C", a=2, b=2)


def fold_mean(x_BTHWC: jax.Array, out_dim: int, *, time: int, space: int) -> jax.Array:
    """Returns the parameter-free shortcut of a downsampling level (DC-AE, arXiv 2410.10733; Wan 2.2 AvgDown3D).

    Blocks of (time, space, space) positions become channels, then groups of channels are averaged to `out_dim`.
    The first frame stands alone: zeros are put before it.
    """
    frames = x_BTHWC.shape[1]
    x = jnp.pad(x_BTHWC, ((0, 0), (-frames % time, 0), (0, 0), (0, 0), (0, 0)))
    x = rearrange(x, "B (T t) (H h) (W w) C -> B T H W (C t h w)", t=time, h=space, w=space)
    return jnp.mean(rearrange(x, "B T H W (C g) -> B T H W C g", C=out_dim), axis=-1)


def unfold_repeat(x_BTHWC: jax.Array, out_dim: int, *, time: int, space: int) -> jax.Array:
    """Returns the parameter-free shortcut of an upsampling level (Wan 2.2 DupUp3D), the reverse of `fold_mean`."""
    repeats = out_dim * time * space * space // x_BTHWC.shape[-1]
    x = jnp.repeat(x_BTHWC, repeats, axis=-1)
    x = rearrange(x, "B T H W (C t h w) -> B (T t) (H h) (W w) C", t=time, h=space, w=space)
    return x[:, time - 1 :]
