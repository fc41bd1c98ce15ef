"""The plain path: every query against every key, under a mask; the fastest for short rows.

Letters: B rows, L queries, M keys, N heads, H head width.
"""

import functools
import math

import jax
import jax.numpy as jnp

from sora_jax.nn.flash import NOTHING, Kernel
from sora_jax.nn.kernels.seen import sees


def dense(*, causal: bool = False) -> Kernel:
    """Returns the kernel; it holds (B, N, L, M) scores in float32, and computes them again for the gradient."""
    return Kernel(
        forward=functools.partial(_forward, causal=causal), backward=functools.partial(_backward, causal=causal)
    )


def attend_dense(
    query_BLNH: jax.Array,
    key_BMNH: jax.Array,
    value_BMNH: jax.Array,
    query_segment_BL: jax.Array,
    key_segment_BM: jax.Array,
    *,
    causal: bool = False,
) -> jax.Array:
    """Returns what `nn.attention.attend` does, with the gradient that jax derives: what kernels are compared with.

    With `causal` segments are those of `kernels.seen.causal_ids`.
    """
    return _forward(query_BLNH, key_BMNH, value_BMNH, query_segment_BL, key_segment_BM, causal=causal)[0]


def _forward(query, key, value, query_segment, key_segment, *, causal: bool) -> tuple[jax.Array, jax.Array]:
    scores_BNLM = _scores(query, key, query_segment, key_segment, causal)
    # A row without keys has maximum -inf; a number in its place keeps exp, and its gradient, finite.
    top_BNL1 = jnp.maximum(jax.lax.stop_gradient(jnp.max(scores_BNLM, axis=-1, keepdims=True)), NOTHING)
    weights_BNLM = jnp.exp(scores_BNLM - top_BNL1)
    total_BNL = jnp.sum(weights_BNLM, axis=-1)
    some_BNL = jnp.where(total_BNL > 0, total_BNL, 1.0)
    mixed_BLNH = jnp.einsum("BNLM,BMNH->BLNH", weights_BNLM.astype(value.dtype), value)
    mixed_BLNH = mixed_BLNH / jnp.swapaxes(some_BNL, 1, 2)[..., None]
    logsum_BNL = jnp.where(total_BNL > 0, top_BNL1[..., 0] + jnp.log(some_BNL), NOTHING)
    return mixed_BLNH.astype(query.dtype), jnp.swapaxes(logsum_BNL, 1, 2)


def _backward(
    query, key, value, query_segment, key_segment, logsum, delta, gradient, *, causal: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    logsum_BNL1, delta_BNL1 = (jnp.swapaxes(x, 1, 2)[..., None] for x in (logsum, delta))
    weights_BNLM = jnp.exp(_scores(query, key, query_segment, key_segment, causal) - logsum_BNL1)
    to_value = jnp.einsum("BNLM,BLNH->BMNH", weights_BNLM.astype(gradient.dtype), gradient)
    to_weights = jnp.einsum("BLNH,BMNH->BNLM", gradient, value, preferred_element_type=jnp.float32)
    to_scores = (weights_BNLM * (to_weights - delta_BNL1) / math.sqrt(query.shape[-1])).astype(query.dtype)
    to_query = jnp.einsum("BNLM,BMNH->BLNH", to_scores, key)
    return to_query, jnp.einsum("BNLM,BLNH->BMNH", to_scores, query), to_value


def _scores(query, key, query_segment, key_segment, causal: bool) -> jax.Array:
    """Returns the scores, (B, N, L, M) float32, -inf where a key is not seen."""
    scaled = query / math.sqrt(query.shape[-1])
    scores_BNLM = jnp.einsum("BLNH,BMNH->BNLM", scaled, key, preferred_element_type=jnp.float32)
    seen_BLM = sees(query_segment[:, :, None], key_segment[:, None, :], causal=causal)
    return jnp.where(seen_BLM[:, None], scores_BNLM, -jnp.inf)
