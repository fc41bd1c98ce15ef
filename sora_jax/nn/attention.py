"""The one door to attention over packed rows: each query sees the keys of its own segment only.

Shapes: B rows, L queries, M keys, N heads, H head width.
"""

import math

import jax
import jax.numpy as jnp

# Rows of queries that are scored at once: bounds the (L, M) score matrix to (CHUNK, M) per head.
CHUNK = 1024


def attend(
    query_BLNH: jax.Array,
    key_BMNH: jax.Array,
    value_BMNH: jax.Array,
    query_segment_BL: jax.Array,
    key_segment_BM: jax.Array,
) -> jax.Array:
    """Returns softmax(q k / sqrt(H)) v within segments, (B, L, N, H) in the dtype of the queries.

    Segment 0 is padding: such queries give zeros, such keys are never seen. A query whose segment has no key gives
    zeros too. Scores and softmax are float32. Rows longer than `CHUNK` are done in chunks of queries under
    rematerialisation, so no L × M matrix is ever held for a long row.

    Args:
      query_BLNH: Queries.
      key_BMNH: Keys.
      value_BMNH: Values.
      query_segment_BL: int32 segment of each query.
      key_segment_BM: int32 segment of each key.
    """
    length = query_BLNH.shape[1]
    if length <= CHUNK:
        return _attend_whole(query_BLNH, key_BMNH, value_BMNH, query_segment_BL, key_segment_BM)
    padding = -length % CHUNK

    @jax.checkpoint
    def one_chunk(args: tuple[jax.Array, jax.Array]) -> jax.Array:
        query, segment = args
        return _attend_whole(query, key_BMNH, value_BMNH, segment, key_segment_BM)

    def chunks(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, CHUNK, *x.shape[2:]), 1, 0)

    mixed = jax.lax.map(one_chunk, (chunks(query_BLNH), chunks(query_segment_BL)))
    mixed = jnp.moveaxis(mixed, 0, 1)
    return mixed.reshape(mixed.shape[0], -1, *mixed.shape[3:])[:, :length]


def _attend_whole(
    query_BLNH: jax.Array,
    key_BMNH: jax.Array,
    value_BMNH: jax.Array,
    query_segment_BL: jax.Array,
    key_segment_BM: jax.Array,
) -> jax.Array:
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
