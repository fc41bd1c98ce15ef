"""The causal video autoencoder: clip -> latent -> clip, of the public Wan VAE family.

Shapes: B clips, T H W frames, rows, columns (lower-case for the latent's), C channels, E numbers that the encoder gives
for each position of the latent. The first frame alone gives the first latent frame, then each `temporal stride` frames
give one. Normalisation is per position, so a prefix of a clip encodes to a prefix of its latent.

Each half is in two parts: one that sees only its surroundings, which `models/tiles.py` cuts into tiles, and one at the
size of the latent, whose attention sees whole frames.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from sora_jax.core.errors import UserError
from sora_jax.core.rng import Rngs
from sora_jax.core.sharding import shard_space
from sora_jax.models.bottleneck import BottleneckName, make_bottleneck
from sora_jax.nn import conv
from sora_jax.nn.attention import attend
from sora_jax.nn.conv import Past
from sora_jax.nn.linear import Linear


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Shape of the autoencoder; `configs/base.py` holds the preset `tiny`.

    Attributes:
      patch: Side of the pixel blocks that are folded into channels before the first convolution.
      patch_kernel: Side, in space and time, of the convolutions from blocks of pixels to features and back: 3 as in
        Wan, or 1, which sees each block alone and costs up to 27 times less.
      width: Channels of the first level.
      multipliers: Width of each level as a multiple of `width`.
      space_down: For each level but the last, whether it halves height and width.
      time_down: For each level but the last, whether it halves time.
      blocks: Residual blocks per level of the encoder; the decoder has `decoder_blocks`.
      decoder_width: Channels of the decoder's last level.
      decoder_blocks: Residual blocks per level of the decoder.
      channels: Channels of the latent.
      attention: Whether the middle attends over the positions of each frame.
      shortcuts: Whether levels carry the parameter-free shortcuts of Wan 2.2. Without, as in Wan 2.1, doubling space
        halves the channels.
      linear_heads: Whether latent and pixels also come linearly from the last features. Without, as in Wan, they come
        from normalised features alone, which tell amplitudes only by directions: slow to learn.
      bottleneck: "kl", "fsq" or "vq" (`models/bottleneck.py`).
      codes: Values of a number (fsq), entries of the codebook (vq); None for kl.
      remat: Whether the backward pass computes residual blocks again instead of keeping what is inside them.
    """

    patch: int
    patch_kernel: int
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
    linear_heads: bool
    bottleneck: BottleneckName
    codes: int | None
    remat: bool

    def __post_init__(self):
        if self.patch_kernel not in (1, 3):
            raise UserError(f"autoencoder: patch_kernel {self.patch_kernel}: give 1 or 3")
        levels = len(self.multipliers)
        if not len(self.space_down) == len(self.time_down) == levels - 1:
            raise UserError(
                f"autoencoder: {levels} multipliers need {levels - 1} entries each in space_down and time_down, "
                f"not {len(self.space_down)} and {len(self.time_down)}"
            )
        if (self.bottleneck == "kl") != (self.codes is None) or (self.codes is not None and self.codes < 2):
            raise UserError(
                f"autoencoder: codes {self.codes} with bottleneck {self.bottleneck!r}: give 2 or more for 'fsq' and "
                "'vq', None for 'kl'"
            )

    @property
    def space_stride(self) -> int:
        """Pixels of a side that one latent position stands for."""
        return self.patch * 2 ** sum(self.space_down)

    @property
    def time_stride(self) -> int:
        """Frames that one latent frame after the first stands for."""
        return 2 ** sum(self.time_down)


def encoder_dims(config: AutoencoderConfig) -> list[tuple[int, int]]:
    """Returns the channels (in, out) of each level of the encoder."""
    return list(itertools.pairwise(config.width * m for m in (1, *config.multipliers)))


