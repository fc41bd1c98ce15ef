"""The diffusion transformer over packed rows of spacetime latent patches: the public Wan block.

Shapes: B rows, L tokens, S segments, G noise levels, K text tokens, M image tokens, P patch width, C width of what is
given, D width, E width of the text's or image's encoder, N heads, H head width. A noise level is a property of a
segment, of its known tokens or of a clip beside it, so modulation is computed for the G levels of a row, 2 S without
clips beside, and gathered by token, never for every token (`diffusion.known`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from sora_jax.core.rng import Rngs
from sora_jax.core.sharding import constrain
from sora_jax.models.block import Block, Context, KeptKeys, Sight
from sora_jax.models.block_attention import Beside, ImageTokens, Padding
from sora_jax.models.conditions import ConditionEmbedder, log_text_padding
from sora_jax.models.place import Place
from sora_jax.models.roles import Parts, Roles, alone_in
from sora_jax.models.transformer_config import TransformerConfig
from sora_jax.nn import rope
from sora_jax.nn.gather import gather_level
from sora_jax.nn.linear import Linear, truncated_normal
from sora_jax.nn.lora import adapted
from sora_jax.nn.norm import layer_norm
from sora_jax.nn.stack import map_blocks, scan_blocks, stack_blocks


class Reused(NamedTuple):
    """What the blocks added at an earlier noise level, and whether that does for this one."""

    added_BLD: jax.Array
    now: jax.Array


class Prediction(NamedTuple):
    """What the transformer says, and what its blocks added to say it, to be reused; their keys, where asked for."""

    tokens_BLP: jax.Array  # float32
    added_BLD: jax.Array
    keys: KeptKeys | None = None


class Transformer(nnx.Module):
    """Noisy tokens, noise levels and text -> a prediction per token.

    Differences from Wan's code, none in its mathematics: rows are packed, time positions are real time, each token has
    its own noise level out of two per segment and one per clip beside, whose tokens a vector of their role is added to.

    Clips beside that are `blind` see themselves alone, and no text. Their keys in the blocks are then the same at all
    levels of the clip that is made and for all texts: a pack of these clips alone gives them (`keeps_keys`), and one
    without them takes them (`kept`).
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        patch_width: int,
        text_dim: int,
        rngs: Rngs,
        roles: bool = False,
        blind: bool = False,
    ):
        """`roles` says whether there may be clips beside, whose roles have vectors; `blind` whether these are."""
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
        self.config, self.blind = config, blind

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
        kept: KeptKeys | None = None,
        keeps_keys: bool = False,
    ) -> Prediction:
        """Returns prediction_BLP and what the blocks added.

        Args:
          tokens_BLP: Noisy tokens, in the dtype of the computation.
          levels_BG, level_BL: float32 levels of segments, their known tokens, clips beside; int32 index of each token.
          position_BL3: float32 (time position, row, column).
          segment_BL: int32 segment of each token, 0 for padding.
          extent_BL3: float32 largest position of each token's segment, at least 1; used by `place_features` alone.
          text_BKE, text_segment_BK: Text features, and their int32 segments, 0 for padding or a dropped caption.
          given_BLC: Patches of what each token is given besides, in Wan a mask and a latent; as `given_channels` says.
          image_BME, image_segment_BM: Tokens of given images, and their int32 segments, in order; None: no images.
          parts: Which tokens are of clips beside, whose S A levels are the last; None: none are.
          reused: What may take the place of the blocks.
          kept, keeps_keys: Keys of blind clips beside that are in no other array; whether all tokens' are returned.
        """
        sight = self._sight(levels_BG, segment_BL, parts)
        level_BGD, modulation, text_BKD = self._conditions(levels_BG, text_BKE, text_segment_BK, sight)
        x = self.patch_embedding(self._with_given(tokens_BLP, given_BLC))
        x = self._with_place(x, position_BL3 / extent_BL3, text_BKE, text_segment_BK, sight)
        x = self._with_roles(x, parts, segment_BL)
        context = Context(
            modulation_BG6D=modulation,
            level_BL=level_BL,
            rotation=rope.rotations(position_BL3, self.config.width // self.config.heads, self.config.rope_theta),
            sight=sight,
            text_BKD=text_BKD,
            text_segment_BK=text_segment_BK,
            beside=self._beside(text_BKE, text_segment_BK, sight, image_BME, image_segment_BM),
        )
        done, keys = self._keeping(x, context) if keeps_keys else (self._through_blocks(x, context, reused, kept), None)
        return self._prediction(x, done, level_BGD, level_BL)._replace(keys=keys)

    def _sight(self, levels_BG: jax.Array, segment_BL: jax.Array, parts: Parts | None) -> Sight:
        """Returns what each token sees: all of its segment, or of blind clips beside themselves alone."""
        if parts is None:
            return Sight(segments=levels_BG.shape[1] // 2, segment_BL=segment_BL, alone=None)
        alone = alone_in(parts, segment_BL) if self.blind else None
        return Sight(segments=parts.role_BSA.shape[1], segment_BL=segment_BL, alone=alone)

    def _conditions(
        self, levels_BG: jax.Array, text_BKE: jax.Array, text_segment_BK: jax.Array, sight: Sight
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns what `ConditionEmbedder` does; levels of clips beside that see no text are not told of it."""
        told = levels_BG.shape[1] if sight.alone is None else 2 * sight.segments
        return self.condition_embedder(levels_BG, text_BKE, text_segment_BK, sight.segments, told=told)

    def _through_blocks(
        self, x: jax.Array, context: Context, reused: Reused | None, kept: KeptKeys | None
    ) -> jax.Array:
        def blocks() -> jax.Array:
            if kept is None:
                return scan_blocks(self.blocks, x, lambda block, x: block(x, context), remat=self.config.remat)

            segment_BM = kept.segment_BM
            return map_blocks(
                self.blocks,
                x,
                (kept.key_ZBMNH, kept.value_ZBMNH),
                lambda block, x, keys: (block(x, context, further=(*keys, segment_BM)), None),
            )[0]

        return blocks() if reused is None else jax.lax.cond(reused.now, lambda: x + reused.added_BLD, blocks)

    def _keeping(self, x: jax.Array, context: Context) -> tuple[jax.Array, KeptKeys]:
        """Returns what the blocks made of x, and their keys."""
        done, (key, value) = map_blocks(self.blocks, x, None, lambda block, x, _: block.with_keys(x, context))
        return done, KeptKeys(key, value, context.sight.segment_BL)

    def _prediction(self, x: jax.Array, done: jax.Array, level_BGD: jax.Array, level_BL: jax.Array) -> Prediction:
        """Returns the prediction of what the blocks made of x."""
        shift, scale = (gather_level(level_BGD + self.modulation[...][i], level_BL).astype(x.dtype) for i in range(2))
        output_BLD = (layer_norm(done) * (1 + scale) + shift).astype(x.dtype)
        return Prediction(self.proj_out(output_BLD).astype(jnp.float32), done - x)

    def _with_place(
        self, x: jax.Array, place_BL3: jax.Array, text_BKE: jax.Array, text_segment_BK: jax.Array, sight: Sight
    ) -> jax.Array:
        """Returns the tokens, told their place in [0, 1] where they are."""
        if self.place is None:
            return x
        # What sees no text is of a segment more, which has none.
        ids_BL, ids = sight.reading(sight.segments + 1), sight.segments + (sight.alone is not None)
        return x + self.place(place_BL3, text_BKE, text_segment_BK, ids_BL, ids).astype(x.dtype)

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
        sight: Sight,
        image_BME: jax.Array | None,
        image_segment_BM: jax.Array | None,
    ) -> Beside:
        """Returns what attention to the text sees besides the text."""
        embedder, padding, image = self.condition_embedder, None, None
        if (pad_to := self.config.text_pad_to) is not None:
            table_BS = log_text_padding(text_segment_BK, sight.segments, pad_to)
            padding = Padding(
                zero_11D=embedder.of_text(jnp.zeros((1, 1, text_BKE.shape[-1]), text_BKE.dtype)),
                log_count_BL=gather_level(table_BS[..., None], sight.reading())[..., 0],
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
