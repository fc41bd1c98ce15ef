"""Which pairs of blocks an attention kernel visits, seen by what a number that is none spoils.

Letters: L tokens of a row, I and J blocks of it.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.benchmarks.figures import Figure
from sora_jax.core import rng
from sora_jax.nn.flash import Kernel
from sora_jax.nn.kernels.pallas_tpu import Blocks, pallas_tpu

# One head of this width: a pair is a pair, whatever it holds.
_WIDTH = 8


def visited(kernel: Kernel, segment_L: np.ndarray, *, block: int) -> tuple[int, int]:
    """Returns how many pairs of blocks the forward pass of a row visits, and how many each half of the backward pass.

    A value that is no number spoils every product with it, however small its weight. So a block of values that is none
    spoils just those blocks of queries that visit it; likewise keys the gradient of queries, and gradients that of
    values. The backward pass goes through the pairs for queries and again for keys; the number is the mean of both.
    """
    length = len(segment_L)
    normal = rng.generator(0, "visits").normal
    query, key, value, gradient = (jnp.asarray(normal(size=(1, length, 1, _WIDTH)), jnp.float32) for _ in range(4))
    segment = jnp.asarray(segment_L, jnp.int32)[None]
    forward, backward = jax.jit(kernel.forward), jax.jit(kernel.backward)
    _, logsum = forward(query, key, value, segment, segment)

    def mixed(value):
        return forward(query, key, value, segment, segment)[0]

    def to_query(key):
        return backward(query, key, value, segment, segment, logsum, logsum, gradient)[0]

    def to_value(gradient):
        return backward(query, key, value, segment, segment, logsum, logsum, gradient)[2]

    counts = [
        _spoilt_pairs(function, array, block=block)
        for function, array in ((mixed, value), (to_query, key), (to_value, gradient))
    ]
    return counts[0], round(sum(counts[1:]) / 2)


def _spoilt_pairs(function: Callable[[jax.Array], jax.Array], array_BLNH: jax.Array, *, block: int) -> int:
    """Returns how many blocks of the result each block of the argument spoils, over all blocks."""
    total = 0
    for start in range(0, array_BLNH.shape[1], block):
        spoilt = np.isnan(function(array_BLNH.at[:, start : start + block].set(jnp.nan)))
        total += int(spoilt.reshape(-1, block * _WIDTH).any(axis=1).sum())
    return total


def visit_figures(lengths: list[int], *, block: int) -> list[Figure]:
    """Returns the pairs that the TPU kernel visits in a row of segments, interpreted, over those that it needs."""
    segment_L = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    kernel = pallas_tpu(Blocks(queries=block, keys=block, interpret=True))
    needed = sum(length**2 for length in lengths) / block**2
    figure = functools.partial(Figure, target="at most 1.3")
    forward, backward = visited(kernel, segment_L, block=block)
    what = f"pairs of blocks of {block} that the TPU kernel visits in a row of {len(lengths)} segments of "
    what += f"{min(lengths):,} to {max(lengths):,}, over the sum of n²"
    return [
        figure(name="visits_forward", value=forward / needed, meaning=f"forward: {what}"),
        figure(name="visits_backward", value=backward / needed, meaning=f"backward, each of its two passes: {what}"),
    ]
