"""Attention block by block in plain XLA: runs anywhere, skips the blocks of other segments, never holds L x M scores.

One task is a block of queries of one row; it visits the blocks of keys that share a segment with it, keeping a running
maximum and sum of the softmax (arXiv 2205.14135, algorithm 1). The gradient visits the same pairs once more.

Letters: B rows, L queries, M keys, N heads, H head width, T blocks of all rows, C queries or K keys of a block.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from sora_jax.nn.flash import NOTHING, Kernel
from sora_jax.nn.kernels.ranges import padded, visible_blocks
from sora_jax.nn.kernels.seen import sees

# Below every score and above that of a hidden key: what is left of a hidden key is exp(-9e29), exactly zero.
_LEAST = NOTHING / 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
    """Queries and keys of a block: smaller ones skip more, larger ones multiply faster.

    `causal`: see `kernels.seen`.
    """

    queries: int = 256
    keys: int = 256
    causal: bool = False


def blocked(blocks: Blocks | None = None) -> Kernel:
    """Returns the kernel; rows are padded to whole blocks."""
    blocks = Blocks() if blocks is None else blocks
    return Kernel(
        forward=functools.partial(_forward, blocks=blocks), backward=functools.partial(_backward, blocks=blocks)
    )


def _forward(query, key, value, query_segment, key_segment, *, blocks: Blocks) -> tuple[jax.Array, jax.Array]:
    rows, length, _, head_width = query.shape
    dtype = query.dtype
    key_TNKH, value_TNKH, key_segment_TK = (_cut(x, blocks.keys) for x in (key, value, key_segment))
    queries = [_cut(x, blocks.queries) for x in (query / math.sqrt(head_width), query_segment)]

    def task(mine: Any) -> tuple[jax.Array, jax.Array]:
        query_NCH, segment_C, first, end = mine

        def visit(there: jax.Array, carry: Any) -> Any:
            mixed, top, total = carry
            seen_CK = _seen(segment_C, key_segment_TK[there], blocks.causal)
            scores = jnp.where(seen_CK, _product("nch,nkh->nck", query_NCH, key_TNKH[there]), NOTHING)
            higher = jnp.maximum(top, jnp.max(scores, axis=-1))
            weights = jnp.exp(scores - higher[..., None])
            fade = jnp.exp(top - higher)
            more = _product("nck,nkh->nch", weights.astype(dtype), value_TNKH[there])
            return mixed * fade[..., None] + more, higher, total * fade + jnp.sum(weights, axis=-1)

        zeros_NC = jnp.zeros(query_NCH.shape[:2], jnp.float32)
        carry = jnp.zeros(query_NCH.shape, jnp.float32), zeros_NC + _LEAST, zeros_NC
        mixed, top, total = jax.lax.fori_loop(first, end, visit, carry)
        some = jnp.where(total > 0, total, 1.0)
        return (mixed / some[..., None]).astype(dtype), jnp.where(total > 0, top + jnp.log(some), NOTHING)

    done = jax.lax.map(task, (*queries, *_visible(query_segment, key_segment, blocks)))
    mixed, logsum = (_rejoined(x, rows)[:, :length] for x in done)
    return mixed, logsum


def _backward(
    query, key, value, query_segment, key_segment, logsum, delta, gradient, *, blocks: Blocks
) -> tuple[jax.Array, jax.Array, jax.Array]:
    rows, length, _, head_width = query.shape
    keys, dtype = key.shape[1], query.dtype
    scale = 1.0 / math.sqrt(head_width)
    # A query without keys has no weights whatever this is, as long as it is far above a hidden key.
    logsum = jnp.where(logsum < _LEAST, 0.0, logsum)
    key_TNKH, value_TNKH, key_segment_TK = (_cut(x, blocks.keys) for x in (key, value, key_segment))
    queries = [_cut(x, blocks.queries) for x in (query * scale, query_segment, gradient, logsum, delta)]

    def task(to_part: Any, mine: Any) -> tuple[Any, jax.Array]:
        query_NCH, segment_C, gradient_NCH, logsum_NC, delta_NC, first, end = mine

        def visit(there: jax.Array, carry: Any) -> Any:
            to_query, to_key_TNKH, to_value_TNKH = carry
            key_NKH, value_NKH = key_TNKH[there], value_TNKH[there]
            # Keys first: of the three products below two then contract the last dimension, which is faster on CPU.
            seen_KC = _seen(segment_C, key_segment_TK[there], blocks.causal).T
            scores = jnp.where(seen_KC, _product("nkh,nch->nkc", key_NKH, query_NCH), NOTHING)
            weights = jnp.exp(scores - logsum_NC[:, None])
            to_weights = _product("nkh,nch->nkc", value_NKH, gradient_NCH)
            to_scores = (weights * (to_weights - delta_NC[:, None])).astype(dtype)
            to_query += _product("nkc,nkh->nch", to_scores, key_NKH)
            to_key = to_key_TNKH[there] + _product("nkc,nch->nkh", to_scores, query_NCH)
            to_value = to_value_TNKH[there] + _product("nkc,nch->nkh", weights.astype(dtype), gradient_NCH)
            return to_query, to_key_TNKH.at[there].set(to_key), to_value_TNKH.at[there].set(to_value)

        carry = jnp.zeros(query_NCH.shape, jnp.float32), *to_part
        to_query, *to_part = jax.lax.fori_loop(first, end, visit, carry)
        return tuple(to_part), to_query * scale

    zeros = jnp.zeros(key_TNKH.shape, jnp.float32), jnp.zeros(value_TNKH.shape, jnp.float32)
    to_part, to_query = jax.lax.scan(task, zeros, (*queries, *_visible(query_segment, key_segment, blocks)))
    to_key, to_value = (_rejoined(x, rows)[:, :keys] for x in to_part)
    return _rejoined(to_query, rows)[:, :length], to_key, to_value


def _cut(x: jax.Array, block: int) -> jax.Array:
    """Returns the blocks of all rows, (T, N, C, ...) of (B, L, N, ...), (T, C) of (B, L), the last of a row padded."""
    x = padded(x, block)
    x_TC = x.reshape(-1, block, *x.shape[2:])
    return x_TC if x_TC.ndim == 2 else jnp.swapaxes(x_TC, 1, 2)


def _rejoined(x_TNC: jax.Array, rows: int) -> jax.Array:
    """Returns (B, L, N, ...) of the blocks of all rows, (T, N, C, ...)."""
    x_TCN = jnp.swapaxes(x_TNC, 1, 2)
    return x_TCN.reshape(rows, -1, *x_TCN.shape[2:])


def _visible(query_segment: jax.Array, key_segment: jax.Array, blocks: Blocks) -> tuple[jax.Array, jax.Array]:
    """Returns for each block of queries the blocks of keys that it visits: the first, and where they end, (T,) each."""
    query_segment, key_segment = padded(query_segment, blocks.queries), padded(key_segment, blocks.keys)
    ranges = visible_blocks(
        query_segment, key_segment, query_block=blocks.queries, key_block=blocks.keys, causal=blocks.causal
    )
    row_B1 = jnp.arange(key_segment.shape[0])[:, None]
    first_BI = ranges.first_BI + row_B1 * (key_segment.shape[1] // blocks.keys)
    return first_BI.reshape(-1), (first_BI + ranges.count_BI).reshape(-1)


def _seen(query_segment_C: jax.Array, key_segment_K: jax.Array, causal: bool) -> jax.Array:
    """Returns which keys each query of a pair of blocks sees, (C, K)."""
    return sees(query_segment_C[:, None], key_segment_K, causal=causal)


def _product(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)
