"""Attention whose gradient is computed from what a kernel keeps, on one device or in a ring of devices.

A kernel gives the mixed values and, for each query, the logarithm of the sum of its weights. These two merge parts that
were computed apart (arXiv 2205.14135, section 3.1). So keys and values may stay on the devices of a mesh axis and be
passed around with their segment ids (ring attention, arXiv 2310.01889): no device holds a whole row.

Letters: B rows, L queries, M keys, N heads, H head width.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from sora_jax.nn.single_row import by_token

# The logarithm of the sum of no weights; finite, so that differences of two are.
NOTHING = -1e30
# What a remat policy may keep by this name: the results, without which attention is computed twice.
KEPT = "attention"

KeyPart = tuple[jax.Array, jax.Array, jax.Array]  # keys, values, their segments


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel:
    """Two functions that compute attention within segments; segment 0 is padding.

    Attributes:
      forward: (query, key, value, query_segment, key_segment) -> mixed_BLNH in the dtype of the queries and
        logsum_BLN float32, `NOTHING` and zeros for queries without keys.
      backward: (query, key, value, query_segment, key_segment, logsum_BLN, delta_BLN, gradient_BLNH) -> gradients of
        query, key and value, float32 or in their dtypes. `delta` is the sum over H of gradient and mixed values;
        `logsum` and `delta` may be those of all keys of a row, of which `key` is a part.
    """

    forward: Callable[..., tuple[jax.Array, jax.Array]]
    backward: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def flash(
    kernel: Kernel,
    axis: str | None,
    query_BLNH: jax.Array,
    key_BMNH: jax.Array,
    value_BMNH: jax.Array,
    query_segment_BL: jax.Array,
    key_segment_BM: jax.Array,
) -> jax.Array:
    """Returns attention within segments, (B, L, N, H) in the dtype of the queries.

    With a mesh `axis`, under `jax.shard_map`, the keys of all its devices are seen: each device keeps its queries and
    passes keys, values and segments to the next one, the next part being on its way while one is computed.
    """
    return _forward(kernel, axis, query_BLNH, (key_BMNH, value_BMNH, key_segment_BM), query_segment_BL)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def flash_with_logsum(
    kernel: Kernel,
    axis: str | None,
    query_BLNH: jax.Array,
    key_BMNH: jax.Array,
    value_BMNH: jax.Array,
    query_segment_BL: jax.Array,
    key_segment_BM: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns what `flash` does and logsum_BLN, float32, for `merge` with other keys; both have gradients."""
    return _forward(kernel, axis, query_BLNH, (key_BMNH, value_BMNH, key_segment_BM), query_segment_BL)


def _forward(
    kernel: Kernel, axis: str | None, query: jax.Array, part: KeyPart, query_segment: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns (mixed_BLNH, logsum_BLN)."""

    def on(part: KeyPart) -> tuple[jax.Array, jax.Array]:
        key, value, key_segment = part
        return kernel.forward(query, key, value, query_segment, key_segment)

    if axis is None:
        return on(part)

    def turn(carry: Any, _: None) -> tuple[Any, None]:
        part, mixed, logsum = carry
        coming = _pass_on(part, axis)
        return (coming, *merge(mixed, logsum, *on(part))), None

    nothing = jnp.zeros(query.shape, jnp.float32), jnp.full(query.shape[:3], NOTHING, jnp.float32)
    (part, mixed, logsum), _ = jax.lax.scan(turn, (part, *nothing), length=jax.lax.axis_size(axis) - 1)
    mixed, logsum = merge(mixed, logsum, *on(part))
    return mixed.astype(query.dtype), logsum


def merge(
    mixed: jax.Array, logsum: jax.Array, other_mixed: jax.Array, other_logsum: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the attention over two sets of keys from those over each; float32."""
    both = jnp.logaddexp(logsum, other_logsum)
    mixed = mixed * jnp.exp(logsum - both)[..., None]
    return mixed + other_mixed.astype(jnp.float32) * jnp.exp(other_logsum - both)[..., None], both


def _pass_on(tree: Any, axis: str) -> Any:
    """Returns what the device before this one along `axis` had."""
    size = jax.lax.axis_size(axis)
    return jax.lax.ppermute(tree, axis, [(device, (device + 1) % size) for device in range(size)])


def _flash_forward(kernel: Kernel, axis: str | None, query: jax.Array, key: jax.Array, value: jax.Array, *segments):
    query_segment, key_segment = segments
    mixed, logsum = _forward(kernel, axis, query, (key, value, key_segment), query_segment)
    mixed, logsum = checkpoint_name(mixed, KEPT), checkpoint_name(logsum, KEPT)
    return mixed, (query, key, value, query_segment, key_segment, mixed, logsum)


def _product_sum(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.sum(a.astype(jnp.float32) * b.astype(jnp.float32), axis=-1)


def _flash_backward(kernel: Kernel, axis: str | None, kept: tuple[jax.Array, ...], gradient: jax.Array):
    return _gradients(kernel, axis, kept, gradient, by_token(_product_sum, gradient, kept[-2]))


def _logsum_forward(kernel: Kernel, axis: str | None, *arrays: jax.Array):
    mixed, kept = _flash_forward(kernel, axis, *arrays)
    return (mixed, kept[-1]), kept


def _logsum_backward(kernel: Kernel, axis: str | None, kept: tuple[jax.Array, ...], gradients: tuple[jax.Array, ...]):
    to_mixed, to_logsum = gradients
    # A score's gradient is weight x (gradient . value - delta); that of the logsum by a score is its weight.
    return _gradients(kernel, axis, kept, to_mixed, by_token(_product_sum, to_mixed, kept[-2]) - to_logsum)


def _gradients(
    kernel: Kernel, axis: str | None, kept: tuple[jax.Array, ...], gradient: jax.Array, delta: jax.Array
) -> tuple[jax.Array | None, ...]:
    query, key, value, query_segment, key_segment, _, logsum = kept

    def on(part: KeyPart) -> tuple[jax.Array, jax.Array, jax.Array]:
        key, value, key_segment = part
        return kernel.backward(query, key, value, query_segment, key_segment, logsum, delta, gradient)

    part = key, value, key_segment
    if axis is None:
        gradients = on(part)
    else:

        def turn(carry: Any, _: None) -> tuple[Any, None]:
            part, to_query, to_part = carry
            coming = _pass_on(part, axis)
            more, *to_this = on(part)
            to_part = jax.tree.map(jnp.add, to_part, tuple(to_this))
            # What is gathered for a part travels with it, and is home again after the whole round.
            return (coming, to_query + more, _pass_on(to_part, axis)), None

        zeros = [jnp.zeros(x.shape, jnp.float32) for x in (query, key, value)]
        carry = part, zeros[0], (zeros[1], zeros[2])
        (part, to_query, to_part), _ = jax.lax.scan(turn, carry, length=jax.lax.axis_size(axis) - 1)
        more, *to_this = on(part)
        to_part = _pass_on(jax.tree.map(jnp.add, to_part, tuple(to_this)), axis)
        gradients = to_query + more, *to_part
    typed = (to.astype(x.dtype) for to, x in zip(gradients, (query, key, value), strict=True))
    return *typed, None, None


flash.defvjp(_flash_forward, _flash_backward)
flash_with_logsum.defvjp(_logsum_forward, _logsum_backward)
