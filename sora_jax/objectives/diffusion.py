"""The diffusion objective over a pack: noise, known tokens, caption dropout, prediction, loss.

Shapes: B rows, L tokens, S segments, G noise levels, A clips beside a segment at most, P patch width.
"""

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sora_jax.core.errors import UserError
from sora_jax.core.mean import Mean
from sora_jax.data.packing.packs import own_segments
from sora_jax.diffusion import known, noise_levels, path
from sora_jax.models.text_to_video import Pack, TextToVideo, without_caption


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """How the transformer is trained.

    Attributes:
      path: What it outputs and how that is judged.
      noise: Which noise levels it sees.
      caption_dropout: Share of segments that see no caption, for guidance; in [0, 1).
      loss_bands: Noise levels, rising, at which the loss is told apart in the metrics; None: it is not.
    """

    path: path.PathConfig
    noise: noise_levels.NoiseConfig
    caption_dropout: float
    loss_bands: tuple[float, ...] | None

    def __post_init__(self):
        if not 0 <= self.caption_dropout < 1:
            raise UserError(f"caption_dropout {self.caption_dropout} is outside [0, 1); 0.1 is usual")
        edges = (0.0, *(self.loss_bands or ()), 1.0)
        if any(low >= high for low, high in itertools.pairwise(edges)):
            raise UserError(
                f"loss_bands {self.loss_bands} must be levels between 0 and 1 that rise, such as (0.5, 0.9)"
            )


def make_objective(
    config: DiffusionConfig,
    shares: known.KnownConfig,
    *,
    dtype: jnp.dtype,
    noise_range: tuple[float, float] = (0.0, 1.0),
    context_levels: tuple[float, ...] | None = None,
) -> Callable[[TextToVideo, Pack, jax.Array], tuple[Mean, dict[str, Mean]]]:
    """Returns the objective `(generator, pack, key) -> (loss, metrics)`.

    `shares` says which tokens are given, how often. The loss is the mean over all tokens to be predicted of
    `path.token_loss`, so a long clip weighs by its tokens. `dtype` is that of the computation; noise, loss and levels
    are float32. Levels are drawn from `noise_range` alone; those of clips beside up to `context_levels`, by role.
    """

    def objective(model: TextToVideo, pack: Pack, key: jax.Array) -> tuple[Mean, dict[str, Mean]]:
        noise_key, level_key, known_key, known_level_key, drop_key = jax.random.split(key, 5)
        segment_BL, (rows, slots) = pack["segment_BL"], pack["time_step_BS"].shape
        sigma_BS = _draw_levels(level_key, pack, config, noise_range)
        known_BL = _draw_known(known_key, pack, shares)
        clean_BLP = pack["tokens_BLP"].astype(jnp.float32)
        noise_BLP = jax.random.normal(noise_key, clean_BLP.shape)
        given = known.condition(
            clean_BLP,
            noise_BLP=noise_BLP,
            known_BL=known_BL,
            segment_BL=segment_BL,
            sigma_BS=sigma_BS,
            known_sigma_BS=known.draw_known_level(known_level_key, (rows, slots), shares),
            **_draw_context(known_level_key, pack, context_levels),
        )
        shown = without_caption(pack, jax.random.bernoulli(drop_key, config.caption_dropout, (rows, slots)))
        prediction = model.predict(
            given.tokens_BLP,
            pack,
            levels_BG=given.levels_BG,
            level_BL=given.level_BL,
            # Encoded from what stays visible, so that a dropped caption leaks through nothing.
            text_BKE=model.encode_text(shown, dtype),
            text_segment_BK=shown["text_segment_BK"],
        )
        sigma_BL = known.token_level(given.levels_BG, given.level_BL)
        loss_BL = path.token_loss(
            prediction.tokens_BLP, clean_BLP=clean_BLP, noise_BLP=noise_BLP, sigma_BL=sigma_BL, config=config.path
        )
        wanted_BL = ((own_segments(pack) > 0) & ~known_BL).astype(jnp.float32)
        bands = _by_band(loss_BL, wanted_BL, sigma_BL, edges=config.loss_bands, noise_range=noise_range)
        return Mean.of(loss_BL, wanted_BL), {"fill": Mean.of((segment_BL > 0).astype(jnp.float32)), **bands}

    return objective


def _draw_levels(key: jax.Array, pack: Pack, config: DiffusionConfig, noise_range: tuple[float, float]) -> jax.Array:
    """Returns sigma_BS float32, the noise level of each segment."""
    tokens_BS = known.count_tokens(own_segments(pack), pack["grid_BS3"].shape[1])
    return noise_levels.draw(key, tokens_BS, config.noise, within=noise_range)


def _draw_known(key: jax.Array, pack: Pack, shares: known.KnownConfig) -> jax.Array:
    """Returns bool (B, L), which tokens of a pack are given."""
    return known.draw_known(
        key,
        position_BL3=pack["position_BL3"],
        segment_BL=own_segments(pack),
        grid_BS3=pack["grid_BS3"],
        time_step_BS=pack["time_step_BS"],
        config=shares,
    )


def _draw_context(key: jax.Array, pack: Pack, max_level_R: tuple[float, ...] | None) -> dict[str, jax.Array]:
    """Returns what `known.condition` is told of the clips beside, where a pack has some."""
    if "part_BL" not in pack:
        return {}
    assert max_level_R is not None, "clips beside, and no levels of them"
    drawn_BSA = known.draw_context_level(jax.random.fold_in(key, 1), pack["role_BSA"], max_level_R)
    return {"part_BL": pack["part_BL"], "context_sigma_BSA": drawn_BSA}


def _by_band(
    loss_BL: jax.Array,
    wanted_BL: jax.Array,
    sigma_BL: jax.Array,
    *,
    edges: tuple[float, ...] | None,
    noise_range: tuple[float, float],
) -> dict[str, Mean]:
    """Returns the loss of the tokens whose noise level is between neighbouring edges, of what `noise_range` draws.

    The loss of high levels is large and flat by nature: one mean over all says little of what is learnt.
    """
    if edges is None:
        return {}
    low, high = noise_range
    inside = [low, *(edge for edge in edges if low < edge < high), high]
    found = {}
    for below, above in itertools.pairwise(inside):
        # The highest level belongs to the last band.
        within_BL = (sigma_BL >= below) & ((sigma_BL < above) | (above == high))
        found[f"loss_{below:g}_{above:g}"] = Mean.of(loss_BL, wanted_BL * within_BL)
    return found
