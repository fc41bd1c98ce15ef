"""The text-to-video model: a text encoder and the diffusion transformer, over packed rows.

Shapes: B rows, L tokens, S segments, G = 2 S noise levels, K text tokens, Q bytes of a text token, P patch width.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from sora_jax.diffusion import known
from sora_jax.models.text.bytes import ByteEncoder, TextConfig
from sora_jax.models.transformer import Prediction, Reused, Transformer, TransformerConfig

Pack = dict[str, jax.Array]


class TextToVideo(nnx.Module):
    """The text encoder and the transformer, trained together."""

    def __init__(
        self,
        transformer: TransformerConfig,
        text: TextConfig,
        *,
        patch_width: int,
        bytes_per_token: int,
        rngs: nnx.Rngs,
    ):
        self.text = ByteEncoder(text, bytes_per_token=bytes_per_token, remat=transformer.remat, rngs=rngs)
        self.transformer = Transformer(transformer, patch_width=patch_width, text_dim=text.width, rngs=rngs)

    @jax.named_scope("text_encoder")
    def encode_text(self, pack: Pack, dtype: jnp.dtype) -> jax.Array:
        """Returns text_BKE of a pack's captions."""
        return self.text(pack["text_BKQ"], pack["text_segment_BK"], pack["text_position_BK"], dtype)

    @jax.named_scope("transformer")
    def predict(
        self,
        tokens_BLP: jax.Array,
        pack: Pack,
        *,
        levels_BG: jax.Array,
        level_BL: jax.Array,
        text_BKE: jax.Array,
        text_segment_BK: jax.Array,
        reused: Reused | None = None,
    ) -> Prediction:
        """Returns the prediction for noisy tokens in the layout of `pack`.

        `text_segment_BK` may differ from the pack's: 0 hides a text token. `reused` may take the place of the blocks.
        """
        return self.transformer(
            tokens_BLP.astype(text_BKE.dtype),
            levels_BG=levels_BG,
            level_BL=level_BL,
            position_BL3=pack["position_BL3"],
            segment_BL=pack["segment_BL"],
            extent_BL3=extents(pack),
            text_BKE=text_BKE,
            text_segment_BK=text_segment_BK,
            reused=reused,
        )


def extents(pack: Pack) -> jax.Array:
    """Returns the largest position of each token's segment along (time, row, column), at least 1; (B, L, 3)."""
    last_BS3 = (pack["grid_BS3"] - 1).astype(jnp.float32)
    time_BS = last_BS3[..., :1] * pack["time_step_BS"][..., None]
    extent_BS3 = jnp.concatenate([time_BS, last_BS3[..., 1:]], axis=-1)
    extent_BS3 = jnp.where(extent_BS3 > 0, extent_BS3, 1.0)
    return known.per_token(extent_BS3, pack["segment_BL"])


def without_caption(pack: Pack, dropped_BS: jax.Array) -> jax.Array:
    """Returns text_segment_BK in which dropped segments keep their start token alone, the form of an empty caption."""
    dropped_BK = known.per_token(dropped_BS, pack["text_segment_BK"]) & (pack["text_position_BK"] > 0)
    return jnp.where(dropped_BK, 0, pack["text_segment_BK"])