def decoder_dims(config: AutoencoderConfig) -> list[tuple[int, int]]:
    """Returns the channels (in, out) of the residual blocks of each level of the decoder, from the latent on."""
    outs = [config.decoder_width * m for m in config.multipliers[::-1]]
    halves = [space and not config.shortcuts for space in config.space_down[::-1]]
    ins = [outs[0], *(out // 2 if half else out for out, half in zip(outs, halves, strict=False))]
    return list(zip(ins, outs, strict=True))


class ResidualBlock(nnx.Module):
    """norm, SiLU, convolution, twice, around a shortcut; the second convolution starts small."""

    def __init__(self, in_dim: int, out_dim: int, *, remat: bool, rngs: Rngs):
        self.norm1 = conv.ChannelNorm(in_dim)
        self.conv1 = conv.CausalConv(in_dim, out_dim, rngs=rngs)
        self.norm2 = conv.ChannelNorm(out_dim)
        self.conv2 = conv.CausalConv(out_dim, out_dim, std_scale=0.1, rngs=rngs)
        self.shortcut = conv.CausalConv(in_dim, out_dim, (1, 1, 1), rngs=rngs) if in_dim != out_dim else None
        self.remat = remat

    def __call__(self, x_BTHWC: jax.Array, past: Past) -> jax.Array:
        # A chunk leaves frames behind in `past`, which cannot leave a rematerialised function; training has no chunks.
        if self.remat and past.is_whole:
            return jax.checkpoint(lambda x: self._apply(x, past))(x_BTHWC)
        return self._apply(x_BTHWC, past)

    def _apply(self, x_BTHWC: jax.Array, past: Past) -> jax.Array:
        y = self.conv1(jax.nn.silu(self.norm1(x_BTHWC)), past)
        y = self.conv2(jax.nn.silu(self.norm2(y)), past)
        return y + (x_BTHWC if self.shortcut is None else self.shortcut(x_BTHWC, past))


class FrameAttention(nnx.Module):
    """Single-head attention over the positions of each frame alone."""

    def __init__(self, dim: int, *, rngs: Rngs):
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

    def __init__(self, dim: int, config: AutoencoderConfig, *, rngs: Rngs):
        self.before = ResidualBlock(dim, dim, remat=config.remat, rngs=rngs)
        self.attention = FrameAttention(dim, rngs=rngs) if config.attention else None
        self.after = ResidualBlock(dim, dim, remat=config.remat, rngs=rngs)

    @jax.named_scope("middle")
    def __call__(self, x_BTHWC: jax.Array, past: Past) -> jax.Array:
        x = self.before(shard_space(x_BTHWC), past)
        if self.attention is not None:
            x = self.attention(x)
        return self.after(x, past)


class Level(nnx.Module):
    """Residual blocks, then what the two kinds of level add: a step in space, in time, and a shortcut around all.

    Args:
      dims: Channels (in, out) of the residual blocks.
      blocks: Their number.
      space: Whether height and width change.
      time: Whether time does.
      shortcut: Whether a parameter-free shortcut goes around, if the widths allow one.
      remat: Of the residual blocks.
      rngs: Source of the initial values.
    """

    def __init__(
        self,
        dims: tuple[int, int],
        *,
        blocks: int,
        space: bool,
        time: bool,
        shortcut: bool,
        remat: bool,
        rngs: Rngs,
    ):
        widths = [dims[0]] + [dims[1]] * blocks
        self.blocks = nnx.List([ResidualBlock(a, b, remat=remat, rngs=rngs) for a, b in itertools.pairwise(widths)])
        self.factors = {"time": 2 if time else 1, "space": 2 if space else 1}
        self.out_dim = dims[1]
        self.shortcut = shortcut

    def residual(self, x_BTHWC: jax.Array, past: Past) -> jax.Array:
        """Returns the result of the residual blocks; frames may be spread over the mesh."""
        x = shard_space(x_BTHWC)
        for block in self.blocks:
            x = block(x, past)
        return x


class DownLevel(Level):
    """A level of the encoder: residual blocks, then halving space, then time."""

    def __init__(self, dims: tuple[int, int], *, shortcut: bool, space: bool, time: bool, rngs: Rngs, **rest):
        in_dim, out_dim = dims
        # Means over groups of channels: the channels must form whole groups.
        shortcut = shortcut and in_dim * (2 if time else 1) * (4 if space else 1) % out_dim == 0
        super().__init__(dims, shortcut=shortcut, space=space, time=time, rngs=rngs, **rest)
        self.space = conv.CausalConv(out_dim, out_dim, (1, 3, 3), stride=2, rngs=rngs) if space else None
        self.time = conv.CausalConv(out_dim, out_dim, (3, 1, 1), rngs=rngs) if time else None

    def __call__(self, x_BTHWC: jax.Array, past: Past) -> jax.Array:
        x = self.residual(x_BTHWC, past)
        if self.space is not None:
            x = self.space(x, past)
        if self.time is not None:
            x = conv.halve_time(x, self.time, past)
        return x + conv.fold_mean(x_BTHWC, self.out_dim, **self.factors) if self.shortcut else x


class UpLevel(Level):
    """A level of the decoder: residual blocks, then doubling time, then space."""

    def __init__(self, dims: tuple[int, int], *, shortcut: bool, space: bool, time: bool, rngs: Rngs, **rest):
        width = dims[1]
        super().__init__(dims, shortcut=shortcut and (space or time), space=space, time=time, rngs=rngs, **rest)
        after = width if shortcut else width // 2
        self.time = conv.CausalConv(width, 2 * width, (3, 1, 1), rngs=rngs) if time else None
        self.space = conv.CausalConv(width, after, (1, 3, 3), rngs=rngs) if space else None

    def __call__(self, x_BTHWC: jax.Array, past: Past) -> jax.Array:
        x = self.residual(x_BTHWC, past)
        if self.time is not None:
            x = conv.double_time(x, self.time, past)
        if self.space is not None:
            x = self.space(conv.double_space(x), past)
        if not self.shortcut:
            return x
        return x + conv.unfold_repeat(x_BTHWC, self.out_dim, is_start=past.is_start, **self.factors)


class Head(nnx.Module):
    """norm, SiLU, convolution: what comes out of a half; beside it, if `linear`, a linear map that starts small."""

    def __init__(self, in_dim: int, out_dim: int, *, kernel: int = 3, linear: bool, rngs: Rngs):
        self.norm = conv.ChannelNorm(in_dim)
        self.conv = conv.CausalConv(in_dim, out_dim, (kernel, kernel, kernel), rngs=rngs)
        self.linear = conv.CausalConv(in_dim, out_dim, (1, 1, 1), std_scale=0.1, rngs=rngs) if linear else None

    @jax.named_scope("head")
    def __call__(self, x_BTHWC: jax.Array, past: Past) -> jax.Array:
        y = self.conv(jax.nn.silu(self.norm(x_BTHWC)), past)
        return y if self.linear is None else y + self.linear(x_BTHWC, past)


class Encoder(nnx.Module):
    """Clip in [-1, 1] -> E numbers for each position of the latent."""

    def __init__(self, config: AutoencoderConfig, width: int, *, rngs: Rngs):
        dims = encoder_dims(config)
        side = config.patch_kernel
        self.conv_in = conv.CausalConv(3 * config.patch**2, dims[0][0], (side, side, side), rngs=rngs)
        flags = zip(dims, (*config.space_down, False), (*config.time_down, False), strict=True)
        rest = {"blocks": config.blocks, "shortcut": config.shortcuts, "remat": config.remat, "rngs": rngs}
        self.levels = nnx.List([DownLevel(dim, space=space, time=time, **rest) for dim, space, time in flags])
        self.middle = Middle(dims[-1][1], config, rngs=rngs)
        self.head = Head(dims[-1][1], width, linear=config.linear_heads, rngs=rngs)
        self.quant_conv = conv.CausalConv(width, width, (1, 1, 1), rngs=rngs)
        self.patch = config.patch

    def down(self, clip_BTHWC: jax.Array, past: Past) -> jax.Array:
        """Returns features at the size of the latent; each sees only its surroundings."""
        x = rearrange(clip_BTHWC, "B T (H p) (W q) C -> B T H W (C q p)", p=self.patch, q=self.patch)
        x = self.conv_in(x, past)
        for number, level in enumerate(self.levels):
            with jax.named_scope(f"encoder_level_{number}"):
                x = level(x, past)
        return x

    def finish(self, x_BTHWC: jax.Array, past: Past) -> jax.Array:
        """Returns the E numbers from features of whole frames."""
        x = self.head(self.middle(x_BTHWC, past), past)
        return self.quant_conv(x, past)


class Decoder(nnx.Module):
    """Latent -> clip, about [-1, 1]."""

    def __init__(self, config: AutoencoderConfig, *, rngs: Rngs):
        dims = decoder_dims(config)
        self.post_quant_conv = conv.CausalConv(config.channels, config.channels, (1, 1, 1), rngs=rngs)
        self.conv_in = conv.CausalConv(config.channels, dims[0][0], rngs=rngs)
        self.middle = Middle(dims[0][0], config, rngs=rngs)
        flags = zip(dims, (*config.space_down[::-1], False), (*config.time_down[::-1], False), strict=True)
        rest = {"blocks": config.decoder_blocks, "shortcut": config.shortcuts, "remat": config.remat, "rngs": rngs}
        self.levels = nnx.List([UpLevel(dim, space=space, time=time, **rest) for dim, space, time in flags])
        dim, pixels, kernel = dims[-1][1], 3 * config.patch**2, config.patch_kernel
        self.head = Head(dim, pixels, kernel=kernel, linear=config.linear_heads, rngs=rngs)
        self.patch = config.patch

    def begin(self, latent_BTHWC: jax.Array, past: Past) -> jax.Array:
        """Returns features from a latent of whole frames."""
        x = self.post_quant_conv(latent_BTHWC, past)
        return self.middle(self.conv_in(x, past), past)

    def up(self, x_BTHWC: jax.Array, past: Past) -> jax.Array:
        """Returns the clip from features; each pixel sees only its surroundings."""
        x = x_BTHWC
        for number, level in enumerate(self.levels):
            with jax.named_scope(f"decoder_level_{number}"):
                x = level(x, past)
        x = self.head(x, past)
        return rearrange(x, "B T H W (C q p) -> B T (H p) (W q) C", p=self.patch, q=self.patch)


class Autoencoder(nnx.Module):
    """The pair, and the bottleneck between them."""

    def __init__(self, config: AutoencoderConfig, *, rngs: Rngs):
        self.bottleneck = make_bottleneck(config.bottleneck, config.channels, config.codes, rngs=rngs)
        self.encoder = Encoder(config, self.bottleneck.width, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)

    def moments(self, clip_BTHWC: jax.Array) -> jax.Array:
        """Returns the numbers (B, t, h, w, E) of a whole clip in [-1, 1], from which the bottleneck makes a latent."""
        past = Past(is_whole=True)
        return self.encoder.finish(self.encoder.down(clip_BTHWC, past), past)

    def encode(self, clip_BTHWC: jax.Array) -> jax.Array:
        """Returns the latent (B, t, h, w, C) of a whole clip in [-1, 1]: what the bottleneck deems most likely."""
        return self.bottleneck.mode(self.moments(clip_BTHWC))

    def decode(self, latent_BTHWC: jax.Array) -> jax.Array:
        """Returns the clip, (B, T, H, W, 3) in about [-1, 1], of a whole latent before normalisation."""
        past = Past(is_whole=True)
        return self.decoder.up(self.decoder.begin(latent_BTHWC, past), past)
