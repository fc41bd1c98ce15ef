"""The causal video autoencoder: clip -> latent -> clip, of the public Wan VAE family.

Shapes: B clips, T H W frames, rows, columns (lower-case for the latent's), C channels. The first frame alone gives
the first latent frame, then each `temporal stride` frames give one. Normalisation is per position, so a prefix of a
clip encodes to a prefix of its latent.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from sora_jax.core.errors import UserError
from sora_jax.nn import conv
from sora_jax.nn.attention import attend
from sora_jax.nn.linear import Linear


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Shape of the autoencoder; `configs/base.py` holds the preset `tiny`.

    Attributes:
      patch: Side of the pixel blocks that are folded into channels before the first convolution.
      width: Channels of the first level.
      multipliers: Width of each level as a multiple of `width`.
      space_down: For each level but the last, whether it halves height and width.
      time_down: For each level but the last, whether it halves time.
      blocks: Residual blocks per level of the encoder; the decoder has `decoder_blocks`.
      decoder_width: Channels of the decoder's last level.
      decoder_blocks: Residual blocks per level of the decoder.
      channels: Channels of the latent.
      attention: Whether the middle attends over the positions of each frame.
      shortcuts: Whether resampling levels carry the parameter-free shortcuts of Wan 2.2.
    """

    patch: int
    width: int
    multipliers: tuple[int, ...]
    space_down: tuple[bool, ...]
    time_down: tuple[bool, ...]
    blocks: int
    decoder_width: int
    decoder_blocks: int
    channels: int
    attention: bool
    shortcuts: bool

    def __post_init__(self):
        levels = len(self.multipliers)
        if not len(self.space_down) == len(self.time_down) == levels - 1:
            raise UserError(
                f"autoencoder: {levels} multipliers need {levels - 1} entries each in space_down and time_down, "
                f"not {len(self.space_down)} and {len(self.time_down)}"
            )

    @property
    def space_stride(self) -> int:
        """Pixels of a side that one latent position stands for."""
        return self.patch * 2 ** sum(self.space_down)

    @property
    def time_stride(self) -> int:
        """Frames that one latent frame after the first stands for."""
        return 2 ** sum(self.time_down)


class ResidualBlock(nnx.Module):
    """norm, SiLU, convolution, twice, around a shortcut; the second convolution starts small."""

    def __init__(self, in_dim: int, out_dim: int, *, rngs: nnx.Rngs):
        self.norm1 = conv.ChannelNorm(in_dim)
        self.conv1 = conv.CausalConv(in_dim, out_dim, rngs=rngs)
        self.norm2 = conv.ChannelNorm(out_dim)
        self.conv2 = conv.CausalConv(out_dim, out_dim, std_scale=0.1, rngs=rngs)
        self.shortcut = conv.CausalConv(in_dim, out_dim, (1, 1, 1), rngs=rngs) if in_dim != out_dim else None

    def __call__(self, x_BTHWC: jax.Array) -> jax.Array:
        y = self.conv1(jax.nn.silu(self.norm1(x_BTHWC)))
        y = self.conv2(jax.nn.silu(self.norm2(y)))
        return y + (x_BTHWC if self.shortcut is None else self.shortcut(x_BTHWC))


class FrameAttention(nnx.Module):
    """Single-head attention over the positions of each frame alone."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.norm = conv.ChannelNorm(dim)
        self.to_qkv = Linear(dim, 3 * dim, axes=("conv_in", "conv_out"), rngs=rngs)
        self.proj = Linear(dim, dim, axes=("conv_in", "conv_out"), std=0.0, rngs=rngs)

    def __call__(self, x_BTHWC: jax.Array) -> jax.Array:
        batch, frames, height = x_BTHWC.shape[:3]
        qkv = rearrange(self.to_qkv(self.norm(x_BTHWC)), "B T H W (n C) -> n (B T) (H W) 1 C", n=3)
        one_segment = jnp.ones(qkv.shape[1:3], jnp.int32)
        mixed = attend(qkv[0], qkv[1], qkv[2], one_segment, one_segment)
        mixed = rearrange(mixed, "(B T) (H W) 1 C -> B T H W C", B=batch, T=frames, H=height)
        return x_BTHWC + self.proj(mixed)


class Middle(nnx.Module):
    """Residual block, optional attention, residual block."""

    def __init__(self, dim: int, *, attention: bool, rngs: nnx.Rngs):
        self.before = ResidualBlock(dim, dim, rngs=rngs)
        self.attention = FrameAttention(dim, rngs=rngs) if attention else None
        self.after = ResidualBlock(dim, dim, rngs=rngs)

    def __call__(self, x_BTHWC: jax.Array) -> jax.Array:
        x = self.before(x_BTHWC)
        if self.attention is not None:
            x = self.attention(x)
        return self.after(x)


class DownLevel(nnx.Module):
    """Residual blocks, then an optional halving of space and of time."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        blocks: int,
        space: bool,
        time: bool,
        shortcut: bool,
        rngs: nnx.Rngs,
    ):
        dims = [in_dim] + [out_dim] * blocks
        self.blocks = nnx.List([ResidualBlock(a, b, rngs=rngs) for a, b in itertools.pairwise(dims)])
        self.space = conv.CausalConv(out_dim, out_dim, (1, 3, 3), stride=2, rngs=rngs) if space else None
        self.time = conv.CausalConv(out_dim, out_dim, (3, 1, 1), rngs=rngs) if time else None
        self.shortcut = shortcut and (space or time)
        self.out_dim = out_dim

    def __call__(self, x_BTHWC: jax.Array) -> jax.Array:
        x = x_BTHWC
        for block in self.blocks:
            x = block(x)
        if self.space is not None:
            x = self.space(x)
        if self.time is not None:
            x = conv.halve_time(x, self.time)
        if self.shortcut:
            factors = {"time": 1 if self.time is None else 2, "space": 1 if self.space is None else 2}
            x = x + conv.fold_mean(x_BTHWC, self.out_dim, **factors)
        return x


