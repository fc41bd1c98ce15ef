"""Clips beside that see themselves alone, taken out of the rows of what is made: the solver's steps go without them.

Letters: B rows, L tokens, M of them those of one side, S segments, A clips beside a segment at most, P patch width.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.data.packing.packs import own_segments
from sora_jax.diffusion import known
from sora_jax.generate.canvas import CanvasBatch, ContextRows, Placement
from sora_jax.models.block import KeptKeys
from sora_jax.models.text_to_video import TextToVideo

# Of the lengths of both sides: few programs serve all batches.
_UNIT = 64
_ABOUT_PARTS = ("part_BL", "role_BSA")


def set_apart(batches: Sequence[CanvasBatch], places: Sequence[Placement]) -> tuple[list[CanvasBatch], list[Placement]]:
    """Returns batches whose clips beside are in rows of their own, and where each canvas is then.

    Of both sides rows are as long as the fullest needs, in units that keep programs few, and no longer than before.
    """
    made = [own_segments(batch.pack) > 0 for batch in batches]
    beside = [batch.pack["part_BL"] > 0 for batch in batches]
    lengths = [min(chosen[0].shape[1], _longest(chosen)) for chosen in (made, beside)]
    moved = []
    for place in places:
        start = int(np.count_nonzero(made[place.batch][place.row, : place.tokens.start]))
        tokens = slice(start, start + place.tokens.stop - place.tokens.start)
        moved.append(Placement(batch=place.batch, row=place.row, tokens=tokens))
    return [_split(*parts, lengths) for parts in zip(batches, made, beside, strict=True)], moved


def _longest(chosen: Sequence[np.ndarray]) -> int:
    most = max(int(np.count_nonzero(one_BL, axis=1).max()) for one_BL in chosen)
    return -(-most // _UNIT) * _UNIT


def _split(batch: CanvasBatch, made_BL: np.ndarray, beside_BL: np.ndarray, lengths: Sequence[int]) -> CanvasBatch:
    def of_made(array: Any) -> Any:
        return None if array is None else _taken(array, made_BL, lengths[0])

    def of_beside(array: np.ndarray) -> np.ndarray:
        return _taken(array, beside_BL, lengths[1])

    along = {name: array for name, array in batch.pack.items() if name.partition("_")[2].startswith("BL")}
    rest = {name: array for name, array in batch.pack.items() if name not in along}
    told = ("grid_BS3", "time_step_BS", "role_BSA")
    return batch._replace(
        pack={n: a for n, a in {**rest, **{n: of_made(a) for n, a in along.items()}}.items() if n not in _ABOUT_PARTS},
        noise_BLP=of_made(batch.noise_BLP),
        known_BL=of_made(batch.known_BL),
        share_BL=of_made(batch.share_BL),
        context_sigma_BSA=None,
        apart=ContextRows(
            pack={n: of_beside(a) for n, a in along.items()} | {n: rest[n] for n in told},
            noise_BLP=of_beside(batch.noise_BLP),
            sigma_BSA=batch.context_sigma_BSA,
        ),
    )


def _taken(array_BL: np.ndarray, chosen_BL: np.ndarray, length: int) -> np.ndarray:
    """Returns the chosen tokens of each row, in order, zeros behind them; (B, length, ...)."""
    result = np.zeros((len(array_BL), length, *array_BL.shape[2:]), array_BL.dtype)
    for row, (array_L, chosen_L) in enumerate(zip(array_BL, chosen_BL, strict=True)):
        found = array_L[chosen_L]
        result[row, : len(found)] = found
    return result


def keys_beside(model: TextToVideo, apart: ContextRows, *, text_width: int, dtype: jnp.dtype) -> KeptKeys:
    """Returns the keys of clips beside in all blocks, the same at all steps and for all texts; the model is blind."""
    pack, rows = apart.pack, len(apart.noise_BLP)
    still_BS = jnp.zeros(pack["time_step_BS"].shape, jnp.float32)
    given = known.condition(
        pack["tokens_BLP"],
        noise_BLP=apart.noise_BLP,
        known_BL=jnp.zeros(pack["segment_BL"].shape, bool),
        segment_BL=pack["segment_BL"],
        sigma_BS=still_BS,
        known_sigma_BS=still_BS,
        part_BL=pack["part_BL"],
        context_sigma_BSA=apart.sigma_BSA,
    )
    said = model.predict(
        given.tokens_BLP,
        pack,
        levels_BG=given.levels_BG,
        level_BL=given.level_BL,
        text_BKE=jnp.zeros((rows, 1, text_width), dtype),
        text_segment_BK=jnp.zeros((rows, 1), jnp.int32),
        keeps_keys=True,
    )
    assert said.keys is not None
    # Once, before the solver begins, and not within its loop.
    return jax.lax.optimization_barrier(said.keys)
