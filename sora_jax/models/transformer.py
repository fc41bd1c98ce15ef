"""The diffusion transformer over packed rows of spacetime latent patches: the public Wan block.

Shapes: B rows, L tokens, S segments, G noise levels, K text tokens, P patch width, D width, E text width,
N heads, H head width. A noise level is a
property of a segment or of its known tokens, so modulation is computed for the G = 2 S levels of a row and gathered by
token, never for every token (`diffusion.known`).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from sora_jax.core.errors import UserError
from sora_jax.core.sharding import constrain, constrain_row_major
from sora_jax.models.place import Place
from sora_jax.nn import rope
from sora_jax.nn.activation import gelu
from sora_jax.nn.attention import attend, check_backend
from sora_jax.nn.embed import sinusoid
from sora_jax.nn.gather import gather_level
from sora_jax.nn.linear import Linear, truncated_normal
from sora_jax.nn.norm import LayerNorm, RMSNorm, layer_norm
from sora_jax.nn.stack import REMAT_POLICIES, scan_blocks, stack_blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Shape of the transformer.

    Attributes:
      patch: Latent positions of one token over (time, height, width).
      width: D; a multiple of `heads`.
      depth: Number of blocks.
      heads: Attention heads.
      mlp_width: Hidden width of the feed-forward.
      frequency_dim: Sinusoidal features of a noise level.
      rope_theta: Base of the rotary wavelengths.
      time_rate: Time positions per second of video.
      attention: A key of `nn.attention.BACKENDS`, or "auto".
      exchange: How keys that are spread over devices come to the queries, one of `nn.attention.EXCHANGES`.
      remat: What the backward pass keeps, a key of `nn.stack.REMAT_POLICIES`.
      pooled_text: Whether the pooled text of a segment also enters its modulation (Wan: no).
      place_features: Whether each token is also told its place in the segment, see `Place` (Wan: no).
    """

    patch: tuple[int, int, int]
    width: int
    depth: int
    heads: int
    mlp_width: int
    frequency_dim: int
    rope_theta: float
    time_rate: float
    attention: str
    exchange: str
    remat: str
    pooled_text: bool
    place_features: bool

    def __post_init__(self):
        if self.width % self.heads or self.width // self.heads % 2:
            raise UserError(
                f"transformer: width {self.width} over {self.heads} heads is not an even head width; "
                f"nearest: width {max(1, round(self.width / self.heads / 2)) * 2 * self.heads}"
            )
        if self.patch[0] != 1:
            raise UserError(
                f"transformer: patch {self.patch} covers {self.patch[0]} latent frames; it must be 1, because the "
                "first latent frame stands for one frame and the others for more"
            )
        if self.remat not in REMAT_POLICIES:
            raise UserError(f"transformer: remat {self.remat!r} is none of {', '.join(REMAT_POLICIES)}")
        check_backend(self.attention, self.exchange)


class Attention(nnx.Module):
    """Multi-head attention with RMS norm over all heads of queries and of keys."""

    def __init__(self, config: TransformerConfig, *, context: str, rngs: nnx.Rngs):
        """`context` is the logical axis of the keys."""
        width = config.width
        self.to_q = Linear(width, width, axes=("embed", "heads"), rngs=rngs)
        self.to_k = Linear(width, width, axes=("embed", "heads"), rngs=rngs)
        self.to_v = Linear(width, width, axes=("embed", "heads"), rngs=rngs)
        self.to_out = Linear(width, width, axes=("heads", "embed"), rngs=rngs)
        self.norm_q = RMSNorm(width)
        self.norm_k = RMSNorm(width)
        self.config = config
        self.along = ("length", context)

    def __call__(
        self,
        x_BLD: jax.Array,
        context_BMD: jax.Array,
        segment_BL: jax.Array,
        context_segment_BM: jax.Array,
        rotation: tuple[jax.Array, jax.Array] | None,
        *,
        segments: int,
    ) -> jax.Array:
        heads = self.config.heads
        query = self.norm_q(self.to_q.to_heads(x_BLD, heads))
        key = self.norm_k(self.to_k.to_heads(context_BMD, heads))
        if rotation is not None:
            query, key = rope.rotate(query, rotation), rope.rotate(key, rotation)
        mixed = attend(
            query,
            key,
            self.to_v.to_heads(context_BMD, heads),
            segment_BL,
            context_segment_BM,
            segments=segments,
            along=self.along,
            backend=self.config.attention,
            exchange=self.config.exchange,
        )
        return self.to_out.from_heads(mixed)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """What every block sees besides the tokens.

    Attributes:
      modulation_BG6D: float32 modulation of each of the G = 2 S noise levels of a row.
      level_BL: int32 index into G of each token.
      rotation: cos and sin of the rotary angles.
      segment_BL: int32 segment of each token.
      text_BKD: Projected text tokens.
      text_segment_BK: int32 segment of each text token.
    """

    modulation_BG6D: jax.Array
    level_BL: jax.Array
    rotation: tuple[jax.Array, jax.Array]
    segment_BL: jax.Array
    text_BKD: jax.Array
    text_segment_BK: jax.Array


