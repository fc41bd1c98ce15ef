"""Attention on GPUs of any maker that Triton knows, where cuDNN's packed layout is not to be had: a Pallas kernel.

One program has one block of queries (or of keys, for their gradients) and loops over the blocks of the other side that
share a segment with it; no other block is loaded (arXiv 2307.08691, algorithms 1 and 2).

Letters: B rows, L queries, M keys, N heads, H head width, C queries or keys of a block.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from sora_jax.nn.flash import NOTHING, Kernel
from sora_jax.nn.kernels.ranges import Ranges, padded, visible_blocks
from sora_jax.nn.kernels.seen import sees

_WIDTHS = (16, 32, 64, 128)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
    """Queries and keys of a block, powers of 2 from 16; `interpret` runs the kernel on a machine without a GPU.

    `causal`: see `kernels.seen`.
    """

    queries: int = 64
    keys: int = 64
    causal: bool = False
    interpret: bool = False


def takes(query_BLNH: jax.Array) -> bool:
    """Whether the kernel has this head width."""
    return query_BLNH.shape[-1] in _WIDTHS


def pallas_gpu(blocks: Blocks | None = None) -> Kernel:
    """Returns the kernel; rows are padded to whole blocks."""
    blocks = Blocks() if blocks is None else blocks
    return Kernel(
        forward=functools.partial(_forward, blocks=blocks), backward=functools.partial(_backward, blocks=blocks)
    )


def _forward(query, key, value, query_segment, key_segment, *, blocks: Blocks) -> tuple[jax.Array, jax.Array]:
    length, scale = query.shape[1], 1.0 / math.sqrt(query.shape[-1])
    query, key, value = _heads_first(query, blocks.queries), *(_heads_first(x, blocks.keys) for x in (key, value))
    query_segment, key_segment = padded(query_segment, blocks.queries), padded(key_segment, blocks.keys)
    mixed, logsum = _call(
        functools.partial(_forward_body, scale=scale, block=blocks.keys, causal=blocks.causal),
        _ranges(query_segment, key_segment, blocks, outer="queries"),
        mine=[query, query_segment],
        theirs=[key, value, key_segment],
        outputs=[jax.ShapeDtypeStruct(query.shape, query.dtype), jax.ShapeDtypeStruct(query.shape[:3], jnp.float32)],
        block=blocks.queries,
        interpret=blocks.interpret,
    )
    return jnp.swapaxes(mixed, 1, 2)[:, :length], jnp.swapaxes(logsum, 1, 2)[:, :length]


def _forward_body(first, count, query, query_segment, key, value, key_segment, mixed, logsum, *, scale, block, causal):
    mine, my_segment = query[...], query_segment[...]

    def visit(number: jax.Array, carry: Any) -> Any:
        gathered, top, total = carry
        there = pl.ds(number * block, block)
        seen = sees(my_segment[:, None], key_segment[there][None, :], causal=causal)
        scores = jnp.where(seen, triton.dot(mine, key[there, :].T) * scale, NOTHING)
        higher = jnp.maximum(top, jnp.max(scores, axis=1))
        weights = jnp.where(seen, jnp.exp(scores - higher[:, None]), 0.0)
        fade = jnp.exp(top - higher)
        values = value[there, :]
        gathered = gathered * fade[:, None] + triton.dot(weights.astype(values.dtype), values)
        return gathered, higher, total * fade + jnp.sum(weights, axis=1)

    size = mine.shape[0]
    carry = jnp.zeros(mine.shape, jnp.float32), jnp.full(size, NOTHING, jnp.float32), jnp.zeros(size, jnp.float32)
    gathered, top, total = _visit_all(first, count, visit, carry)
    some = total > 0
    divisor = jnp.where(some, total, 1.0)
    mixed[...] = (gathered / divisor[:, None]).astype(mixed.dtype)
    logsum[...] = jnp.where(some, top + jnp.log(divisor), NOTHING)


def _backward(
    query, key, value, query_segment, key_segment, logsum, delta, gradient, *, blocks: Blocks
) -> tuple[jax.Array, jax.Array, jax.Array]:
    length, keys, scale = query.shape[1], key.shape[1], 1.0 / math.sqrt(query.shape[-1])
    of_query = [_heads_first(x, blocks.queries) for x in (query, gradient.astype(query.dtype), logsum, delta)]
    of_query.append(padded(query_segment, blocks.queries))
    of_key = [_heads_first(key, blocks.keys), _heads_first(value, blocks.keys), padded(key_segment, blocks.keys)]
    (to_query,) = _call(
        functools.partial(_query_body, scale=scale, block=blocks.keys, causal=blocks.causal),
        _ranges(of_query[-1], of_key[-1], blocks, outer="queries"),
        mine=of_query,
        theirs=of_key,
        outputs=[jax.ShapeDtypeStruct(of_query[0].shape, jnp.float32)],
        block=blocks.queries,
        interpret=blocks.interpret,
    )
    per_key = jax.ShapeDtypeStruct(of_key[0].shape, jnp.float32)
    to_key, to_value = _call(
        functools.partial(_key_body, scale=scale, block=blocks.queries, causal=blocks.causal),
        _ranges(of_key[-1], of_query[-1], blocks, outer="keys"),
        mine=of_key,
        theirs=of_query,
        outputs=[per_key, per_key],
        block=blocks.keys,
        interpret=blocks.interpret,
    )
    to_key, to_value = (jnp.swapaxes(x, 1, 2)[:, :keys] for x in (to_key, to_value))
    return jnp.swapaxes(to_query, 1, 2)[:, :length], to_key, to_value


def _query_body(first, count, query, gradient, logsum, delta, query_segment, key, value, key_segment, to_query, **rest):
    """Gathers the gradient of a block of queries over the blocks of keys that it sees."""
    mine, block = (query[...], gradient[...], logsum[...], delta[...], query_segment[...]), rest["block"]

    def visit(number: jax.Array, gathered: jax.Array) -> jax.Array:
        there = pl.ds(number * block, block)
        theirs = key[there, :], value[there, :], key_segment[there]
        _, to_scores = _gradients(mine, theirs, rest["scale"], rest["causal"])
        return gathered + triton.dot(to_scores.astype(theirs[0].dtype), theirs[0])

    to_query[...] = _visit_all(first, count, visit, jnp.zeros(to_query.shape, jnp.float32))


def _key_body(
    first, count, key, value, key_segment, query, gradient, logsum, delta, query_segment, to_key, to_value, **rest
):
    """Gathers the gradients of a block of keys and values over the blocks of queries that see it."""
    mine, block = (key[...], value[...], key_segment[...]), rest["block"]

    def visit(number: jax.Array, carry: Any) -> Any:
        there = pl.ds(number * block, block)
        queries, gradients = query[there, :], gradient[there, :]
        theirs = queries, gradients, logsum[there], delta[there], query_segment[there]
        weights, to_scores = _gradients(theirs, mine, rest["scale"], rest["causal"])
        gathered_key, gathered_value = carry
        gathered_key += triton.dot(to_scores.astype(queries.dtype).T, queries)
        return gathered_key, gathered_value + triton.dot(weights.astype(gradients.dtype).T, gradients)

    zeros = jnp.zeros(to_key.shape, jnp.float32)
    to_key[...], to_value[...] = _visit_all(first, count, visit, (zeros, zeros))


def _gradients(
    of_query: Sequence[Any], of_key: Sequence[Any], scale: float, causal: bool
) -> tuple[jax.Array, jax.Array]:
    """Returns the weights of a pair of blocks and the gradient of its scores, queries x keys in float32."""
    query, gradient, logsum, delta, query_segment = of_query
    key, value, key_segment = of_key
    seen = sees(query_segment[:, None], key_segment[None, :], causal=causal)
    weights = jnp.where(seen, jnp.exp(triton.dot(query, key.T) * scale - logsum[:, None]), 0.0)
    return weights, weights * (triton.dot(gradient, value.T) - delta[:, None]) * scale


def _ranges(mine: jax.Array, theirs: jax.Array, blocks: Blocks, *, outer: str) -> Ranges:
    """Returns the blocks of the other side that each block of the `outer` side meets."""
    block, other = (blocks.queries, blocks.keys) if outer == "queries" else (blocks.keys, blocks.queries)
    return visible_blocks(mine, theirs, query_block=block, key_block=other, causal=blocks.causal, outer=outer)


def _visit_all(first: Any, count: Any, visit: Callable[..., Any], carry: Any) -> Any:
    """Returns `carry` after the blocks that the one of this program shares a segment with."""
    here = pl.program_id(2)
    return jax.lax.fori_loop(first[here], first[here] + count[here], visit, carry)


def _call(
    body: Callable[..., None],
    ranges: Ranges,
    *,
    mine: Sequence[jax.Array],
    theirs: Sequence[jax.Array],
    outputs: Sequence[jax.ShapeDtypeStruct],
    block: int,
    interpret: bool,
) -> Any:
    """Returns the outputs of `body` for each row, head and block of what is `mine`; it sees all of what is `theirs`.

    Arrays are (B, N, L, H), (B, N, L), or (B, L) where all heads share them.
    """
    rows, heads = mine[0].shape[:2]
    cut, whole = functools.partial(_spec, block=block), functools.partial(_spec, block=None)
    return pl.pallas_call(
        body,
        grid=(rows, heads, ranges.count_BI.shape[1]),
        in_specs=[*map(whole, ranges), *map(cut, mine), *map(whole, theirs)],
        out_specs=[cut(output) for output in outputs],
        out_shape=list(outputs),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
    )(*ranges, *mine, *theirs)


def _spec(x: Any, *, block: int | None) -> pl.BlockSpec:
    """Returns block number i of a row (and head); all of it with `block` None."""
    heads = x.ndim > 2
    leading = (None, None) if heads else (None,)
    rest = tuple(x.shape[len(leading) :])
    shape = (*leading, *(rest if block is None else (block, *rest[1:])))

    def index(row: Any, head: Any, number: Any) -> tuple[Any, ...]:
        place = (0 if block is None else number, *(0 for _ in rest[1:]))
        return (row, head, *place) if heads else (row, *place)

    return pl.BlockSpec(shape, index)


def _heads_first(x: jax.Array, block: int) -> jax.Array:
    """Returns (B, N, L, ...) of (B, L, N, ...), padded to whole blocks."""
    return jnp.swapaxes(padded(x, block), 1, 2)
