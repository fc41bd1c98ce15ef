"""Which blocks of keys a block of queries can see: what a kernel needs to skip the rest.

Letters: B rows, L queries or keys, I blocks of queries, J blocks of keys.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sora_jax.nn.kernels.seen import segment_of


class Ranges(NamedTuple):
    """For each block of queries the blocks of keys from `first` on, `count` of them; int32 (B, I).

    Outside no query of the block has a key. Inside a block may still have none for it, where ids are not in order.
    """

    first_BI: jax.Array
    count_BI: jax.Array


def visible_blocks(
    query_segment_BL: jax.Array,
    key_segment_BM: jax.Array,
    *,
    query_block: int,
    key_block: int,
    causal: bool = False,
    outer: str = "queries",
) -> Ranges:
    """Returns the blocks of keys that share a segment with each block of queries; 0 is padding and shares none.

    Ids that never decrease along a row, as those of a pack, give the shortest ranges; any order gives right ones. With
    `causal` ids are those of `causal_ids`, and blocks of keys behind all queries are left out. With `outer` "keys" the
    two sides change places: of keys what comes first is the first array, and its blocks are those of `query_block`.
    """
    low_BI, high_BI = _extremes(query_segment_BL, query_block)
    low_BJ, high_BJ = _extremes(key_segment_BM, key_block)
    first_BI, last_BI, first_BJ, last_BJ = (
        segment_of(ids, causal=causal) for ids in (low_BI, high_BI, low_BJ, high_BJ)
    )
    meet_BIJ = (first_BI[:, :, None] <= last_BJ[:, None]) & (first_BJ[:, None] <= last_BI[:, :, None])
    if causal and outer == "queries":
        meet_BIJ &= low_BJ[:, None] <= high_BI[:, :, None]
    elif causal:
        meet_BIJ &= low_BI[:, :, None] <= high_BJ[:, None]
    first_BI = jnp.argmax(meet_BIJ, axis=-1)
    end_BI = meet_BIJ.shape[-1] - jnp.argmax(meet_BIJ[..., ::-1], axis=-1)
    some_BI = jnp.any(meet_BIJ, axis=-1)
    return Ranges(
        jnp.where(some_BI, first_BI, 0).astype(jnp.int32),
        jnp.where(some_BI, end_BI - first_BI, 0).astype(jnp.int32),
    )


def _extremes(segment_BL: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    """Returns the smallest and the largest id of each block; of padding alone a smallest beyond every largest."""
    blocks = segment_BL.reshape(segment_BL.shape[0], -1, block)
    low = jnp.min(jnp.where(blocks > 0, blocks, jnp.iinfo(jnp.int32).max), axis=-1)
    return low, jnp.max(blocks, axis=-1)


def have_keys(query_segment_BL: jax.Array, key_segment_BM: jax.Array) -> jax.Array:
    """Returns whether each query has a key in its segment, bool (B, L); padding has none."""
    rows = jnp.arange(query_segment_BL.shape[0])[:, None]
    ids = 1 + max(query_segment_BL.shape[1], key_segment_BM.shape[1])  # a row has no more segments than tokens
    present = jnp.zeros((query_segment_BL.shape[0], ids), bool).at[rows, key_segment_BM].set(True)
    return present[rows, query_segment_BL] & (query_segment_BL > 0)


def padded(x: jax.Array, block: int, *, axis: int = 1) -> jax.Array:
    """Returns `x` with zeros behind it along `axis`, up to a multiple of `block`."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % block)
    return jnp.pad(x, widths)
