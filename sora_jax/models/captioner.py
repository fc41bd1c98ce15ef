"""A captioner over packed rows of latents: it describes clips, reads texts, and says how well the two agree.

CoCa's parts (arXiv 2205.01917, section 3) over the tokens of clips of any size: an encoder, poolers, and a causal text
decoder in two halves, of which the first sees the text alone. VideoCoCa (arXiv 2212.04979) reads the frames of a clip
so, one by one or all together.

Shapes: B rows, L tokens, K text tokens with an END behind each caption, S segments, Q slots of a text token, V symbols,
P patch width, D width, E width of embeddings, R texts of a row being written, M their text tokens.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from sora_jax.core.errors import UserError
from sora_jax.core.rng import Rngs
from sora_jax.core.sharding import constrain
from sora_jax.data.caption_tokens import SLOT_VALUES
from sora_jax.data.tokens import BYTES_PER_TOKEN
from sora_jax.models.caption_blocks import BlockShape, ClipBlock, ClipTokens, Keys, Pooler, TextHalfBlock
from sora_jax.models.caption_tokens import CaptionTexts, asked_slots, is_end, is_start
from sora_jax.models.place import PLACE_DIM, place_features
from sora_jax.models.speller import Speller
from sora_jax.models.text.bytes import spelled
from sora_jax.models.text_to_video import Pack, extents
from sora_jax.nn import rope
from sora_jax.nn.attention import check_backend
from sora_jax.nn.embed import sinusoid
from sora_jax.nn.linear import Linear, truncated_normal
from sora_jax.nn.norm import LayerNorm
from sora_jax.nn.stack import REMAT_POLICIES, map_blocks, scan_blocks, stack_blocks

# How far the encoder's attention goes.
CLIP_ENCODERS = ("clip", "frame")
TIME_DIM = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionerConfig:
    """Shape of the captioner.

    Attributes:
      width: D, of encoder and text decoder; a multiple of `heads`.
      depth: Blocks of the encoder.
      heads: Attention heads.
      mlp_width: Hidden width of the feed-forwards.
      unimodal: Blocks of the half of the text decoder that sees the text alone.
      multimodal: Blocks of the half that sees the clip as well.
      encoder: One of `CLIP_ENCODERS`: whether tokens of the encoder see their clip or their latent frame of it.
      generative_queries: Vectors of a clip that the text decoder sees, gathered from its tokens; 0: all its tokens.
      local_width: W, of the model that writes the bytes of a token.
      embedding: E, of what clips and texts are compared by.
      rope_theta: Base of the rotary wavelengths of the encoder.
      attention: A key of `nn.attention.BACKENDS`, or "auto".
      exchange: How keys that are spread over devices come to the queries, one of `nn.attention.EXCHANGES`.
      remat: What the backward pass keeps, a key of `nn.stack.REMAT_POLICIES`.
    """

    width: int
    depth: int
    heads: int
    mlp_width: int
    unimodal: int
    multimodal: int
    encoder: str
    generative_queries: int
    local_width: int
    embedding: int
    rope_theta: float
    attention: str
    exchange: str
    remat: str

    def __post_init__(self):
        if self.width % self.heads or self.width // self.heads % 2:
            raise UserError(
                f"captioner: width {self.width} over {self.heads} heads is not an even head width; "
                f"nearest: width {max(1, round(self.width / self.heads / 2)) * 2 * self.heads}"
            )
        if min(self.depth, self.unimodal, self.multimodal) < 1:
            raise UserError(
                f"captioner: depth {self.depth}, unimodal {self.unimodal} and multimodal {self.multimodal} must each "
                "be at least 1"
            )
        if self.encoder not in CLIP_ENCODERS:
            raise UserError(f"captioner: encoder {self.encoder!r} is none of {', '.join(CLIP_ENCODERS)}")
        if self.remat not in REMAT_POLICIES:
            raise UserError(f"captioner: remat {self.remat!r} is none of {', '.join(REMAT_POLICIES)}")
        check_backend(self.attention, self.exchange)

    @property
    def blocks(self) -> BlockShape:
        """What all its blocks have in common."""
        return BlockShape(self.width, self.heads, self.mlp_width, self.attention, self.exchange)


class ClipFeatures(NamedTuple):
    """What the encoder makes of the clips of rows."""

    clip: ClipTokens  # what the text decoder sees: tokens, or what generative queries gathered
    embedding_BSE: jax.Array  # float32 of length 1; of no meaning where a segment has no tokens


class CaptionFeatures(NamedTuple):
    """What the unimodal half makes of captions."""

    states_BKD: jax.Array
    embedding_BSE: jax.Array  # float32 of length 1; of no meaning where a segment has no END


class CaptionScores(NamedTuple):
    """How likely captions are; of the slots of each token, given all that is before it."""

    log_probability_BKQ: jax.Array  # float32, natural; 0 where nothing is asked
    asked_BKQ: jax.Array  # bool: slots that say something, of tokens behind START
    best_BKQ: jax.Array  # bool: whether what stands there is the likeliest symbol


class Writing(NamedTuple):
    """Keys and values of R texts of each row that are being written in step, and of their clips.

    Those of texts are (layers, B, R, N, H, M), those of clips (layers, B, N, H, L): so products with few queries read
    them without laying them out anew.
    """

    unimodal: Keys
    multimodal: Keys
    clip: Keys
    clip_segment_BL: jax.Array

    def with_token(self, unimodal: Keys, multimodal: Keys, position: jax.Array) -> "Writing":
        """Returns it with keys and values of the tokens at `position`, (layers, B, R, N, H)."""

        def put(kept: Keys, fresh: Keys) -> Keys:
            return jax.tree.map(lambda o, n: jax.lax.dynamic_update_index_in_dim(o, n, position, axis=5), kept, fresh)

        return self._replace(unimodal=put(self.unimodal, unimodal), multimodal=put(self.multimodal, multimodal))

    def taken(self, index_BR: jax.Array) -> "Writing":
        """Returns the texts number `index_BR`, int32, of each row in the place of those that there are."""
        index = index_BR[None, :, :, None, None, None]

        def take(keys: Keys) -> Keys:
            return jnp.take_along_axis(keys[0], index, axis=2), jnp.take_along_axis(keys[1], index, axis=2)

        return self._replace(unimodal=take(self.unimodal), multimodal=take(self.multimodal))


class Captioner(nnx.Module):
    """Latent tokens of clips, and texts about them."""

    def __init__(self, config: CaptionerConfig, *, patch_width: int, rngs: Rngs):
        width, shape = config.width, config.blocks
        self.patch_embedding = Linear(patch_width, width, axes=("patch", "embed"), rngs=rngs)
        # Poolers and the text decoder are blind to order, and rotary positions are of no use to them.
        self.place = Linear(PLACE_DIM + TIME_DIM, width, axes=("patch", "embed"), rngs=rngs)
        self.blocks = stack_blocks(lambda r: ClipBlock(shape, rngs=r), config.depth, rngs)
        self.norm_clip = LayerNorm(width)
        queries = config.generative_queries
        self.generative = Pooler(shape, queries=queries, rngs=rngs) if queries else None
        self.contrastive = Pooler(shape, queries=1, rngs=rngs)
        self.clip_out = EmbeddingHead(width, config.embedding, rngs=rngs)

        table = truncated_normal(rngs.params(), (BYTES_PER_TOKEN, SLOT_VALUES, width), BYTES_PER_TOKEN**-0.5)
        self.table = nnx.Param(table, axes=(None, "vocabulary", "embed"))
        self.start = nnx.Param(truncated_normal(rngs.params(), (width,), 1.0), axes=("embed",))
        self.unimodal = stack_blocks(lambda r: TextHalfBlock(shape, multimodal=False, rngs=r), config.unimodal, rngs)
        self.multimodal = stack_blocks(lambda r: TextHalfBlock(shape, multimodal=True, rngs=r), config.multimodal, rngs)
        self.norm_text = LayerNorm(width)
        self.text_out = EmbeddingHead(width, config.embedding, rngs=rngs)
        self.speller = Speller(width, local_width=config.local_width, rngs=rngs)
        # Learned parts of the contrastive loss, whose beginnings its config says: they start at zero.
        self.log_scale = nnx.Param(jnp.zeros((1,), jnp.float32), axes=("norm",))
        self.offset = nnx.Param(jnp.zeros((1,), jnp.float32), axes=("norm",))
        self.config = config

    @jax.named_scope("clip_encoder")
    def encode(self, pack: Pack, dtype: jnp.dtype) -> ClipFeatures:
        """Returns what is in the clips of a pack; `dtype` is that of the computation and of its tokens.

        Of the pack: tokens_BLP, position_BL3, segment_BL, grid_BS3 and time_step_BS.
        """
        config, segment_BL, segments = self.config, pack["segment_BL"], pack["grid_BS3"].shape[1]
        position_BL3 = pack["position_BL3"]
        place = place_features(position_BL3 / extents(pack)), sinusoid(position_BL3[..., 0], TIME_DIM)
        x = self.patch_embedding(pack["tokens_BLP"].astype(dtype)) + self.place(jnp.concatenate(place, axis=-1))
        x = constrain(x.astype(dtype), "batch", "length", "features")
        rotation = rope.rotations(position_BL3, config.width // config.heads, config.rope_theta)
        ids_BL, several = segment_BL, segments
        if config.encoder == "frame":
            ids_BL, several = _frame_ids(segment_BL, position_BL3[..., 0]), None
        x = scan_blocks(
            self.blocks, x, lambda block, x: block(x, ids_BL, rotation, segments=several), remat=config.remat
        )
        clip = ClipTokens(self.norm_clip(x), segment_BL)
        if self.generative is not None:
            clip = self.generative(clip, segments)
        # In a cascade the contrastive query sees what the generative ones gathered.
        pooled_BSD = self.contrastive(clip, segments).tokens_BLD
        return ClipFeatures(clip, self.clip_out(pooled_BSD))

    @jax.named_scope("text_reader")
    def read(self, texts: CaptionTexts, segments: int, dtype: jnp.dtype) -> CaptionFeatures:
        """Returns what captions say, without a clip."""
        segment_BK = texts.segment_BK
        x = constrain(self._embedded(texts.text_BKQ, texts.position_BK, dtype), "batch", "text", "features")
        x = scan_blocks(
            self.unimodal,
            x,
            lambda block, x: block(x, segment_BK, None, segments=segments),
            remat=self.config.remat,
        )
        ends_BSK = (segment_BK[:, None] == jnp.arange(1, segments + 1)[:, None]) & is_end(texts.text_BKQ)[:, None]
        end_BSD = jnp.einsum("BSK,BKD->BSD", ends_BSK.astype(jnp.float32), x.astype(jnp.float32), precision="highest")
        return CaptionFeatures(x, self.text_out(end_BSD))

    @jax.named_scope("text_decoder")
    def score(self, texts: CaptionTexts, states_BKD: jax.Array, features: ClipFeatures) -> CaptionScores:
        """Returns how likely captions are, given the clips of their segments; of one without tokens, given nothing.

        `states_BKD` is what `read` made of the texts.
        """
        segment_BK, segments = texts.segment_BK, features.embedding_BSE.shape[1]
        x = scan_blocks(
            self.multimodal,
            states_BKD,
            lambda block, x: block(x, segment_BK, features.clip, segments=segments),
            remat=self.config.remat,
        )
        # What stands at k is foretold at k - 1.
        wanted_BKQ = texts.text_BKQ[:, 1:]
        logits_BKQV = self.speller(self.norm_text(x)[:, :-1], wanted_BKQ)
        ones_BKQV = jax.nn.one_hot(wanted_BKQ, SLOT_VALUES)
        found_BKQ = jnp.sum(logits_BKQV * ones_BKQV, axis=-1) - jax.nn.logsumexp(logits_BKQV, axis=-1)
        follows_BK = (segment_BK[:, 1:] == segment_BK[:, :-1]) & (segment_BK[:, 1:] > 0)
        asked_BKQ = asked_slots(wanted_BKQ) & follows_BK[..., None]
        best_BKQ = jnp.argmax(logits_BKQV, axis=-1) == wanted_BKQ
        first = ((0, 0), (1, 0), (0, 0))
        return CaptionScores(
            jnp.pad(jnp.where(asked_BKQ, found_BKQ, 0.0), first), jnp.pad(asked_BKQ, first), jnp.pad(best_BKQ, first)
        )

    def begin(self, features: ClipFeatures, *, texts: int, max_tokens: int) -> Writing:
        """Returns R = `texts` texts for each row, with nothing written, of at most M = `max_tokens` tokens with START.

        To which segment each belongs is said at every step.
        """
        config, tokens_BLD = self.config, features.clip.tokens_BLD

        def empty(layers: int) -> Keys:
            shape = layers, len(tokens_BLD), texts, config.heads, config.width // config.heads, max_tokens
            return jnp.zeros(shape, tokens_BLD.dtype), jnp.zeros(shape, tokens_BLD.dtype)

        def of_clip(block: TextHalfBlock, x: jax.Array, _: None) -> tuple[jax.Array, Keys]:
            key, value = block.clip_keys(x)
            return x, (jnp.moveaxis(key, 1, -1), jnp.moveaxis(value, 1, -1))

        _, keys = map_blocks(self.multimodal, tokens_BLD, None, of_clip)
        return Writing(empty(config.unimodal), empty(config.multimodal), keys, features.clip.segment_BL)

    @jax.named_scope("text_step")
    def step(
        self, writing: Writing, text_BRQ: jax.Array, segment_BR: jax.Array, position: jax.Array
    ) -> tuple[jax.Array, Writing]:
        """Returns state_BRD, of which `speller` writes the token at `position` + 1, and what is to be kept.

        Args:
          writing: Of `begin`, or of the step before.
          text_BRQ: int32 tokens at `position`, the same of all texts: START at 0.
          segment_BR: int32 segment of each text, whose clip it sees; 0: none.
          position: int32 scalar, from 0 on and below M, without a gap.
        """
        position_BR = jnp.broadcast_to(position, segment_BR.shape)
        x = self._embedded(text_BRQ, position_BR, writing.unimodal[0].dtype)
        x, unimodal = map_blocks(
            self.unimodal, x, writing.unimodal, lambda block, x, kept: block.step(x, kept, position, segment_BR, None)
        )

        def multimodal_step(block: TextHalfBlock, x: jax.Array, kept: tuple[Keys, Keys]) -> tuple[jax.Array, Keys]:
            own, clip = kept
            return block.step(x, own, position, segment_BR, (clip, writing.clip_segment_BL))

        x, multimodal = map_blocks(self.multimodal, x, (writing.multimodal, writing.clip), multimodal_step)
        # What is kept is overwritten in its place, and not copied, once all blocks have read it.
        x, unimodal, multimodal = jax.lax.optimization_barrier((x, unimodal, multimodal))
        return self.norm_text(x), writing.with_token(unimodal, multimodal, position)

    def _embedded(self, text_BKQ: jax.Array, position_BK: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """Returns the text decoder's inputs, (B, K, D)."""
        x = spelled(self.table[...], text_BKQ)
        x = jnp.where(is_start(text_BKQ)[..., None], self.start[...], x)
        return (x + sinusoid(position_BK, x.shape[-1], max_period=1_000.0)).astype(dtype)


class EmbeddingHead(nnx.Module):
    """What clips and texts are compared by."""

    def __init__(self, width: int, embedding: int, *, rngs: Rngs):
        self.norm = LayerNorm(width)
        self.to_embedding = Linear(width, embedding, axes=("embed", None), rngs=rngs)

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        """Returns vectors of length 1, (B, S, E) float32."""
        found_BSE = self.to_embedding(self.norm(x_BSD)).astype(jnp.float32)
        return found_BSE * jax.lax.rsqrt(jnp.sum(jnp.square(found_BSE), axis=-1, keepdims=True) + 1e-12)


def _frame_ids(segment_BL: jax.Array, time_BL: jax.Array) -> jax.Array:
    """Returns another id for each latent frame of a row, int32 from 1 on; 0 where padding. Tokens of one adjoin."""
    begins = (segment_BL[:, 1:] != segment_BL[:, :-1]) | (time_BL[:, 1:] != time_BL[:, :-1])
    number_BL = 1 + jnp.cumsum(jnp.pad(begins, ((0, 0), (1, 0))).astype(jnp.int32), axis=1)
    return jnp.where(segment_BL > 0, number_BL, 0)