class Block(nnx.Module):
    """Self-attention within segments, cross-attention to their text, feed-forward; modulated by noise level."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        width = config.width
        self.attn1 = Attention(config, context="length", rngs=rngs)
        self.norm2 = LayerNorm(width)
        self.attn2 = Attention(config, context="text", rngs=rngs)
        self.mlp_in = Linear(width, config.mlp_width, axes=("embed", "mlp"), rngs=rngs)
        self.mlp_out = Linear(config.mlp_width, width, axes=("mlp", "embed"), rngs=rngs)
        self.modulation = nnx.Param(jnp.zeros((6, width), jnp.float32), axes=("modulation", "embed"))

    @jax.named_scope("block")
    def __call__(self, x_BLD: jax.Array, context: Context) -> jax.Array:
        x_BLD = constrain_row_major(x_BLD, "batch", "length", "features")
        # Per level first, then one gather for each of the six: a (B, L, 6 D) array would dominate the memory.
        table_BG6D = context.modulation_BG6D + self.modulation[...]
        shift1, scale1, gate1, shift3, scale3, gate3 = (
            gather_level(table_BG6D[:, :, i].astype(x_BLD.dtype), context.level_BL) for i in range(6)
        )
        segment, segments = context.segment_BL, table_BG6D.shape[1] // 2
        with jax.named_scope("self_attention"):
            y = (layer_norm(x_BLD) * (1 + scale1) + shift1).astype(x_BLD.dtype)
            x_BLD = x_BLD + gate1 * self.attn1(y, y, segment, segment, context.rotation, segments=segments)
        with jax.named_scope("text_attention"):
            y = self.norm2(x_BLD)
            text, text_segment = context.text_BKD, context.text_segment_BK
            x_BLD = x_BLD + self.attn2(y, text, segment, text_segment, None, segments=segments)
        with jax.named_scope("mlp"):
            y = (layer_norm(x_BLD) * (1 + scale3) + shift3).astype(x_BLD.dtype)
            x_BLD = x_BLD + gate3 * self.mlp_out(gelu(self.mlp_in(y)))
        return constrain(x_BLD, "batch", "length", "features")


class ConditionEmbedder(nnx.Module):
    """Noise levels -> modulation of the blocks and of the output; text features -> the model's width."""

    def __init__(self, config: TransformerConfig, *, text_dim: int, rngs: nnx.Rngs):
        width = config.width
        self.time_in = Linear(config.frequency_dim, width, axes=(None, "embed"), rngs=rngs)
        self.time_out = Linear(width, width, axes=("embed", None), rngs=rngs)
        # Zero, so that the gates of self-attention and feed-forward start shut (DiT, arXiv 2212.09748, section 3.2).
        self.time_proj = Linear(width, 6 * width, axes=("embed", None), std=0.0, rngs=rngs)
        self.text_in = Linear(text_dim, width, axes=(None, "embed"), rngs=rngs)
        self.text_out = Linear(width, width, axes=("embed", None), rngs=rngs)
        self.pooled = Linear(text_dim, width, axes=(None, "embed"), rngs=rngs) if config.pooled_text else None
        self.frequency_dim = config.frequency_dim

    def of_levels(self, levels: jax.Array) -> jax.Array:
        """Returns the features of noise levels alone, (..., D) float32."""
        # Wan counts noise levels in thousandths.
        return self.time_out(jax.nn.silu(self.time_in(sinusoid(levels * 1000.0, self.frequency_dim))))

    @jax.named_scope("conditions")
    def __call__(
        self, levels_BG: jax.Array, text_BKE: jax.Array, text_segment_BK: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns (level_BGD, modulation_BG6D, text_BKD); the first two float32."""
        level_BGD = self.of_levels(levels_BG)
        if self.pooled is not None:
            pooled_BSE = pool_text(text_BKE, text_segment_BK, levels_BG.shape[1] // 2)
            pooled_BSD = self.pooled(pooled_BSE)
            level_BGD = level_BGD + jnp.concatenate([pooled_BSD, pooled_BSD], axis=1)
        modulation = self.time_proj(jax.nn.silu(level_BGD))
        text_BKD = self.text_out(gelu(self.text_in(text_BKE)))
        return level_BGD, modulation.reshape(*level_BGD.shape[:2], 6, -1), text_BKD


def pool_text(text_BKE: jax.Array, text_segment_BK: jax.Array, segments: int) -> jax.Array:
    """Returns the sum of each segment's text tokens over the root of their number, (B, S, E) float32.

    A mean would make one word's share of the vector smaller the longer the caption. Zeros where a segment has no text.
    """
    member_BSK = (text_segment_BK[:, None, :] == jnp.arange(1, segments + 1)[:, None]).astype(jnp.float32)
    total = jnp.einsum("BSK,BKE->BSE", member_BSK, text_BKE.astype(jnp.float32))
    return total * jax.lax.rsqrt(jnp.maximum(jnp.sum(member_BSK, axis=-1, keepdims=True), 1.0))


class Reused(NamedTuple):
    """What the blocks added at an earlier noise level, and whether that does for this one."""

    added_BLD: jax.Array
    now: jax.Array


class Prediction(NamedTuple):
    """What the transformer says, and what its blocks added to say it, to be reused."""

    tokens_BLP: jax.Array  # float32
    added_BLD: jax.Array


class Transformer(nnx.Module):
    """Noisy tokens, noise levels and text -> a prediction per token.

    Differences from Wan's code, none in its mathematics: rows are packed, time positions are real time, each token has
    its own noise level out of two per segment.
    """

    def __init__(self, config: TransformerConfig, *, patch_width: int, text_dim: int, rngs: nnx.Rngs):
        width = config.width
        self.patch_embedding = Linear(patch_width, width, axes=("patch", "embed"), rngs=rngs)
        self.condition_embedder = ConditionEmbedder(config, text_dim=text_dim, rngs=rngs)
        self.place = Place(width, text_dim=text_dim, rngs=rngs) if config.place_features else None
        self.blocks = stack_blocks(lambda r: Block(config, rngs=r), config.depth, rngs)
        self.modulation = nnx.Param(
            truncated_normal(rngs.params(), (2, width), width**-0.5), axes=("modulation", "embed")
        )
        self.proj_out = Linear(width, patch_width, axes=("embed", "patch"), std=0.0, rngs=rngs)
        self.config = config

    def __call__(
        self,
        tokens_BLP: jax.Array,
        *,
        levels_BG: jax.Array,
        level_BL: jax.Array,
        position_BL3: jax.Array,
        segment_BL: jax.Array,
        extent_BL3: jax.Array,
        text_BKE: jax.Array,
        text_segment_BK: jax.Array,
        reused: Reused | None = None,
    ) -> Prediction:
        """Returns prediction_BLP and what the blocks added.

        Args:
          tokens_BLP: Noisy tokens, in the dtype of the computation.
          levels_BG: float32 noise levels, G = 2 S: of the segments, then of their known tokens.
          level_BL: int32 index into G of each token.
          position_BL3: float32 (time position, row, column).
          segment_BL: int32 segment of each token, 0 for padding.
          extent_BL3: float32 largest position of each token's segment, at least 1; used by `place_features` alone.
          text_BKE: Text features of the row.
          text_segment_BK: int32 segment of each text token, 0 for padding or a dropped caption.
          reused: What may take the place of the blocks.
        """
        config = self.config
        level_BGD, modulation, text_BKD = self.condition_embedder(levels_BG, text_BKE, text_segment_BK)
        x = self.patch_embedding(tokens_BLP)
        if self.place is not None:
            pooled_BSE = pool_text(text_BKE, text_segment_BK, levels_BG.shape[1] // 2)
            x = x + self.place(position_BL3 / extent_BL3, pooled_BSE, segment_BL).astype(x.dtype)
        x = constrain(x, "batch", "length", "features")
        context = Context(
            modulation_BG6D=modulation,
            level_BL=level_BL,
            rotation=rope.rotations(position_BL3, config.width // config.heads, config.rope_theta),
            segment_BL=segment_BL,
            text_BKD=text_BKD,
            text_segment_BK=text_segment_BK,
        )

        def blocks() -> jax.Array:
            return scan_blocks(self.blocks, x, lambda block, x: block(x, context), remat=config.remat)

        done = blocks() if reused is None else jax.lax.cond(reused.now, lambda: x + reused.added_BLD, blocks)
        added, x = done - x, done
        shift, scale = (gather_level(level_BGD + self.modulation[...][i], level_BL).astype(x.dtype) for i in range(2))
        x = (layer_norm(x) * (1 + scale) + shift).astype(x.dtype)
        return Prediction(self.proj_out(x).astype(jnp.float32), added)

    def modulation_of(self, levels_I: jax.Array) -> jax.Array:
        """Returns the modulation of the blocks by noise levels alone, (I, 6 D) float32."""
        embedder = self.condition_embedder
        return embedder.time_proj(jax.nn.silu(embedder.of_levels(levels_I)))
