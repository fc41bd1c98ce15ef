"""Attention of packed rows by cuDNN on Hopper and later: it goes from segment to segment, both ways.

JAX wraps cuDNN's packed layout in a private module, so what is there is looked at before it is used, and the result is
compared with the plain path once per process before it is trusted (`works`).

Letters: B rows, L queries, M keys, N heads, H head width, S segments.
"""

import functools
import inspect
import math
import threading
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from sora_jax.nn.kernels.dense import attend_dense
from sora_jax.nn.kernels.seen import causal_ids

# Arguments of the private function that this module passes; 0.12 has others.
_NEEDED = ("q_seqlen", "kv_seqlen", "q_offsets", "kv_offsets", "mask_type", "scale", "qkv_layout")
# Head widths that cuDNN takes, forward and backward.
_WIDEST, _MULTIPLE = 256, 8
# Relative error of bfloat16 results against the plain path; a leak between segments is far above it.
_TOLERANCE = 0.03


def takes(query_BLNH: jax.Array) -> bool:
    """Whether cuDNN computes attention of this dtype and head width."""
    width = query_BLNH.shape[-1]
    return query_BLNH.dtype in (jnp.bfloat16, jnp.float16) and width % _MULTIPLE == 0 and width <= _WIDEST


def attend_cudnn(
    query_BLNH: jax.Array,
    key_BMNH: jax.Array,
    value_BMNH: jax.Array,
    query_segment_BL: jax.Array,
    key_segment_BM: jax.Array,
    *,
    segments: int,
    causal: bool = False,
) -> jax.Array:
    """Returns what `nn.attention.attend` does, for segments that are each in one piece, as in a pack.

    `segments` is the largest id that occurs. bfloat16 or float16, H a multiple of 8 up to 256. With `causal` queries
    and keys are of the same tokens.
    """
    segments = max(segments, 2)  # with one, JAX takes the layout for an unpacked one
    query_start_BS, query_count_BS = spans(query_segment_BL, segments)
    key_start_BS, key_count_BS = spans(key_segment_BM, segments)
    both_BS = (query_count_BS > 0) & (key_count_BS > 0)

    def lengths(count_BS: jax.Array) -> jax.Array:
        return jnp.where(both_BS, count_BS, -1)

    def offsets(start_BS: jax.Array) -> jax.Array:
        return jnp.pad(jnp.where(both_BS, start_BS, -1), ((0, 0), (0, 1)), constant_values=-1)

    some_BS = jnp.pad(both_BS, ((0, 0), (1, 0)))
    places = _Places(
        query_inside_BL=jnp.take_along_axis(some_BS, query_segment_BL, axis=1),
        key_inside_BM=jnp.take_along_axis(some_BS, key_segment_BM, axis=1),
        lengths=(lengths(query_count_BS), lengths(key_count_BS)),
        offsets=(offsets(query_start_BS), offsets(key_start_BS)),
    )
    return _attend(causal, query_BLNH, key_BMNH, value_BMNH, places)


