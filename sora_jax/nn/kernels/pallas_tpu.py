"""Attention on TPU that visits no block of another segment, forward and backward: a Pallas kernel.

The blocks of keys that a block of queries can see are computed from the segment ids and prefetched as scalars; the last
dimension of the grid is as long as the longest of these ranges, whatever the ids are when the program runs. So the work
of a packed row grows with the sum of n², not with L².

Scores are computed transposed, keys down and queries along, so that what belongs to a query (maximum, sum, segment)
lies along a vector register and costs one row of it.

Letters: B rows, L queries, M keys, N heads, H head width.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from sora_jax.nn.flash import NOTHING, Kernel
from sora_jax.nn.kernels.ranges import Ranges, padded, visible_blocks
from sora_jax.nn.kernels.seen import sees

# Width of a vector register.
_LANES = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
    """Queries and keys of a block, multiples of 128; `interpret` runs the kernel on a machine without a TPU.

    `causal`: see `kernels.seen`.
    """

    queries: int = 512
    keys: int = 512
    causal: bool = False
    interpret: bool = False


def pallas_tpu(blocks: Blocks | None = None) -> Kernel:
    """Returns the kernel; rows are padded to whole blocks, and blocks are no longer than a padded row."""
    blocks = Blocks() if blocks is None else blocks
    return Kernel(
        forward=functools.partial(_forward, blocks=blocks), backward=functools.partial(_backward, blocks=blocks)
    )


class Scoring(NamedTuple):
    """What scores are multiplied by, and whether a query sees no key behind it."""

    scale: float
    causal: bool


class Operands(NamedTuple):
    """What a kernel reads, heads first: arrays outside, references to blocks of them inside.

    The last three are for the gradient alone.
    """

    query_BNLH: Any
    key_BNMH: Any
    value_BNMH: Any
    query_segment_B1L: Any
    key_segment_BML: Any  # L lanes, all alike
    gradient_BNLH: Any = None
    logsum_BN1L: Any = None
    delta_BN1L: Any = None

    def scores(self, how: Scoring) -> tuple[jax.Array, jax.Array]:
        """Returns the scores of a pair of blocks, keys x queries in float32, and which of them count."""
        query_segment, key_segment = self.query_segment_B1L[0], self.key_segment_BML[0][:, :1]
        seen = sees(query_segment, key_segment, causal=how.causal)
        return _product(self.key_BNMH[0, 0], self.query_BNLH[0, 0], over=1) * how.scale, seen

    def gradients(self, how: Scoring) -> tuple[jax.Array, jax.Array]:
        """Returns the weights of a pair of blocks and the gradient of its scores, keys x queries in float32."""
        scores, seen = self.scores(how)
        weights = jnp.where(seen, jnp.exp(scores - self.logsum_BN1L[0, 0]), 0.0)
        to_weights = _product(self.value_BNMH[0, 0], self.gradient_BNLH[0, 0], over=1)
        return weights, weights * (to_weights - self.delta_BN1L[0, 0]) * how.scale


class Output(NamedTuple):
    """Shape and dtype of what a kernel writes, the block of one step, and the axis along which blocks are numbered."""

    shape: tuple[int, ...]
    dtype: Any
    block: tuple[int, ...]
    axis: int


def _forward(query, key, value, query_segment, key_segment, *, blocks: Blocks) -> tuple[jax.Array, jax.Array]:
    blocks = _fitted(blocks, query, key)
    operands = _operands(query, key, value, query_segment, key_segment, blocks)
    rows, heads, queries, width = operands.query_BNLH.shape
    mixed, logsum = _call(
        _forward_body,
        operands,
        _ranges(operands, blocks, outer="queries"),
        outer="queries",
        outputs=[
            Output((rows, heads, queries, width), query.dtype, (1, 1, blocks.queries, width), axis=2),
            Output((rows, heads, 1, queries), jnp.float32, (1, 1, 1, blocks.queries), axis=3),
        ],
        scratch=[((width, blocks.queries), 0.0), ((1, blocks.queries), NOTHING), ((1, blocks.queries), 0.0)],
        blocks=blocks,
    )
    length = query.shape[1]
    return jnp.swapaxes(mixed, 1, 2)[:, :length], logsum[:, :, 0].transpose(0, 2, 1)[:, :length]


def _forward_body(visits, last, how, operands, mixed, logsum, gathered, top, total):
    @pl.when(visits)
    def _():
        scores, seen = operands.scores(how)
        higher = jnp.maximum(top[...], jnp.max(jnp.where(seen, scores, NOTHING), axis=0, keepdims=True))
        weights = jnp.where(seen, jnp.exp(scores - higher), 0.0)
        fade = jnp.exp(top[...] - higher)
        value = operands.value_BNMH[0, 0]
        gathered[...] = gathered[...] * fade + _product(value, weights.astype(value.dtype), over=0)
        total[...] = total[...] * fade + jnp.sum(weights, axis=0, keepdims=True)
        top[...] = higher

    @pl.when(last)
    def _():
        some = total[...] > 0
        divisor = jnp.where(some, total[...], 1.0)
        mixed[0, 0] = (gathered[...] / divisor).T.astype(mixed.dtype)
        logsum[0, 0] = jnp.where(some, top[...] + jnp.log(divisor), NOTHING)


def _backward(
    query, key, value, query_segment, key_segment, logsum, delta, gradient, *, blocks: Blocks
) -> tuple[jax.Array, jax.Array, jax.Array]:
    blocks = _fitted(blocks, query, key)
    operands = _operands(query, key, value, query_segment, key_segment, blocks)._replace(
        gradient_BNLH=_heads_first(gradient.astype(query.dtype), blocks.queries),
        logsum_BN1L=_heads_first(logsum, blocks.queries)[:, :, None],
        delta_BN1L=_heads_first(delta, blocks.queries)[:, :, None],
    )
    rows, heads, queries, width = operands.query_BNLH.shape
    (to_query,) = _call(
        _query_body,
        operands,
        _ranges(operands, blocks, outer="queries"),
        outer="queries",
        outputs=[Output((rows, heads, queries, width), jnp.float32, (1, 1, blocks.queries, width), axis=2)],
        scratch=[((blocks.queries, width), 0.0)],
        blocks=blocks,
    )
    per_key = Output(operands.key_BNMH.shape, jnp.float32, (1, 1, blocks.keys, width), axis=2)
    to_key, to_value = _call(
        _key_body,
        operands,
        _ranges(operands, blocks, outer="keys"),
        outer="keys",
        outputs=[per_key, per_key],
        scratch=[((blocks.keys, width), 0.0), ((blocks.keys, width), 0.0)],
        blocks=blocks,
    )
    to_key, to_value = (jnp.swapaxes(x, 1, 2)[:, : key.shape[1]] for x in (to_key, to_value))
    return jnp.swapaxes(to_query, 1, 2)[:, : query.shape[1]], to_key, to_value


def _query_body(visits, last, how, operands, to_query, gathered):
    """Gathers the gradient of a block of queries over the blocks of keys that it sees."""

    @pl.when(visits)
    def _():
        _, to_scores = operands.gradients(how)
        key = operands.key_BNMH[0, 0]
        gathered[...] += _product(to_scores.astype(key.dtype), key, over=0)

    @pl.when(last)
    def _():
        to_query[0, 0] = gathered[...]


def _key_body(visits, last, how, operands, to_key, to_value, gathered_key, gathered_value):
    """Gathers the gradients of a block of keys and values over the blocks of queries that see it."""

    @pl.when(visits)
    def _():
        weights, to_scores = operands.gradients(how)
        query, gradient = operands.query_BNLH[0, 0], operands.gradient_BNLH[0, 0]
        gathered_key[...] += jnp.dot(to_scores.astype(query.dtype), query, preferred_element_type=jnp.float32)
        gathered_value[...] += jnp.dot(weights.astype(gradient.dtype), gradient, preferred_element_type=jnp.float32)

    @pl.when(last)
    def _():
        to_key[0, 0] = gathered_key[...]
        to_value[0, 0] = gathered_value[...]


def _call(
    body: Callable[..., None],
    operands: Operands,
    ranges: Ranges,
    *,
    outer: str,
    outputs: Sequence[Output],
    scratch: Sequence[tuple[tuple[int, ...], float]],
    blocks: Blocks,
) -> Any:
    """Returns the outputs of `body` for each row, head and block of the `outer` side, one step per block in its range.

    `body` is told whether this step visits its pair and whether it is the last one of its range; its scratch is of the
    given shapes, float32, and starts at the given values.
    """
    rows, heads, _, width = operands.query_BNLH.shape
    how = Scoring(1.0 / math.sqrt(width), blocks.causal)

    def kernel(first: Any, count: Any, operands: Operands, *refs: Any) -> None:
        del first
        step = pl.program_id(3)

        @pl.when(step == 0)
        def _():
            for ref, (_, start) in zip(refs[len(outputs) :], scratch, strict=True):
                ref[...] = jnp.full_like(ref, start)

        visits = step < count[pl.program_id(0), pl.program_id(2)]
        body(visits, step == pl.num_programs(3) - 1, how, operands, *refs)

    query_block, key_block = (_outer, _inner) if outer == "queries" else (_inner, _outer)
    grid_spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=2,
        grid=(rows, heads, ranges.count_BI.shape[1], jnp.maximum(jnp.max(ranges.count_BI), 1)),
        in_specs=[_specs(operands, query_block, key_block, blocks)],
        out_specs=[_spec(output.block, _outer, axis=output.axis) for output in outputs],
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape, _ in scratch],
    )
    return pl.pallas_call(
        kernel,
        grid_spec=grid_spec,
        out_shape=[jax.ShapeDtypeStruct(output.shape, output.dtype) for output in outputs],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")),
        interpret=blocks.interpret,
        name=f"attention{body.__name__.removesuffix('_body')}",
    )(ranges.first_BI, ranges.count_BI, operands)


def _outer(row: Any, number: Any, step: Any, first: Any, count: Any) -> Any:
    """Returns the block of the side that a kernel goes through."""
    del row, step, first, count
    return number


def _inner(row: Any, number: Any, step: Any, first: Any, count: Any) -> Any:
    """Returns the block of the other side; beyond the range the last one stays where it is, and nothing is fetched."""
    return first[row, number] + jnp.maximum(jnp.minimum(step, count[row, number] - 1), 0)


def _specs(operands: Operands, query_block: Callable, key_block: Callable, blocks: Blocks) -> Operands:
    """Returns how each operand is cut, in the form of `operands`."""
    width = operands.query_BNLH.shape[-1]
    query = _spec((1, 1, blocks.queries, width), query_block, axis=2)
    key = _spec((1, 1, blocks.keys, width), key_block, axis=2)
    line = _spec((1, 1, 1, blocks.queries), query_block, axis=3)
    specs = Operands(
        query_BNLH=query,
        key_BNMH=key,
        value_BNMH=key,
        query_segment_B1L=_spec((1, 1, blocks.queries), query_block, axis=2),
        key_segment_BML=_spec((1, blocks.keys, _LANES), key_block, axis=1),
    )
    if operands.gradient_BNLH is None:
        return specs
    return specs._replace(gradient_BNLH=query, logsum_BN1L=line, delta_BN1L=line)


def _spec(shape: tuple[int, ...], block: Callable, *, axis: int) -> pl.BlockSpec:
    """Returns blocks of one row (and head, where there are four axes), numbered by `block` along `axis`."""

    def index(row: Any, head: Any, number: Any, step: Any, first: Any, count: Any) -> tuple[Any, ...]:
        place = [row, head, 0, 0] if len(shape) == 4 else [row, 0, 0]
        place[axis] = block(row, number, step, first, count)
        return tuple(place)

    return pl.BlockSpec(shape, index)


def _ranges(operands: Operands, blocks: Blocks, *, outer: str) -> Ranges:
    """Returns the blocks of the other side that each block of the `outer` side meets."""
    queries = operands.query_segment_B1L[:, 0], blocks.queries
    keys = operands.key_segment_BML[:, :, 0], blocks.keys
    (mine, block), (theirs, other) = (queries, keys) if outer == "queries" else (keys, queries)
    return visible_blocks(mine, theirs, query_block=block, key_block=other, causal=blocks.causal, outer=outer)


def _fitted(blocks: Blocks, query: jax.Array, key: jax.Array) -> Blocks:
    """Returns blocks no longer than the rows, padded to whole registers."""
    queries, keys = (x.shape[1] + -x.shape[1] % _LANES for x in (query, key))
    return dataclasses.replace(blocks, queries=min(blocks.queries, queries), keys=min(blocks.keys, keys))


def _operands(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_segment: jax.Array,
    key_segment: jax.Array,
    blocks: Blocks,
) -> Operands:
    """Returns what both directions read, padded to whole blocks."""
    key_segment = padded(key_segment, blocks.keys)
    return Operands(
        query_BNLH=_heads_first(query, blocks.queries),
        key_BNMH=_heads_first(key, blocks.keys),
        value_BNMH=_heads_first(value, blocks.keys),
        query_segment_B1L=padded(query_segment, blocks.queries)[:, None],
        key_segment_BML=jnp.broadcast_to(key_segment[..., None], (*key_segment.shape, _LANES)),
    )


def _heads_first(x: jax.Array, block: int) -> jax.Array:
    """Returns (B, N, L, ...) of (B, L, N, ...), padded to whole blocks."""
    return jnp.swapaxes(padded(x, block), 1, 2)


def _product(a: jax.Array, b: jax.Array, *, over: int) -> jax.Array:
    """Returns the product of two matrices over their dimensions number `over`, in float32."""
    return jax.lax.dot_general(a, b, (((over,), (over,)), ((), ())), preferred_element_type=jnp.float32)
