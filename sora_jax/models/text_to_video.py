"""The text-to-video model: a text encoder and the diffusion transformer, over packed rows.

Shapes: B rows, L tokens, S segments, G noise levels, K text tokens, J those of the empty text, E width of
the text encoder, P patch width.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from sora_jax.core.rng import Rngs
from sora_jax.data.packing.packs import empty_name, texts_of
from sora_jax.diffusion import known
from sora_jax.models.block import KeptKeys
from sora_jax.models.roles import parts_of
from sora_jax.models.text.encoder import TextEncoder
from sora_jax.models.transformer import Prediction, Reused, Transformer
from sora_jax.models.transformer_config import TransformerConfig

Pack = dict[str, jax.Array]


class TextToVideo(nnx.Module):
    """The text encoder, or what of it is trained, and the transformer."""

    def __init__(
        self,
        transformer: TransformerConfig,
        text: TextEncoder,
        *,
        patch_width: int,
        rngs: Rngs,
        roles: bool = False,
        blind: bool = False,
    ):
        """`roles` says whether clips may be given beside the one that is made, `blind` whether they see none else."""
        self.text = text.module(remat=transformer.remat, rngs=rngs)
        self.transformer = Transformer(
            transformer, patch_width=patch_width, text_dim=text.width, rngs=rngs, roles=roles, blind=blind
        )

    @jax.named_scope("text_encoder")
    def encode_text(self, pack: Pack, dtype: jnp.dtype) -> jax.Array:
        """Returns text_BKE of a pack's captions."""
        return self.text(pack, pack["text_segment_BK"], dtype)

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
        kept: KeptKeys | None = None,
        keeps_keys: bool = False,
    ) -> Prediction:
        """Returns the prediction for noisy tokens in the layout of `pack`.

        `text_segment_BK` may differ from the pack's: 0 hides a text token. `reused` may take the place of the blocks.
        `kept` and `keeps_keys` are as of `Transformer`.
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
            given_BLC=pack.get("given_BLC"),
            image_BME=pack.get("image_BME"),
            image_segment_BM=pack.get("image_segment_BM"),
            parts=parts_of(pack),
            reused=reused,
            kept=kept,
            keeps_keys=keeps_keys,
        )


def extents(pack: Pack) -> jax.Array:
    """Returns the largest position of each token's segment along (time, row, column), at least 1; (B, L, 3)."""
    last_BS3 = (pack["grid_BS3"] - 1).astype(jnp.float32)
    time_BS = last_BS3[..., :1] * pack["time_step_BS"][..., None]
    extent_BS3 = jnp.concatenate([time_BS, last_BS3[..., 1:]], axis=-1)
    extent_BS3 = jnp.where(extent_BS3 > 0, extent_BS3, 1.0)
    return known.per_token(extent_BS3, pack["segment_BL"])


def without_caption(pack: Pack, dropped_BS: jax.Array) -> Pack:
    """Returns the pack with the empty text in the place of dropped segments' captions; what is left over is hidden.

    Where shards store nothing of texts, each begins as the empty one, so hiding the rest is enough. Stored arrays know
    their whole text from the first token on: those that stay are replaced by those of the empty text.
    """
    position_BK = pack["text_position_BK"]
    dropped_BK = known.per_token(dropped_BS, pack["text_segment_BK"])
    empty = {name: pack[empty_name(name)] for name in texts_of(pack) if empty_name(name) in pack}
    length = next(iter(empty.values())).shape[1] if empty else 1
    shown = {**pack, "text_segment_BK": jnp.where(dropped_BK & (position_BK >= length), 0, pack["text_segment_BK"])}
    for name, empty_BJE in empty.items():
        place_BK1 = jnp.minimum(position_BK, length - 1)[..., None]
        shown[name] = jnp.where(dropped_BK[..., None], jnp.take_along_axis(empty_BJE, place_BK1, axis=1), pack[name])
    return shown
