"""The diffusion transformer over packed rows of spacetime latent patches: the public Wan block.

Shapes: B rows, L tokens, S segments, G noise levels, K text tokens, M image tokens, P patch width, C width of what is
given, D width, E width of the text's or image's encoder, N heads, H head width. A noise level is a property of a
segment, of its known tokens or of a clip beside it, so modulation is computed for the G levels of a row, 2 S without
clips beside, and gathered by token, never for every token (`diffusion.known`).
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from sora_jax.core.errors import UserError
from sora_jax.core.sharding import constrain, constrain_row_major
from sora_jax.models.block_attention import Attention, Beside, ImageTokens, Padding
from sora_jax.models.conditions import ConditionEmbedder, log_text_padding
from sora_jax.models.place import Place
from sora_jax.models.roles import Parts, Roles
from sora_jax.nn import rope
from sora_jax.nn.activation import gelu
from sora_jax.nn.attention import check_backend
from sora_jax.nn.gather import gather_level
from sora_jax.nn.linear import Linear, truncated_normal
from sora_jax.nn.lora import LoraConfig, adapted
from sora_jax.nn.norm import LayerNorm, layer_norm
from sora_jax.nn.stack import REMAT_POLICIES, scan_blocks, stack_blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Shape of the transformer.

    Attributes:
      patch: Latent positions of one token over (time, height, width).
      width: D; a multiple of `heads`.
      base_width: The width at which learning rates were found, of which those of this width are made (`nn.scaling`);
        heads and `mlp_width` grow with the width. None: rates are those of this width.
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
      text_pad_to: Text tokens that each segment's are padded to with zeros, which count as text (Wan: 512). They are
        one key, counted as often as they are. None: a segment sees its own text alone.
      given_channels: Channels of each latent position that are given beside the noisy ones; None: none.
      image_dim: Width of the tokens of a given image that attention to the text sees apart; None: it sees none.
      image_positions: Such tokens of a segment that have a learned embedding of their place; None: they have none.
      lora: Adapters of the blocks' maps; None: none.
    """

    patch: tuple[int, int, int]
    width: int
    base_width: int | None
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
    text_pad_to: int | None
    given_channels: int | None
    image_dim: int | None
    image_positions: int | None
    lora: LoraConfig | None

    def __post_init__(self):
        if self.width % self.heads or self.width // self.heads % 2:
            raise UserError(
                f"transformer: width {self.width} over {self.heads} heads is not an even head width; "
                f"nearest: width {max(1, round(self.width / self.heads / 2)) * 2 * self.heads}"
            )
        if self.base_width is not None:
            self._check_base(self.base_width)
        if self.patch[0] != 1:
            raise UserError(
                f"transformer: patch {self.patch} covers {self.patch[0]} latent frames; it must be 1, because the "
                "first latent frame stands for one frame and the others for more"
            )
        if self.remat not in REMAT_POLICIES:
            raise UserError(f"transformer: remat {self.remat!r} is none of {', '.join(REMAT_POLICIES)}")
        if self.image_positions is not None and self.image_dim is None:
            raise UserError(
                f"transformer: image_positions {self.image_positions} without image_dim: there are no image tokens"
            )
        check_backend(self.attention, self.exchange)

    def at_base_width(self) -> "TransformerConfig":
        """Returns the shape at `base_width`, whose rates are its own."""
        base = self.base_width or self.width
        heads, mlp_width = base * self.heads // self.width, base * self.mlp_width // self.width
        return dataclasses.replace(self, width=base, base_width=None, heads=heads, mlp_width=mlp_width)

    def _check_base(self, base: int) -> None:
        head = self.width // self.heads
        if base % head:
            raise UserError(
                f"transformer: base_width {base} is not a multiple of the head width {head}, which is the same at all "
                f"widths: there are more heads; {self.heads} heads of {head} are right for a base_width of "
                f"{max(1, round(base / head)) * head}"
            )
        if base * self.mlp_width % self.width:
            raise UserError(
                f"transformer: mlp_width {self.mlp_width} at width {self.width} is none at base_width {base}: make it "
                f"a multiple of the width, such as {max(1, round(self.mlp_width / self.width)) * self.width}"
            )

    @property
    def given_width(self) -> int:
        """C, of what a token is given beside its noise; 0 where nothing is."""
        return math.prod(self.patch) * (self.given_channels or 0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """What every block sees besides the tokens.

    Attributes:
      modulation_BG6D: float32 modulation of each of the G noise levels of a row.
      level_BL: int32 index into G of each token.
      rotation: cos and sin of the rotary angles.
      segment_BL: int32 segment of each token.
      text_BKD: Projected text tokens.
      text_segment_BK: int32 segment of each text token.
      beside: What else attention to the text sees.
      segments: S.
    """

    modulation_BG6D: jax.Array
    level_BL: jax.Array
    rotation: tuple[jax.Array, jax.Array]
    segment_BL: jax.Array
    text_BKD: jax.Array
    text_segment_BK: jax.Array
    beside: Beside
    segments: int = dataclasses.field(metadata={"static": True})


class Block(nnx.Module):
    """Self-attention within segments, cross-attention to their text, feed-forward; modulated by noise level."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
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

    @jax.named_scope("block")
    def __call__(self, x_BLD: jax.Array, context: Context) -> jax.Array:
        x_BLD = constrain_row_major(x_BLD, "batch", "length", "features")
        # Per level first, then one gather for each of the six: a (B, L, 6 D) array would dominate the memory.
        table_BG6D = context.modulation_BG6D + self.modulation[...]
        shift1, scale1, gate1, shift3, scale3, gate3 = (
            gather_level(table_BG6D[:, :, i].astype(x_BLD.dtype), context.level_BL) for i in range(6)
        )
        segment, segments = context.segment_BL, context.segments
        with jax.named_scope("self_attention"):
            y = (layer_norm(x_BLD) * (1 + scale1) + shift1).astype(x_BLD.dtype)
            x_BLD = x_BLD + gate1 * self.attn1(y, y, segment, segment, context.rotation, segments=segments)
        with jax.named_scope("text_attention"):
            y = self.norm2(x_BLD)
            text, text_segment = context.text_BKD, context.text_segment_BK
            mixed = self.attn2(y, text, segment, text_segment, None, segments=segments, beside=context.beside)
            x_BLD = x_BLD + mixed
        with jax.named_scope("mlp"):
            y = (layer_norm(x_BLD) * (1 + scale3) + shift3).astype(x_BLD.dtype)
            x_BLD = x_BLD + gate3 * self.mlp_out(gelu(self.mlp_in(y)))
        return constrain(x_BLD, "batch", "length", "features")


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
    its own noise level out of two per segment and one per clip beside, whose tokens a vector of their role is added to.
    """

    def __init__(
        self, config: TransformerConfig, *, patch_width: int, text_dim: int, rngs: nnx.Rngs, roles: bool = False
    ):
        """`roles` says whether there may be clips beside, whose roles have vectors."""
        width = config.width
        # What is given follows the noisy patch: so a token's rows of the kernel are two, and not one of each position.
        given = config.given_width
        self.patch_embedding = Linear(patch_width + given, width, axes=("patch", "embed"), rngs=rngs)
        self.condition_embedder = ConditionEmbedder(
            width,
            frequency_dim=config.frequency_dim,
            text_dim=text_dim,
            pooled_text=config.pooled_text,
            image_dim=config.image_dim,
            image_positions=config.image_positions,
            rngs=rngs,
        )
        base_width = config.base_width or width
        has_place = config.place_features
        self.place = Place(width, base_width=base_width, text_dim=text_dim, rngs=rngs) if has_place else None
        self.blocks = stack_blocks(lambda r: adapted(Block(config, rngs=r), config.lora, rngs=r), config.depth, rngs)
        self.modulation = nnx.Param(
            truncated_normal(rngs.params(), (2, width), base_width**-0.5), axes=("modulation", "embed")
        )
        self.proj_out = Linear(width, patch_width, axes=("embed", "patch"), std=0.0, rngs=rngs)
        self.roles = Roles(width) if roles else None
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
        given_BLC: jax.Array | None = None,
        image_BME: jax.Array | None = None,
        image_segment_BM: jax.Array | None = None,
        parts: Parts | None = None,
        reused: Reused | None = None,
    ) -> Prediction:
        """Returns prediction_BLP and what the blocks added.

        Args:
          tokens_BLP: Noisy tokens, in the dtype of the computation.
          levels_BG: float32 noise levels: of the segments, then of their known tokens, then of the clips beside.
          level_BL: int32 index into G of each token.
          position_BL3: float32 (time position, row, column).
          segment_BL: int32 segment of each token, 0 for padding.
          extent_BL3: float32 largest position of each token's segment, at least 1; used by `place_features` alone.
          text_BKE, text_segment_BK: Text features, and their int32 segments, 0 for padding or a dropped caption.
          given_BLC: Patches of what each token is given besides, in Wan a mask and a latent; as `given_channels` says.
          image_BME, image_segment_BM: Tokens of given images, and their int32 segments, in order; None: no images.
          parts: Which tokens are of clips beside, whose S A levels are the last; None: none are.
          reused: What may take the place of the blocks.
        """
        segments = levels_BG.shape[1] // 2 if parts is None else parts.role_BSA.shape[1]
        level_BGD, modulation, text_BKD = self.condition_embedder(levels_BG, text_BKE, text_segment_BK, segments)
        x = self.patch_embedding(self._with_given(tokens_BLP, given_BLC))
        if self.place is not None:
            place_BLD = self.place(position_BL3 / extent_BL3, text_BKE, text_segment_BK, segment_BL, segments)
            x = x + place_BLD.astype(x.dtype)
        x = self._with_roles(x, parts, segment_BL)
        context = Context(
            modulation_BG6D=modulation,
            level_BL=level_BL,
            rotation=rope.rotations(position_BL3, self.config.width // self.config.heads, self.config.rope_theta),
            segment_BL=segment_BL,
            text_BKD=text_BKD,
            text_segment_BK=text_segment_BK,
            beside=self._beside(text_BKE, text_segment_BK, segment_BL, segments, image_BME, image_segment_BM),
            segments=segments,
        )
        return self._prediction(x, self._through_blocks(x, context, reused), level_BGD, level_BL)

    def _through_blocks(self, x: jax.Array, context: Context, reused: Reused | None) -> jax.Array:
        def blocks() -> jax.Array:
            return scan_blocks(self.blocks, x, lambda block, x: block(x, context), remat=self.config.remat)

        return blocks() if reused is None else jax.lax.cond(reused.now, lambda: x + reused.added_BLD, blocks)

    def _prediction(self, x: jax.Array, done: jax.Array, level_BGD: jax.Array, level_BL: jax.Array) -> Prediction:
        """Returns the prediction of what the blocks made of x."""
        shift, scale = (gather_level(level_BGD + self.modulation[...][i], level_BL).astype(x.dtype) for i in range(2))
        output_BLD = (layer_norm(done) * (1 + scale) + shift).astype(x.dtype)
        return Prediction(self.proj_out(output_BLD).astype(jnp.float32), done - x)

    def _with_roles(self, x: jax.Array, parts: Parts | None, segment_BL: jax.Array) -> jax.Array:
        """Returns the tokens, those of clips beside with the vectors of their roles, spread over the devices."""
        if parts is not None:
            if self.roles is None:
                raise ValueError("clips beside for a transformer without roles")
            x = x + self.roles(parts, segment_BL).astype(x.dtype)
        return constrain(x, "batch", "length", "features")

    def _with_given(self, tokens_BLP: jax.Array, given_BLC: jax.Array | None) -> jax.Array:
        """Returns the tokens as the patch embedding takes them."""
        wanted, found = self.config.given_width, 0 if given_BLC is None else given_BLC.shape[-1]
        if found != wanted:
            raise ValueError(f"tokens are given {found} numbers beside the noise, and the transformer takes {wanted}")
        if given_BLC is None:
            return tokens_BLP
        return jnp.concatenate([tokens_BLP, given_BLC.astype(tokens_BLP.dtype)], axis=-1)

    def _beside(
        self,
        text_BKE: jax.Array,
        text_segment_BK: jax.Array,
        segment_BL: jax.Array,
        segments: int,
        image_BME: jax.Array | None,
        image_segment_BM: jax.Array | None,
    ) -> Beside:
        """Returns what attention to the text sees besides the text."""
        embedder, padding, image = self.condition_embedder, None, None
        if (pad_to := self.config.text_pad_to) is not None:
            table_BS = log_text_padding(text_segment_BK, segments, pad_to)
            padding = Padding(
                zero_11D=embedder.of_text(jnp.zeros((1, 1, text_BKE.shape[-1]), text_BKE.dtype)),
                log_count_BL=gather_level(table_BS[..., None], segment_BL)[..., 0],
            )
        if image_BME is not None:
            if embedder.image is None or image_segment_BM is None:
                raise ValueError("image tokens for a transformer without image_dim, or without their segments")
            image_BMD = embedder.image(image_BME.astype(text_BKE.dtype), image_segment_BM)
            image = ImageTokens(image_BMD, image_segment_BM)
        return Beside(padding, image)

    def modulation_of(self, levels_I: jax.Array) -> jax.Array:
        """Returns the modulation of the blocks by noise levels alone, (I, 6 D) float32."""
        embedder = self.condition_embedder
        return embedder.time_proj(jax.nn.silu(embedder.of_levels(levels_I)))
