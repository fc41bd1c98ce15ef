"""Blocks of a captioner: of its encoder over a clip's tokens, and of its causal text decoder, whose keys can be kept.

Shapes: B rows, L tokens, K text tokens, S segments, R texts of a row being written, M text tokens of such a text, D
width, N heads, H head width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from sora_jax.core.rng import Rngs
from sora_jax.core.sharding import constrain, constrain_row_major
from sora_jax.models.block_attention import Attention
from sora_jax.nn.activation import gelu
from sora_jax.nn.attention import attend
from sora_jax.nn.linear import Linear, truncated_normal
from sora_jax.nn.norm import LayerNorm, RMSNorm

# Keys and values, (B, M, N, H) each.
Keys = tuple[jax.Array, jax.Array]


class BlockShape(NamedTuple):
    """What blocks have in common; see `models.captioner.CaptionerConfig`."""

    width: int
    heads: int
    mlp_width: int
    attention: str
    exchange: str


class ClipTokens(NamedTuple):
    """What the text decoder sees of the clips of rows."""

    tokens_BLD: jax.Array
    segment_BL: jax.Array


class KeptAttention(nnx.Module):
    """Multi-head attention with RMS norm over all heads of queries and of keys, whose keys are made apart."""

    def __init__(self, shape: BlockShape, *, along: tuple[str, str], rngs: Rngs):
        """`along` are the logical axes of queries and of keys."""
        width = shape.width
        self.to_q = Linear(width, width, axes=("embed", "heads"), rngs=rngs)
        self.to_k = Linear(width, width, axes=("embed", "heads"), rngs=rngs)
        self.to_v = Linear(width, width, axes=("embed", "heads"), rngs=rngs)
        self.to_out = Linear(width, width, axes=("heads", "embed"), std=0.02, rngs=rngs)
        self.norm_q, self.norm_k = RMSNorm(width), RMSNorm(width)
        self.shape, self.along = shape, along

    def keys(self, context_BMD: jax.Array) -> Keys:
        """Returns keys and values of what is seen."""
        heads = self.shape.heads
        return self.norm_k(self.to_k.to_heads(context_BMD, heads)), self.to_v.to_heads(context_BMD, heads)

    def __call__(
        self,
        x_BLD: jax.Array,
        keys: Keys,
        segment_BL: jax.Array,
        key_segment_BM: jax.Array,
        *,
        segments: int | None = None,
        causal: bool = False,
    ) -> jax.Array:
        """Returns what each query gathers, (B, L, D); the arguments are those of `attend`."""
        mixed = attend(
            self.norm_q(self.to_q.to_heads(x_BLD, self.shape.heads)),
            *keys,
            segment_BL,
            key_segment_BM,
            segments=segments,
            causal=causal,
            along=self.along,
            backend=self.shape.attention,
            exchange=self.shape.exchange,
        )
        return self.to_out.from_heads(mixed)


class FeedForward(nnx.Module):
    """A norm and two maps; adds to what it is given."""

    def __init__(self, shape: BlockShape, *, rngs: Rngs):
        self.norm = LayerNorm(shape.width)
        self.mlp_in = Linear(shape.width, shape.mlp_width, axes=("embed", "mlp"), rngs=rngs)
        self.mlp_out = Linear(shape.mlp_width, shape.width, axes=("mlp", "embed"), std=0.02, rngs=rngs)

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        return x_BLD + self.mlp_out(gelu(self.mlp_in(self.norm(x_BLD))))


class ClipBlock(nnx.Module):
    """Self-attention within a clip, or a frame of it, with rotary positions, and a feed-forward."""

    def __init__(self, shape: BlockShape, *, rngs: Rngs):
        self.norm = LayerNorm(shape.width)
        self.attn = Attention(
            shape.width,
            heads=shape.heads,
            backend=shape.attention,
            exchange=shape.exchange,
            context="length",
            image=False,
            rngs=rngs,
        )
        self.feed = FeedForward(shape, rngs=rngs)

    @jax.named_scope("clip_block")
    def __call__(
        self, x_BLD: jax.Array, segment_BL: jax.Array, rotation: tuple[jax.Array, jax.Array], *, segments: int | None
    ) -> jax.Array:
        x_BLD = constrain_row_major(x_BLD, "batch", "length", "features")
        y = self.norm(x_BLD)
        x_BLD = x_BLD + self.attn(y, y, segment_BL, segment_BL, rotation, segments=segments)[0]
        return constrain(self.feed(x_BLD), "batch", "length", "features")


class TextHalfBlock(nnx.Module):
    """Causal attention within a caption, in the multimodal half also attention to the clip, and a feed-forward."""

    def __init__(self, shape: BlockShape, *, multimodal: bool, rngs: Rngs):
        self.norm1 = LayerNorm(shape.width)
        self.attn1 = KeptAttention(shape, along=("text", "text"), rngs=rngs)
        self.norm2 = LayerNorm(shape.width) if multimodal else None
        self.attn2 = KeptAttention(shape, along=("text", "length"), rngs=rngs) if multimodal else None
        self.feed = FeedForward(shape, rngs=rngs)

    @jax.named_scope("text_block")
    def __call__(self, x_BKD: jax.Array, segment_BK: jax.Array, clip: ClipTokens | None, *, segments: int) -> jax.Array:
        x_BKD = constrain_row_major(x_BKD, "batch", "text", "features")
        y = self.norm1(x_BKD)
        x_BKD = x_BKD + self.attn1(y, self.attn1.keys(y), segment_BK, segment_BK, segments=segments, causal=True)
        if clip is not None:
            keys = self.clip_keys(clip.tokens_BLD)
            x_BKD = x_BKD + self.of_clip(x_BKD, keys, segment_BK, clip.segment_BL, segments)
        return self.feed(x_BKD)

    def clip_keys(self, tokens_BLD: jax.Array) -> Keys:
        """Returns keys and values of what the multimodal half sees."""
        assert self.attn2 is not None
        return self.attn2.keys(tokens_BLD)

    def step(
        self,
        x_BRD: jax.Array,
        kept: Keys,
        position: jax.Array,
        segment_BR: jax.Array,
        clip: tuple[Keys, jax.Array] | None,
    ) -> tuple[jax.Array, Keys]:
        """Returns what the block makes of the tokens at `position` of R texts of each row, and their keys and values.

        `kept` are keys and values, (B, R, N, H, M), of which those before `position` count; those that are returned,
        (B, R, N, H), belong there. `clip` are the keys of the clips, (B, N, H, L), and the segment of each.
        """
        y = self.norm1(x_BRD)
        fresh = self.attn1.keys(y)
        rows, texts, *_, length = kept[0].shape
        # Not written into what is kept, which would be copied: the caller does, once for all blocks.
        here_M = jnp.arange(length) == position
        both = (jnp.where(here_M, new[..., None], old) for old, new in zip(kept, fresh, strict=True))
        one_by_one = [jnp.moveaxis(x.reshape(rows * texts, *x.shape[2:]), -1, 1) for x in both]
        written = jnp.broadcast_to(jnp.arange(length) <= position, (rows * texts, length)).astype(jnp.int32)
        one = jnp.ones((rows * texts, 1), jnp.int32)
        mixed = self.attn1(y.reshape(rows * texts, 1, -1), (one_by_one[0], one_by_one[1]), one, written)
        x_BRD = x_BRD + mixed.reshape(x_BRD.shape)
        if clip is not None:
            (key, value), clip_segment_BL = clip
            keys = jnp.moveaxis(key, -1, 1), jnp.moveaxis(value, -1, 1)
            x_BRD = x_BRD + self.of_clip(x_BRD, keys, segment_BR, clip_segment_BL, None)
        return self.feed(x_BRD), fresh

    def of_clip(
        self, x: jax.Array, keys: Keys, segment: jax.Array, clip_segment: jax.Array, segments: int | None
    ) -> jax.Array:
        """Returns what text tokens gather of the clip of their segment; nothing where that has no token."""
        assert self.norm2 is not None
        assert self.attn2 is not None
        gathered = self.attn2(self.norm2(x), keys, segment, clip_segment, segments=segments)
        # A caption without a clip, as when a text is expanded, gets nothing: no offset of the last map either.
        shown = jnp.any(segment[:, :, None] == clip_segment[:, None], axis=-1, keepdims=True)
        return jnp.where(shown, gathered, 0)


class Pooler(nnx.Module):
    """Learned queries of each segment that gather what its tokens hold (CoCa, arXiv 2205.01917, section 3.2)."""

    def __init__(self, shape: BlockShape, *, queries: int, rngs: Rngs):
        table = truncated_normal(rngs.params(), (queries, shape.width), 1.0)
        self.queries = nnx.Param(table, axes=(None, "embed"))
        self.norm_queries, self.norm_tokens = LayerNorm(shape.width), LayerNorm(shape.width)
        self.attn = KeptAttention(shape, along=("segments", "length"), rngs=rngs)

    @jax.named_scope("pooler")
    def __call__(self, clip: ClipTokens, segments: int) -> ClipTokens:
        """Returns the gathered vectors, those of a segment behind one another; of one without tokens, nothing's."""
        table_MD = self.norm_queries(self.queries[...].astype(clip.tokens_BLD.dtype))
        rows, queries = clip.tokens_BLD.shape[0], table_MD.shape[0]
        query_BMD = jnp.broadcast_to(jnp.tile(table_MD, (segments, 1)), (rows, segments * queries, table_MD.shape[1]))
        segment_M = jnp.repeat(jnp.arange(1, segments + 1, dtype=jnp.int32), queries)
        segment_BM = jnp.broadcast_to(segment_M, (rows, segments * queries))
        keys = self.attn.keys(self.norm_tokens(clip.tokens_BLD))
        pooled_BMD = self.attn(query_BMD, keys, segment_BM, clip.segment_BL, segments=segments)
        present_BM = jnp.any(segment_BM[:, :, None] == clip.segment_BL[:, None], axis=-1)
        return ClipTokens(pooled_BMD, jnp.where(present_BM, segment_BM, 0))
