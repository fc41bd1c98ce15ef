"""Known tokens: the part of a clip that is given, and the noise levels that follow from it.

One model then animates images, extends in both directions, loops, connects and fills in. Training draws a
`Pattern` per segment; sampling writes one down (animate: head 1; extend: head k or tail k; connect: both);
`known_tokens` turns either into the same mask, and `condition` makes of it what the network is given.

A segment has two noise levels, its own and that of its known tokens, and one for each clip that is given beside it
(`video/parts.py`). They are kept as a table per row, levels_BG with G = 2 S (own levels first), or G = (2 + A) S where
up to A clips are beside, and an index into it per token.

Letters: B rows, L tokens, S segments of a row, G levels of a row, A clips beside a segment at most, R roles, P patch
width. Segment ids are 1 ... S, 0 padding.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sora_jax.core.errors import UserError
from sora_jax.diffusion import path

_FAMILIES = ("none", "first", "last", "ends", "random_frames", "region")


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnownConfig:
    """Shares of the families among training segments, summing to 1; raises UserError otherwise.

    first, last, ends: whole frames at the start, the end, or both.
    random_frames: whole frames spread over the clip.
    region: a rectangle of space, or all but a rectangle, in every frame. The families of frames find no frame
    to give in an image and leave it as it is.
    max_level: known tokens carry a noise level uniform in [0, max_level]. A little keeps the model from
    trusting given frames so much that nothing moves.
    """

    none: float
    first: float
    last: float
    ends: float
    random_frames: float
    region: float
    max_level: float

    def __post_init__(self):
        shares = {family: getattr(self, family) for family in _FAMILIES}
        if min(shares.values()) < 0 or abs(sum(shares.values()) - 1) > 1e-6:
            listed = ", ".join(f"{family} {share}" for family, share in shares.items())
            raise UserError(f"known-token shares sum to {sum(shares.values()):g}, not 1 (each >= 0): {listed}")
        if not 0 <= self.max_level < 1:
            raise UserError(f"known-token max_level {self.max_level} is outside [0, 1)")


# For models that are shown frames otherwise (`video/shown.py`).
NOTHING_KNOWN = KnownConfig(none=1.0, first=0.0, last=0.0, ends=0.0, random_frames=0.0, region=0.0, max_level=0.0)


class Pattern(NamedTuple):
    """Which tokens of each segment are known: the union of the rules below. Zeros everywhere: none."""

    head_BS: jax.Array  # int32: the first frames
    tail_BS: jax.Array  # int32: the last frames
    spread_BS3: jax.Array  # float32 (share, origin, pace): frames with frac((frame - origin) pace) < share
    box_BS4: jax.Array  # int32 rows and columns [top, bottom) x [left, right) in tokens, in every frame
    outside_BS: jax.Array  # bool: known is outside the box instead

    @classmethod
    def empty(cls, rows: int, segments: int) -> "Pattern":
        """Returns the pattern that knows nothing, for `_replace` to fill."""
        whole = jnp.zeros((rows, segments), jnp.int32)
        return cls(
            head_BS=whole,
            tail_BS=whole,
            spread_BS3=jnp.zeros((rows, segments, 3), jnp.float32),
            box_BS4=jnp.zeros((rows, segments, 4), jnp.int32),
            outside_BS=jnp.zeros((rows, segments), bool),
        )


def draw_pattern(key: jax.Array, grid_BS3: jax.Array, config: KnownConfig) -> Pattern:
    """Returns one random pattern per segment of token grid grid_BS3 (t, h, w).

    Counts of first and of last frames are log-uniform over what leaves a frame to predict: one given frame is the
    commonest task, yet every count occurs. Of random frames such a count, over all, is the chance of each to be given,
    beside one that always is.
    """
    segments = grid_BS3.shape[:2]
    family_key, count_key, spread_key, box_key, side_key = jax.random.split(key, 5)
    shares = jnp.array([getattr(config, family) for family in _FAMILIES])
    family_BS = jax.random.categorical(family_key, jnp.log(shares), shape=segments)
    first_BS, last_BS, ends_BS, spread_BS, region_BS = (family_BS == index for index in range(1, len(_FAMILIES)))
    frames_BS = grid_BS3[..., 0]
    u_BS2 = jax.random.uniform(count_key, (*segments, 2))
    count_BS = _log_uniform(u_BS2[..., 0], frames_BS - 1)
    head_BS = _log_uniform(u_BS2[..., 0], frames_BS - 2)
    tail_BS = _log_uniform(u_BS2[..., 1], frames_BS - 1 - head_BS)
    # For a uniform pace, frac((frame - origin) pace) is uniform at every frame but the origin, where it is 0:
    # each frame is known with probability `share`, the origin always. Small paces give runs, others every
    # n-th frame, most of them no order, and no table of frames is needed.
    origin_BS, pace_BS = jnp.moveaxis(jax.random.uniform(spread_key, (*segments, 2)), -1, 0)
    origin_BS = jnp.floor(origin_BS * frames_BS)
    share_BS = jnp.where(spread_BS, count_BS / jnp.maximum(frames_BS, 1), 0.0)
    outside_BS = region_BS & jax.random.bernoulli(side_key, shape=segments)
    return Pattern(
        head_BS=jnp.select([first_BS, ends_BS], [count_BS, head_BS]),
        tail_BS=jnp.select([last_BS, ends_BS], [count_BS, tail_BS]),
        spread_BS3=jnp.stack([share_BS, origin_BS, pace_BS], axis=-1),
        box_BS4=jnp.where(region_BS[..., None], _draw_box(box_key, grid_BS3), 0),
        outside_BS=outside_BS,
    )


def known_tokens(
    pattern: Pattern,
    *,
    position_BL3: jax.Array,
    segment_BL: jax.Array,
    grid_BS3: jax.Array,
    time_step_BS: jax.Array,
) -> jax.Array:
    """Returns known_BL bool: the tokens that `pattern` gives; padding never.

    position_BL3 is (time, row, column) as in the pack, each starting at 0 in its segment; time_step_BS is the
    time position between neighbouring token frames, so a token's frame is round(time / time step).
    """
    time_BL, row_BL, column_BL = jnp.moveaxis(position_BL3, -1, 0)
    step_BL = per_token(time_step_BS, segment_BL)
    frame_BL = jnp.round(time_BL / jnp.where(step_BL > 0, step_BL, 1.0))
    frames_BL = per_token(grid_BS3[..., 0], segment_BL)
    head_BL, tail_BL, spread_BL3, box_BL4, outside_BL = (per_token(table, segment_BL) for table in pattern)
    share_BL, origin_BL, pace_BL = jnp.moveaxis(spread_BL3, -1, 0)
    top_BL, bottom_BL, left_BL, right_BL = jnp.moveaxis(box_BL4, -1, 0)
    inside_BL = (row_BL >= top_BL) & (row_BL < bottom_BL) & (column_BL >= left_BL) & (column_BL < right_BL)
    known_BL = (
        (frame_BL < head_BL)
        | (frame_BL >= frames_BL - tail_BL)
        | (((frame_BL - origin_BL) * pace_BL) % 1.0 < share_BL)
        | (inside_BL != outside_BL)
    )
    return known_BL & (segment_BL > 0)


def draw_known(
    key: jax.Array,
    *,
    position_BL3: jax.Array,
    segment_BL: jax.Array,
    grid_BS3: jax.Array,
    time_step_BS: jax.Array,
    config: KnownConfig,
) -> jax.Array:
    """Returns known_BL bool for training: every segment keeps a token to predict; padding is never known.

    A draw that would leave nothing to predict (a box over the whole frame, or token drop) counts as none.
    """
    known_BL = known_tokens(
        draw_pattern(key, grid_BS3, config),
        position_BL3=position_BL3,
        segment_BL=segment_BL,
        grid_BS3=grid_BS3,
        time_step_BS=time_step_BS,
    )
    unknown_BS = count_tokens(jnp.where(known_BL, 0, segment_BL), grid_BS3.shape[1])
    return known_BL & per_token(unknown_BS > 0, segment_BL)


def draw_known_level(key: jax.Array, segments: tuple[int, int], config: KnownConfig) -> jax.Array:
    """Returns known_sigma_BS float32, uniform in [0, max_level], for `segments` = (B, S)."""
    return config.max_level * jax.random.uniform(key, segments)


def draw_context_level(key: jax.Array, role_BSA: jax.Array, max_level_R: tuple[float, ...]) -> jax.Array:
    """Returns context_sigma_BSA float32 for clips beside: uniform in [0, that of their role]."""
    return jnp.asarray(max_level_R, jnp.float32)[role_BSA] * jax.random.uniform(key, role_BSA.shape)


class Conditioned(NamedTuple):
    """What the network is given of the tokens."""

    tokens_BLP: jax.Array  # float32, each token with the noise of its level
    levels_BG: jax.Array  # float32, all levels of a row
    level_BL: jax.Array  # int32, each token's column of levels_BG


def condition(
    clean_BLP: jax.Array,
    *,
    noise_BLP: jax.Array,
    known_BL: jax.Array,
    segment_BL: jax.Array,
    sigma_BS: jax.Array,
    known_sigma_BS: jax.Array,
    part_BL: jax.Array | None = None,
    context_sigma_BSA: jax.Array | None = None,
) -> Conditioned:
    """Returns what the network is given where segments have level sigma_BS and their known tokens known_sigma_BS.

    Training calls this with levels that it drew, sampling with those that it starts from. A known token at level 0 is
    `clean_BLP` bit for bit, an unknown one at level 1 is `noise_BLP`. Where a pack has clips beside, `part_BL` says
    which tokens are theirs, never known ones, and context_sigma_BSA their levels.
    """
    levels_BG = level_table(sigma_BS, known_sigma_BS, context_sigma_BSA)
    level_BL = level_index(segment_BL, known_BL, num_segments=sigma_BS.shape[-1], part_BL=part_BL)
    noisy_BLP = path.add_noise(clean_BLP, noise=noise_BLP, sigma=token_level(levels_BG, level_BL))
    return Conditioned(noisy_BLP, levels_BG, level_BL)


def level_table(
    sigma_BS: jax.Array, known_sigma_BS: jax.Array, context_sigma_BSA: jax.Array | None = None
) -> jax.Array:
    """Returns levels_BG: the segments' own levels, then those of their known tokens, then of the clips beside, in turn.

    Leading axes broadcast: a schedule (steps + 1, B, S) gives a table per step, in which the other levels stand
    still and therefore `solvers.solve` leaves known tokens and clips beside as they were given.
    """
    beside = () if context_sigma_BSA is None else jnp.unstack(context_sigma_BSA, axis=-1)
    return jnp.concatenate(jnp.broadcast_arrays(sigma_BS, known_sigma_BS, *beside), axis=-1)


def level_index(
    segment_BL: jax.Array, known_BL: jax.Array, *, num_segments: int, part_BL: jax.Array | None = None
) -> jax.Array:
    """Returns level_BL int32, each token's column of levels_BG; padding has column 0."""
    first_BL = jnp.maximum(segment_BL - 1, 0)
    if part_BL is not None:
        first_BL += num_segments * jnp.where(part_BL > 0, 1 + part_BL, 0)
    return first_BL + num_segments * (known_BL & (segment_BL > 0))


