"""Attention within one text, as the public text encoders compute it: dense, with a bias of their own."""

import jax
import jax.numpy as jnp

# Added to the logits of what must not be seen: softmax gives it zero, also in bfloat16.
HIDDEN = -1e30


def attend_text(
    query_BKNH: jax.Array, key_BKNH: jax.Array, value_BKNH: jax.Array, bias: jax.Array, *, scale: float
) -> jax.Array:
    """Returns the mixed values (B, K, N, H), dtype of the query; logits and softmax are float32.

    `bias` is added to the scaled logits: (B or 1, N or 1, K or 1, K) float32.
    """
    logits = jnp.einsum("BQNH,BKNH->BNQK", query_BKNH, key_BKNH, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits * scale + bias, axis=-1).astype(value_BKNH.dtype)
    return jnp.einsum("BNQK,BKNH->BQNH", weights, value_BKNH)


def padding_bias(length_B: jax.Array, positions: int) -> jax.Array:
    """Returns the bias (B, 1, 1, K) that hides what lies beyond the true lengths."""
    seen_BK = jnp.arange(positions) < length_B[:, None]
    return jnp.where(seen_BK, 0.0, HIDDEN)[:, None, None, :]


def causal_bias(positions: int) -> jax.Array:
    """Returns the bias (1, 1, K, K) that hides later tokens."""
    return jnp.where(jnp.tri(positions, dtype=bool), 0.0, HIDDEN)[None, None]
