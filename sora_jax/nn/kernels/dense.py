"""The plain path: every query against every key, under a mask.

Letters: B rows, L queries, M keys, N heads, H head width.
"""

import math

import jax
import jax.numpy as jnp


def attend_dense(
    query_BLNH: jax.Array,
    key_BMNH: jax.Array,
    value_BMNH: jax.Array,
    query_segment_BL: jax.Array,
    key_segment_BM: jax.Array,
) -> jax.Array:
    """Returns what `nn.attention.attend` does, holding (B, N, L, M) scores in float32; the fastest for short rows."""
    scale = 1.0 / math.sqrt(query_BLNH.shape[-1])
    scores = jnp.einsum("BLNH,BMNH->BNLM", query_BLNH * scale, key_BMNH, preferred_element_type=jnp.float32)
    seen = (query_segment_BL[:, :, None] == key_segment_BM[:, None, :]) & (key_segment_BM[:, None, :] > 0)
    scores = jnp.where(seen[:, None], scores, -jnp.inf)
    # A row without keys has maximum -inf; 0 in its place keeps exp, and its gradient, finite.
    top = jnp.maximum(jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)), -1e30)
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1)
    mixed = jnp.einsum("BNLM,BMNH->BLNH", weights.astype(value_BMNH.dtype), value_BMNH)
    total = jnp.moveaxis(jnp.where(total > 0, total, 1.0), 1, 2)[..., None]
    return (mixed / total).astype(query_BLNH.dtype)