class UpLevel(nnx.Module):
    """Residual blocks, then an optional doubling of time and of space."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        blocks: int,
        space: bool,
        time: bool,
        shortcut: bool,
        rngs: nnx.Rngs,
    ):
        dims = [in_dim] + [out_dim] * blocks
        self.blocks = nnx.List([ResidualBlock(a, b, rngs=rngs) for a, b in itertools.pairwise(dims)])
        self.time = conv.CausalConv(out_dim, 2 * out_dim, (3, 1, 1), rngs=rngs) if time else None
        self.space = conv.CausalConv(out_dim, out_dim, (1, 3, 3), rngs=rngs) if space else None
        self.shortcut = shortcut and (space or time)
        self.out_dim = out_dim

    def __call__(self, x_BTHWC: jax.Array) -> jax.Array:
        x = x_BTHWC
        for block in self.blocks:
            x = block(x)
        if self.time is not None:
            x = conv.double_time(x, self.time)
        if self.space is not None:
            x = self.space(conv.double_space(x))
        if self.shortcut:
            factors = {"time": 1 if self.time is None else 2, "space": 1 if self.space is None else 2}
            x = x + conv.unfold_repeat(x_BTHWC, self.out_dim, **factors)
        return x


class Encoder(nnx.Module):
    """Clip in [-1, 1] -> mean and log variance of the latent."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        dims = [config.width * m for m in (1, *config.multipliers)]
        self.conv_in = conv.CausalConv(3 * config.patch**2, dims[0], rngs=rngs)
        flags = zip(dims, dims[1:], (*config.space_down, False), (*config.time_down, False), strict=False)
        self.levels = nnx.List(
            [
                DownLevel(a, b, blocks=config.blocks, space=s, time=t, shortcut=config.shortcuts, rngs=rngs)
                for a, b, s, t in flags
            ]
        )
        self.middle = Middle(dims[-1], attention=config.attention, rngs=rngs)
        self.norm_out = conv.ChannelNorm(dims[-1])
        self.conv_out = conv.CausalConv(dims[-1], 2 * config.channels, rngs=rngs)
        self.quant_conv = conv.CausalConv(2 * config.channels, 2 * config.channels, (1, 1, 1), rngs=rngs)
        self.patch = config.patch

    def __call__(self, clip_BTHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = rearrange(clip_BTHWC, "B T (H p) (W q) C -> B T H W (C q p)", p=self.patch, q=self.patch)
        x = self.conv_in(x)
        for level in self.levels:
            x = level(x)
        x = self.conv_out(jax.nn.silu(self.norm_out(self.middle(x))))
        mean, log_variance = jnp.split(self.quant_conv(x), 2, axis=-1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)


class Decoder(nnx.Module):
    """Latent -> clip, about [-1, 1]."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        dims = [config.decoder_width * m for m in (config.multipliers[-1], *config.multipliers[::-1])]
        self.post_quant_conv = conv.CausalConv(config.channels, config.channels, (1, 1, 1), rngs=rngs)
        self.conv_in = conv.CausalConv(config.channels, dims[0], rngs=rngs)
        self.middle = Middle(dims[0], attention=config.attention, rngs=rngs)
        flags = zip(dims, dims[1:], (*config.space_down[::-1], False), (*config.time_down[::-1], False), strict=False)
        self.levels = nnx.List(
            [
                UpLevel(a, b, blocks=config.decoder_blocks, space=s, time=t, shortcut=config.shortcuts, rngs=rngs)
                for a, b, s, t in flags
            ]
        )
        self.norm_out = conv.ChannelNorm(dims[-1])
        self.conv_out = conv.CausalConv(dims[-1], 3 * config.patch**2, rngs=rngs)
        self.patch = config.patch

    def __call__(self, latent_BTHWC: jax.Array) -> jax.Array:
        x = self.middle(self.conv_in(self.post_quant_conv(latent_BTHWC)))
        for level in self.levels:
            x = level(x)
        x = self.conv_out(jax.nn.silu(self.norm_out(x)))
        return rearrange(x, "B T H W (C q p) -> B T (H p) (W q) C", p=self.patch, q=self.patch)


class Autoencoder(nnx.Module):
    """The pair, with a Gaussian (KL) bottleneck."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)

    def encode(self, clip_BTHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (mean, log variance) of the latent, each (B, t, h, w, C), of a clip in [-1, 1]."""
        return self.encoder(clip_BTHWC)

    def decode(self, latent_BTHWC: jax.Array) -> jax.Array:
        """Returns the clip, (B, T, H, W, 3) in about [-1, 1], of a latent before normalisation."""
        return self.decoder(latent_BTHWC)
