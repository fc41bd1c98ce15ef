"""Attention block by block in plain XLA: runs anywhere, skips the blocks of other segments, never holds L x M scores.

One task is a block of queries of one row; it visits the blocks of keys that share a segment with it, keeping a running
maximum and sum of the softmax (arXiv 2205.14135, algorithm 1). The gradient visits the same pairs once more.

Letters: B rows, L queries, M keys, N heads, H head width, I blocks of queries of a row, C queries or keys of a block.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from sora_jax.nn.flash import NOTHING, Kernel
from sora_jax.nn.kernels.ranges import Ranges, padded, visible_blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
    """Queries and keys of a block: smaller ones skip more, larger ones multiply faster."""

    queries: int = 256
    keys: int = 256


def blocked(blocks: Blocks | None = None) -> Kernel:
    """Returns the kernel; rows are padded to whole blocks."""
    blocks = Blocks() if blocks is None else blocks
    return Kernel(
        forward=functools.partial(_forward, blocks=blocks), backward=functools.partial(_backward, blocks=blocks)
    )


def _forward(query, key, value, query_segment, key_segment, *, blocks: Blocks) -> tuple[jax.Array, jax.Array]:
    length, dtype = query.shape[1], query.dtype
    query = _heads_first(query / math.sqrt(query.shape[-1]), blocks.queries)
    key, value = _heads_first(key, blocks.keys), _heads_first(value, blocks.keys)
    query_segment, key_segment = padded(query_segment, blocks.queries), padded(key_segment, blocks.keys)
    ranges = visible_blocks(query_segment, key_segment, query_block=blocks.queries, key_block=blocks.keys)

    def task(number: jax.Array) -> tuple[jax.Array, jax.Array]:
        row, here = jnp.divmod(number, ranges.first_BI.shape[1])
        mine, my_segment = _block(query, row, here, blocks.queries), _segments(query_segment, row, here, blocks.queries)

        def visit(there: jax.Array, carry: Any) -> Any:
            mixed, top, total = carry
            seen = _seen(my_segment, _segments(key_segment, row, there, blocks.keys))
            scores = jnp.where(seen, _product("nqh,nkh->nqk", mine, _block(key, row, there, blocks.keys)), NOTHING)
            higher = jnp.maximum(top, jnp.max(scores, axis=-1))
            # The maximum of queries without a key so far is that of hidden scores, which count nothing.
            weights = jnp.where(seen, jnp.exp(scores - higher[..., None]), 0.0)
            fade = jnp.exp(top - higher)
            more = _product("nqk,nkh->nqh", weights.astype(dtype), _block(value, row, there, blocks.keys))
            return mixed * fade[..., None] + more, higher, total * fade + jnp.sum(weights, axis=-1)

        nothing = jnp.zeros(mine.shape, jnp.float32)
        carry = nothing, jnp.full(mine.shape[:2], NOTHING, jnp.float32), jnp.zeros(mine.shape[:2], jnp.float32)
        mixed, top, total = _visit_all(ranges, (row, here), visit, carry)
        some = total > 0
        logsum = jnp.where(some, top + jnp.log(jnp.where(some, total, 1.0)), NOTHING)
        return (mixed / jnp.where(some, total, 1.0)[..., None]).astype(dtype), logsum

    mixed, logsum = jax.lax.map(task, jnp.arange(ranges.first_BI.size))
    rows = query.shape[0]
    mixed = _rejoined(mixed, rows)
    return mixed.transpose(0, 2, 1, 3)[:, :length], _rejoined(logsum, rows).transpose(0, 2, 1)[:, :length]


def _backward(
    query, key, value, query_segment, key_segment, logsum, delta, gradient, *, blocks: Blocks
) -> tuple[jax.Array, jax.Array, jax.Array]:
    length, keys, dtype = query.shape[1], key.shape[1], query.dtype
    scale = 1.0 / math.sqrt(query.shape[-1])
    query, gradient, logsum, delta = (_heads_first(x, blocks.queries) for x in (query * scale, gradient, logsum, delta))
    key, value = _heads_first(key, blocks.keys), _heads_first(value, blocks.keys)
    query_segment, key_segment = padded(query_segment, blocks.queries), padded(key_segment, blocks.keys)
    ranges = visible_blocks(query_segment, key_segment, query_block=blocks.queries, key_block=blocks.keys)

    def task(to_part: Any, number: jax.Array) -> tuple[Any, jax.Array]:
        row, here = jnp.divmod(number, ranges.first_BI.shape[1])
        mine, my_segment = _block(query, row, here, blocks.queries), _segments(query_segment, row, here, blocks.queries)
        my_gradient = _block(gradient, row, here, blocks.queries)
        my_logsum, my_delta = _block(logsum, row, here, blocks.queries), _block(delta, row, here, blocks.queries)

        def visit(there: jax.Array, carry: Any) -> Any:
            to_query, to_key, to_value = carry
            keys, values = _block(key, row, there, blocks.keys), _block(value, row, there, blocks.keys)
            seen = _seen(my_segment, _segments(key_segment, row, there, blocks.keys))
            scores = _product("nqh,nkh->nqk", mine, keys)
            weights = jnp.where(seen, jnp.exp(scores - my_logsum[..., None]), 0.0)
            to_weights = _product("nqh,nkh->nqk", my_gradient, values)
            to_scores = (weights * (to_weights - my_delta[..., None])).astype(dtype)
            to_query += _product("nqk,nkh->nqh", to_scores, keys)
            to_key = _add_block(to_key, _product("nqk,nqh->nkh", to_scores, mine), row, there, blocks.keys)
            more = _product("nqk,nqh->nkh", weights.astype(dtype), my_gradient)
            return to_query, to_key, _add_block(to_value, more, row, there, blocks.keys)

        carry = jnp.zeros(mine.shape, jnp.float32), *to_part
        to_query, *to_part = _visit_all(ranges, (row, here), visit, carry)
        return tuple(to_part), to_query * scale

    zeros = jnp.zeros(key.shape, jnp.float32), jnp.zeros(value.shape, jnp.float32)
    (to_key, to_value), to_query = jax.lax.scan(task, zeros, jnp.arange(ranges.first_BI.size))
    to_query = _rejoined(to_query, query.shape[0]).transpose(0, 2, 1, 3)[:, :length]
    return to_query, to_key.transpose(0, 2, 1, 3)[:, :keys], to_value.transpose(0, 2, 1, 3)[:, :keys]


def _heads_first(x: jax.Array, block: int) -> jax.Array:
    """Returns (B, N, L, ...) of (B, L, N, ...), padded to whole blocks: what matrix products over heads want."""
    return jnp.swapaxes(padded(x, block), 1, 2)


def _block(x_BNL: jax.Array, row: jax.Array, number: jax.Array, block: int) -> jax.Array:
    """Returns block `number` of a row, (N, C, ...)."""
    start = (row, 0, number * block, *(0,) * (x_BNL.ndim - 3))
    return jax.lax.dynamic_slice(x_BNL, start, (1, x_BNL.shape[1], block, *x_BNL.shape[3:]))[0]


def _add_block(x_BNLH: jax.Array, more_NCH: jax.Array, row: jax.Array, number: jax.Array, block: int) -> jax.Array:
    """Returns `x` with `more` added to block `number` of a row; in place inside a loop."""
    start = (row, 0, number * block, 0)
    return jax.lax.dynamic_update_slice(x_BNLH, _block(x_BNLH, row, number, block)[None] + more_NCH[None], start)


def _segments(segment_BL: jax.Array, row: jax.Array, number: jax.Array, block: int) -> jax.Array:
    return jax.lax.dynamic_slice(segment_BL, (row, number * block), (1, block))[0]


def _seen(query_segment_C: jax.Array, key_segment_C: jax.Array) -> jax.Array:
    """Returns which keys each query of a pair of blocks sees, (C, C)."""
    return (query_segment_C[:, None] == key_segment_C) & (key_segment_C > 0)


def _product(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _visit_all(ranges: Ranges, place: tuple[jax.Array, jax.Array], visit: Any, carry: Any) -> Any:
    """Returns `carry` after the blocks of keys that the block of queries at `place` (row, number) can see."""
    first = ranges.first_BI[place]
    return jax.lax.fori_loop(first, first + ranges.count_BI[place], visit, carry)


def _rejoined(x_tasks: jax.Array, rows: int) -> jax.Array:
    """Returns (B, N, L, ...) of what the tasks gave, (B I, N, C, ...)."""
    x = x_tasks.reshape(rows, -1, *x_tasks.shape[1:])
    x = jnp.moveaxis(x, 1, 2)
    return x.reshape(rows, x.shape[1], -1, *x.shape[4:])
