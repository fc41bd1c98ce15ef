"""Which keys a query sees: those of its segment, and with causal attention none behind it.

Kernels are told by one int32 id for each token, 0 for padding. Without causal attention that is the segment. With it
the index in the row lies in the lower bits, so that one comparison tells who comes first and nothing more has to travel
to a block of queries, from device to device, or past a kernel's prefetched ranges.

Letters: B rows, L tokens.
"""

import jax
import jax.numpy as jnp

_INDEX_BITS = 20
LONGEST_CAUSAL = 2**_INDEX_BITS  # tokens of a row
MOST_CAUSAL = 2 ** (31 - _INDEX_BITS) - 1  # segments of a row


def causal_ids(segment_BL: jax.Array) -> jax.Array:
    """Returns the ids of causal attention, int32 (B, L), of whole rows; 0 where padding.

    Segments are at most `MOST_CAUSAL`, which cannot be seen here; a row of over `LONGEST_CAUSAL` raises ValueError.
    """
    length = segment_BL.shape[1]
    if length > LONGEST_CAUSAL:
        raise ValueError(f"causal attention over a row of {length} tokens; at most {LONGEST_CAUSAL}")
    return jnp.where(segment_BL > 0, (segment_BL << _INDEX_BITS) | jnp.arange(length, dtype=jnp.int32), 0)


def segment_of(ids: jax.Array, *, causal: bool) -> jax.Array:
    """Returns the segment of each id."""
    return ids >> _INDEX_BITS if causal else ids


def sees(query_id: jax.Array, key_id: jax.Array, *, causal: bool) -> jax.Array:
    """Returns whether each query sees each key; the ids broadcast against each other."""
    if not causal:
        return (query_id == key_id) & (key_id > 0)
    same = (query_id >> _INDEX_BITS) == (key_id >> _INDEX_BITS)
    return same & (key_id <= query_id) & (key_id > 0)
