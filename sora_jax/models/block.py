"""One block of the transformer: the public Wan block, over packed rows.

Shapes: B rows, L tokens, M keys, G noise levels of a row, K text tokens, D width, N heads, H head width, Z blocks.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from sora_jax.core.rng import Rngs
from sora_jax.core.sharding import constrain, constrain_row_major
from sora_jax.models.block_attention import Attention, Beside
from sora_jax.models.transformer_config import TransformerConfig
from sora_jax.nn.activation import gelu
from sora_jax.nn.attention import Alone
from sora_jax.nn.flash import KeyPart
from sora_jax.nn.gather import gather_level
from sora_jax.nn.linear import Linear
from sora_jax.nn.norm import LayerNorm, layer_norm


class KeptKeys(NamedTuple):
    """Keys of clips beside in all blocks."""

    key_ZBMNH: jax.Array
    value_ZBMNH: jax.Array
    segment_BM: jax.Array  # int32, 0 for padding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sight:
    """What of its row each token sees.

    Attributes:
      segments: S.
      segment_BL: int32 segment of each token.
      alone: Tokens that see those of their own clip alone, and no text; None: none do.
    """

    segments: int
    segment_BL: jax.Array
    alone: Alone | None

    def reading(self, nobody: int = 0) -> jax.Array:
        """Returns the segment whose text each token sees, int32; `nobody` where it sees none."""
        return self.segment_BL if self.alone is None else self.alone.marked(self.segment_BL, nobody)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """What every block sees besides the tokens.

    Attributes:
      modulation_BG6D: float32 modulation of each of the G noise levels of a row.
      level_BL: int32 index into G of each token.
      rotation: cos and sin of the rotary angles.
      sight: What of its row each token sees.
      text_BKD: Projected text tokens.
      text_segment_BK: int32 segment of each text token.
      beside: What else attention to the text sees.
    """

    modulation_BG6D: jax.Array
    level_BL: jax.Array
    rotation: tuple[jax.Array, jax.Array]
    sight: Sight
    text_BKD: jax.Array
    text_segment_BK: jax.Array
    beside: Beside


class Block(nnx.Module):
    """Self-attention within segments, cross-attention to their text, feed-forward; modulated by noise level."""

    def __init__(self, config: TransformerConfig, *, rngs: Rngs):
        width = config.width
        attention = functools.partial(
            Attention, width, heads=config.heads, backend=config.attention, exchange=config.exchange, rngs=rngs
        )
        self.attn1 = attention(context="length", image=False)
        self.norm2 = LayerNorm(width)
        self.attn2 = attention(context="text", image=config.image_dim is not None)
        self.mlp_in = Linear(width, config.mlp_width, axes=("embed", "mlp"), rngs=rngs)
        self.mlp_out = Linear(config.mlp_width, width, axes=("mlp", "embed"), rngs=rngs)
        self.modulation = nnx.Param(jnp.zeros((6, width), jnp.float32), axes=("modulation", "embed"))

    def __call__(self, x_BLD: jax.Array, context: Context, further: KeyPart | None = None) -> jax.Array:
        """Returns the tokens after the block; `further` are keys of clips beside that are in no other array."""
        return self.with_keys(x_BLD, context, further)[0]

    @jax.named_scope("block")
    def with_keys(
        self, x_BLD: jax.Array, context: Context, further: KeyPart | None = None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Returns also the keys and values that self-attention made of the tokens, (B, L, N, H)."""
        x_BLD = constrain_row_major(x_BLD, "batch", "length", "features")
        # Per level first, then one gather for each of the six: a (B, L, 6 D) array would dominate the memory.
        table_BG6D = context.modulation_BG6D + self.modulation[...]
        shift1, scale1, gate1, shift3, scale3, gate3 = (
            gather_level(table_BG6D[:, :, i].astype(x_BLD.dtype), context.level_BL) for i in range(6)
        )
        sight = context.sight
        segment, segments = sight.segment_BL, sight.segments
        with jax.named_scope("self_attention"):
            y = (layer_norm(x_BLD) * (1 + scale1) + shift1).astype(x_BLD.dtype)
            arrays = y, y, segment, segment, context.rotation
            mixed, keys = self.attn1(*arrays, segments=segments, alone=sight.alone, further=further)
            x_BLD = x_BLD + gate1 * mixed
        with jax.named_scope("text_attention"):
            y = self.norm2(x_BLD)
            text, text_segment = context.text_BKD, context.text_segment_BK
            arrays = y, text, sight.reading(), text_segment, None
            x_BLD = x_BLD + self.attn2(*arrays, segments=segments, beside=context.beside)[0]
        with jax.named_scope("mlp"):
            y = (layer_norm(x_BLD) * (1 + scale3) + shift3).astype(x_BLD.dtype)
            x_BLD = x_BLD + gate3 * self.mlp_out(gelu(self.mlp_in(y)))
        return constrain(x_BLD, "batch", "length", "features"), keys
