"""The diffusion objective over a pack: noise, known tokens, caption dropout, prediction, loss.

Shapes: B rows, L tokens, S segments, G = 2 S noise levels, K text tokens, Q bytes of a text token, P patch width.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from sora_jax.core.errors import UserError
from sora_jax.core.mean import Mean
from sora_jax.diffusion import known, noise_levels, path
from sora_jax.models.text.bytes import ByteEncoder, TextConfig
from sora_jax.models.transformer import Prediction, Reused, Transformer, TransformerConfig

Pack = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """How the transformer is trained.

    Attributes:
      path: What it outputs and how that is judged.
      noise: Which noise levels it sees.
      caption_dropout: Share of segments that see no caption, for guidance; in [0, 1).
    """

    path: path.PathConfig
    noise: noise_levels.NoiseConfig
    caption_dropout: float

    def __post_init__(self):
        if not 0 <= self.caption_dropout < 1:
            raise UserError(f"caption_dropout {self.caption_dropout} is outside [0, 1); 0.1 is usual")


class Generator(nnx.Module):
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

    def encode_text(self, pack: Pack, dtype: jnp.dtype) -> jax.Array:
        """Returns text_BKE of a pack's captions."""
        return self.text(pack["text_BKQ"], pack["text_segment_BK"], pack["text_position_BK"], dtype)

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


def make_objective(
    config: DiffusionConfig, shares: known.KnownConfig, *, dtype: jnp.dtype
) -> Callable[[Generator, Pack, jax.Array], tuple[Mean, dict[str, Mean]]]:
    """Returns the objective `(generator, pack, key) -> (loss, metrics)`.

    `shares` says which tokens are given, how often. The loss is the mean over all tokens to be predicted of
    `path.token_loss`, so a long clip weighs by its tokens.
    `dtype` is that of the computation; noise, loss and levels are float32.
    """

    def objective(model: Generator, pack: Pack, key: jax.Array) -> tuple[Mean, dict[str, Mean]]:
        noise_key, level_key, known_key, known_level_key, drop_key = jax.random.split(key, 5)
        grid_BS3, segment_BL = pack["grid_BS3"], pack["segment_BL"]
        segments = grid_BS3.shape[0], grid_BS3.shape[1]
        sigma_BS = noise_levels.draw(level_key, known.count_tokens(segment_BL, segments[1]), config.noise)
        known_BL = known.draw_known(
            known_key,
            position_BL3=pack["position_BL3"],
            segment_BL=segment_BL,
            grid_BS3=grid_BS3,
            time_step_BS=pack["time_step_BS"],
            config=shares,
        )
        clean_BLP = pack["tokens_BLP"].astype(jnp.float32)
        noise_BLP = jax.random.normal(noise_key, clean_BLP.shape)
        given = known.condition(
            clean_BLP,
            noise_BLP=noise_BLP,
            known_BL=known_BL,
            segment_BL=segment_BL,
            sigma_BS=sigma_BS,
            known_sigma_BS=known.draw_known_level(known_level_key, segments, shares),
        )
        dropped_BS = jax.random.bernoulli(drop_key, config.caption_dropout, segments)
        visible_BK = without_caption(pack, dropped_BS)
        prediction = model.predict(
            given.tokens_BLP,
            pack,
            levels_BG=given.levels_BG,
            level_BL=given.level_BL,
            # Encoded from what stays visible, so that a dropped caption leaks through nothing.
            text_BKE=model.encode_text({**pack, "text_segment_BK": visible_BK}, dtype),
            text_segment_BK=visible_BK,
        )
        sigma_BL = known.token_level(given.levels_BG, given.level_BL)
        loss_BL = path.token_loss(
            prediction.tokens_BLP, clean_BLP=clean_BLP, noise_BLP=noise_BLP, sigma_BL=sigma_BL, config=config.path
        )
        wanted_BL = ((segment_BL > 0) & ~known_BL).astype(jnp.float32)
        return Mean.of(loss_BL, wanted_BL), {"fill": Mean.of((segment_BL > 0).astype(jnp.float32))}

    return objective
