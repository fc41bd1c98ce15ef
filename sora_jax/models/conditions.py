"""What the transformer is told besides its tokens: noise levels, text, and the tokens of a given image.

Shapes: B rows, S segments, G = 2 S noise levels, K text tokens, M image tokens, D width, E width of the text or of the
image's encoder.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from sora_jax.core.rng import Rngs
from sora_jax.nn.activation import gelu
from sora_jax.nn.embed import sinusoid
from sora_jax.nn.flash import NOTHING
from sora_jax.nn.linear import Linear
from sora_jax.nn.norm import LayerNorm

# Of the norms around the image's tokens; Wan's others have 1e-6.
_IMAGE_EPS = 1e-5


class ConditionEmbedder(nnx.Module):
    """Noise levels -> modulation of the blocks and of the output; text and image features -> the model's width."""

    def __init__(
        self,
        width: int,
        *,
        frequency_dim: int,
        text_dim: int,
        pooled_text: bool,
        image_dim: int | None,
        image_positions: int | None,
        rngs: Rngs,
    ):
        self.time_in = Linear(frequency_dim, width, axes=(None, "embed"), rngs=rngs)
        self.time_out = Linear(width, width, axes=("embed", None), rngs=rngs)
        # Zero, so that the gates of self-attention and feed-forward start shut (DiT, arXiv 2212.09748, section 3.2).
        self.time_proj = Linear(width, 6 * width, axes=("embed", None), std=0.0, rngs=rngs)
        self.text_in = Linear(text_dim, width, axes=(None, "embed"), rngs=rngs)
        self.text_out = Linear(width, width, axes=("embed", None), rngs=rngs)
        self.pooled = Linear(text_dim, width, axes=(None, "embed"), rngs=rngs) if pooled_text else None
        image = None
        if image_dim is not None:
            image = ImageEmbedder(width, image_dim=image_dim, positions=image_positions, rngs=rngs)
        self.image = image
        self.frequency_dim = frequency_dim

    def of_levels(self, levels: jax.Array) -> jax.Array:
        """Returns the features of noise levels alone, (..., D) float32."""
        # Wan counts noise levels in thousandths.
        return self.time_out(jax.nn.silu(self.time_in(sinusoid(levels * 1000.0, self.frequency_dim))))

    def of_text(self, text_BKE: jax.Array) -> jax.Array:
        """Returns text_BKD, in the dtype of the text."""
        return self.text_out(gelu(self.text_in(text_BKE)))

    @jax.named_scope("conditions")
    def __call__(
        self, levels_BG: jax.Array, text_BKE: jax.Array, text_segment_BK: jax.Array, segments: int, *, told: int
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns (level_BGD, modulation_BG6D, text_BKD), the first two float32; G is a multiple of `segments`, S.

        The first `told` levels, a multiple of S, are told the pooled text.
        """
        level_BGD = self.of_levels(levels_BG)
        if self.pooled is not None:
            pooled_BSE = pool_text(text_BKE, text_segment_BK, segments)
            pooled_BSD = self.pooled(pooled_BSE)
            pooled_BGD = jnp.concatenate([pooled_BSD] * (told // segments), axis=1)
            if told < levels_BG.shape[1]:
                pooled_BGD = jnp.pad(pooled_BGD, ((0, 0), (0, levels_BG.shape[1] - told), (0, 0)))
            level_BGD = level_BGD + pooled_BGD
        modulation = self.time_proj(jax.nn.silu(level_BGD))
        return level_BGD, modulation.reshape(*level_BGD.shape[:2], 6, -1), self.of_text(text_BKE)


class ImageEmbedder(nnx.Module):
    """Tokens of an image from its encoder -> the model's width."""

    def __init__(self, width: int, *, image_dim: int, positions: int | None, rngs: Rngs):
        """`positions` are the tokens of a segment that have an embedding each, of two images; None: they have none."""
        self.norm_in = LayerNorm(image_dim, eps=_IMAGE_EPS)
        self.proj_in = Linear(image_dim, image_dim, axes=(None, None), rngs=rngs)
        self.proj_out = Linear(image_dim, width, axes=(None, "embed"), rngs=rngs)
        self.norm_out = LayerNorm(width, eps=_IMAGE_EPS)
        table = None
        if positions is not None:
            table = nnx.Param(jnp.zeros((positions, image_dim), jnp.float32), axes=(None, None))
        self.positions = table

    @jax.named_scope("image")
    def __call__(self, image_BME: jax.Array, image_segment_BM: jax.Array) -> jax.Array:
        """Returns image_BMD in the dtype of the tokens; those of a segment follow one another."""
        if self.positions is not None:
            table = self.positions[...].astype(image_BME.dtype)
            image_BME = image_BME + table[jnp.minimum(_place_in_segment(image_segment_BM), len(table) - 1)]
        # The exact one, as in CLIP; that of the other feed-forwards is its approximation by tanh.
        hidden = jax.nn.gelu(self.proj_in(self.norm_in(image_BME)), approximate=False)
        return self.norm_out(self.proj_out(hidden))


def _place_in_segment(segment_BM: jax.Array) -> jax.Array:
    """Returns how many slots lie between each and the first of its run of equal ids, int32 (B, M)."""
    index = jnp.arange(segment_BM.shape[1], dtype=jnp.int32)
    begins = jnp.pad(segment_BM[:, 1:] != segment_BM[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return index - jax.lax.cummax(jnp.where(begins, index, 0), axis=1)


def pool_text(text_BKE: jax.Array, text_segment_BK: jax.Array, segments: int) -> jax.Array:
    """Returns the sum of each segment's text tokens over the root of their number, (B, S, E) float32.

    A mean would make one word's share of the vector smaller the longer the caption. Zeros where a segment has no text.
    """
    member_BSK = _members(text_segment_BK, segments).astype(jnp.float32)
    total = jnp.einsum("BSK,BKE->BSE", member_BSK, text_BKE.astype(jnp.float32))
    return total * jax.lax.rsqrt(jnp.maximum(jnp.sum(member_BSK, axis=-1, keepdims=True), 1.0))


def log_text_padding(text_segment_BK: jax.Array, segments: int, pad_to: int) -> jax.Array:
    """Returns the logarithm of how many tokens each segment's text lacks of `pad_to`, (B, 1 + S) float32.

    `NOTHING` where it lacks none, and for segment 0, which is padding of the row and has no text.
    """
    text_BS = jnp.sum(_members(text_segment_BK, segments), axis=-1, dtype=jnp.int32)
    lacking_BS = jnp.maximum(pad_to - text_BS, 0).astype(jnp.float32)
    logarithm_BS = jnp.where(lacking_BS > 0, jnp.log(jnp.maximum(lacking_BS, 1.0)), NOTHING)
    return jnp.pad(logarithm_BS, ((0, 0), (1, 0)), constant_values=NOTHING)


def _members(text_segment_BK: jax.Array, segments: int) -> jax.Array:
    """Returns whether each text token is of each segment, bool (B, S, K)."""
    return text_segment_BK[:, None, :] == jnp.arange(1, segments + 1)[:, None]