def token_level(levels_BG: jax.Array, level_BL: jax.Array) -> jax.Array:
    """Returns sigma_BL, the noise level of each token."""
    return jnp.take_along_axis(levels_BG, level_BL, axis=-1)


def per_token(table_BS: jax.Array, segment_BL: jax.Array) -> jax.Array:
    """Returns (B, L, ...): the table's value of each token's segment. Padding reads segment 1."""
    index = jnp.maximum(segment_BL - 1, 0).reshape(*segment_BL.shape, *[1] * (table_BS.ndim - 2))
    return jnp.take_along_axis(table_BS, index, axis=1)


def count_tokens(segment_BL: jax.Array, num_segments: int) -> jax.Array:
    """Returns tokens_BS int32, how many tokens of its row each segment has."""
    ids_S1 = jnp.arange(1, num_segments + 1)[:, None]
    return jnp.sum(segment_BL[:, None] == ids_S1, axis=-1)


def _log_uniform(u_BS: jax.Array, most_BS: jax.Array) -> jax.Array:
    """Returns int32 in 1 ... most, P(k) proportional to log(1 + 1 / k); 0 where `most` is not positive."""
    most_BS = jnp.maximum(most_BS, 0)
    return jnp.minimum(jnp.floor((most_BS + 1.0) ** u_BS).astype(jnp.int32), most_BS)


def _draw_box(key: jax.Array, grid_BS3: jax.Array) -> jax.Array:
    """Returns a random box_BS4 of at least one token, inside each segment's frame."""
    ends_BS22 = jnp.sort(jax.random.uniform(key, (*grid_BS3.shape[:2], 2, 2)), axis=-1)
    side_BS21 = grid_BS3[..., 1:, None]
    low_BS2 = jnp.floor(ends_BS22[..., :1] * side_BS21)
    high_BS2 = jnp.ceil(ends_BS22[..., 1:] * side_BS21)
    box_BS22 = jnp.concatenate([low_BS2, jnp.maximum(high_BS2, low_BS2 + 1)], axis=-1)
    return box_BS22.reshape(*grid_BS3.shape[:2], 4).astype(jnp.int32)