class _Places(NamedTuple):
    """Which tokens are in a segment that has queries and keys, and where such segments lie, as cuDNN is told."""

    query_inside_BL: jax.Array
    key_inside_BM: jax.Array
    lengths: tuple[jax.Array, jax.Array]
    offsets: tuple[jax.Array, jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(causal: bool, query: jax.Array, key: jax.Array, value: jax.Array, places: _Places) -> jax.Array:
    """Returns attention within segments, zeros outside.

    What lies outside is never written, neither in the result nor in a gradient: zeros instead. What is read there must
    be finite, and counts nothing; with a gradient of its own nothing need be zeroed that is only read.
    """
    return _zeros_outside(places.query_inside_BL, _call(causal, places, query, key, value))


def _attend_forward(causal: bool, query: jax.Array, key: jax.Array, value: jax.Array, places: _Places):
    mixed, pull = jax.vjp(functools.partial(_call, causal, places), query, key, value)
    return _zeros_outside(places.query_inside_BL, mixed), (pull, places.query_inside_BL, places.key_inside_BM)


def _attend_backward(_: bool, kept: tuple[Any, jax.Array, jax.Array], gradient: jax.Array):
    pull, query_inside, key_inside = kept
    inside = query_inside, key_inside, key_inside
    return *(_zeros_outside(*pair) for pair in zip(inside, pull(gradient), strict=True)), None


_attend.defvjp(_attend_forward, _attend_backward)


def _call(causal: bool, places: _Places, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    from jax._src.cudnn import fused_attention_stablehlo as cudnn  # private, so only where `works` has looked at it

    mixed: Any = cudnn.dot_product_attention(
        query,
        key,
        value,
        q_seqlen=places.lengths[0],
        kv_seqlen=places.lengths[1],
        q_offsets=places.offsets[0],
        kv_offsets=places.offsets[1],
        mask_type=cudnn.MaskType.PADDING_CAUSAL if causal else cudnn.MaskType.PADDING,
        scale=1.0 / math.sqrt(query.shape[-1]),
        qkv_layout="BTNH",
    )
    return mixed


def _zeros_outside(inside_BL: jax.Array, x_BLNH: jax.Array) -> jax.Array:
    # Tied to x: what is the same for all blocks jax takes out of the loop over them, here two arrays as large as x.
    inside_BL, zero, x = jax.lax.optimization_barrier((inside_BL, jnp.zeros((), x_BLNH.dtype), x_BLNH))
    return jnp.where(inside_BL[..., None, None], x, zero)


def spans(segment_BL: jax.Array, segments: int) -> tuple[jax.Array, jax.Array]:
    """Returns where each segment starts and how many tokens it has, int32 (B, S); absent ones start at 0 and have 0."""
    member_BSL = segment_BL[:, None] == jnp.arange(1, segments + 1)[:, None]
    return jnp.argmax(member_BSL, axis=-1).astype(jnp.int32), jnp.sum(member_BSL, axis=-1, dtype=jnp.int32)


@functools.cache
def works(*, causal: bool = False) -> bool:
    """Whether this machine's cuDNN gives what the plain path gives, forward and backward; said in the log if not."""
    reasons = []

    def look() -> None:
        try:
            reasons.append(_refusal() or _difference(causal))
        except Exception as error:  # whatever a driver or a private module may raise is a reason not to use them
            reasons.append(f"{type(error).__name__}: {error}")

    # It is asked while programs are traced; in a thread of its own nothing is. (jax.ensure_compile_time_eval cannot be
    # had around custom_partitioning, which cuDNN's call is made with.)
    asked = threading.Thread(target=look)
    asked.start()
    asked.join()
    (reason,) = reasons
    if reason:
        logging.warning("attention: cuDNN's packed layout is not used: %s", reason)
    return not reason


def _refusal() -> str:
    """Returns why the private function cannot be called, or nothing."""
    if jax.default_backend() != "gpu":
        return f"the platform is {jax.default_backend()}, not a GPU"
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    missing = [name for name in _NEEDED if name not in inspect.signature(cudnn.dot_product_attention).parameters]
    if missing:
        return f"jax {jax.__version__} has no {', '.join(missing)} there"
    capability = float(jax.devices()[0].compute_capability)
    return "" if capability >= 9 else f"it needs compute capability 9.0 (Hopper), this GPU has {capability}"


def _difference(causal: bool) -> str:
    """Returns by how much results or gradients of two rows of segments are off, or nothing."""
    rng = np.random.default_rng(0)
    keys = 256 if causal else 192
    shapes = ((2, 256, 2, 64), (2, keys, 2, 64), (2, keys, 2, 64))
    arrays = [jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in shapes]
    # The second row has a segment without keys, and padding on both sides.
    query_segment = np.stack([np.repeat([1, 2, 3], [100, 28, 128]), np.repeat([1, 2, 3, 0], [64, 64, 40, 88])])
    key_segment = np.stack([np.repeat([1, 2, 3], [64, 64, 64]), np.repeat([1, 3, 0], [30, 100, 62])])
    segment = jnp.asarray(query_segment, jnp.int32)
    segments = (segment, segment) if causal else (segment, jnp.asarray(key_segment, jnp.int32))
    ids = (causal_ids(segment), causal_ids(segment)) if causal else segments

    def results(attend, told) -> list[np.ndarray]:
        def loss(*arrays):
            mixed = attend(*arrays, *told)
            return jnp.sum(jnp.sin(mixed.astype(jnp.float32))), mixed

        (_, mixed), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*arrays)
        return [np.asarray(x, np.float32) for x in (mixed, *gradients)]

    found = results(functools.partial(attend_cudnn, segments=3, causal=causal), segments)
    expected = results(functools.partial(attend_dense, causal=causal), ids)
    for name, a, b in zip(("result", "query", "key", "value"), found, expected, strict=True):
        error = float(np.abs(a - b).max() / np.abs(b).max())
        if not error <= _TOLERANCE:
            return f"its {name} is off by {error:.3g} of the largest value, where {_TOLERANCE} is allowed"
    return ""
