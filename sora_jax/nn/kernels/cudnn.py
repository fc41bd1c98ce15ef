"""Attention of packed rows by cuDNN on Hopper and later: it goes from segment to segment, both ways.

JAX wraps cuDNN's packed layout in a private module, so what is there is looked at before it is used, and the result is
compared with the plain path once per process before it is trusted (`works`).

Letters: B rows, L queries, M keys, N heads, H head width, S segments.
"""

import functools
import inspect
import math
from typing import Any

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
    from jax._src.cudnn import fused_attention_stablehlo as cudnn  # private, so only where `works` has looked at it

    segments = max(segments, 2)  # with one, JAX takes the layout for an unpacked one
    query_start_BS, query_count_BS = spans(query_segment_BL, segments)
    key_start_BS, key_count_BS = spans(key_segment_BM, segments)
    both_BS = (query_count_BS > 0) & (key_count_BS > 0)

    def lengths(count_BS: jax.Array) -> jax.Array:
        return jnp.where(both_BS, count_BS, -1)

    def offsets(start_BS: jax.Array) -> jax.Array:
        return jnp.pad(jnp.where(both_BS, start_BS, -1), ((0, 0), (0, 1)), constant_values=-1)

    seen_BL = jnp.take_along_axis(jnp.pad(both_BS, ((0, 0), (1, 0))), query_segment_BL, axis=1)[..., None, None]
    known_BM = jnp.take_along_axis(jnp.pad(both_BS, ((0, 0), (1, 0))), key_segment_BM, axis=1)[..., None, None]
    # What lies outside the segments is never written, neither in the result nor in a gradient: zeros instead.
    key_BMNH, value_BMNH = (jnp.where(known_BM, x, 0) for x in (key_BMNH, value_BMNH))
    mixed: Any = cudnn.dot_product_attention(
        jnp.where(seen_BL, query_BLNH, 0),
        key_BMNH,
        value_BMNH,
        q_seqlen=lengths(query_count_BS),
        kv_seqlen=lengths(key_count_BS),
        q_offsets=offsets(query_start_BS),
        kv_offsets=offsets(key_start_BS),
        mask_type=cudnn.MaskType.PADDING_CAUSAL if causal else cudnn.MaskType.PADDING,
        scale=1.0 / math.sqrt(query_BLNH.shape[-1]),
        qkv_layout="BTNH",
    )
    return jnp.where(seen_BL, mixed, 0)


def spans(segment_BL: jax.Array, segments: int) -> tuple[jax.Array, jax.Array]:
    """Returns where each segment starts and how many tokens it has, int32 (B, S); absent ones start at 0 and have 0."""
    member_BSL = segment_BL[:, None] == jnp.arange(1, segments + 1)[:, None]
    return jnp.argmax(member_BSL, axis=-1).astype(jnp.int32), jnp.sum(member_BSL, axis=-1, dtype=jnp.int32)


@functools.cache
def works(*, causal: bool = False) -> bool:
    """Whether this machine's cuDNN gives what the plain path gives, forward and backward; said in the log if not."""
    try:
        with jax.ensure_compile_time_eval():  # it is asked while programs are traced
            reason = _refusal() or _difference(causal)
    except Exception as error:  # whatever a driver or a private module may raise is a reason not to use them
        reason = f"{type(error).__name__}: {error}"
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
