"""JAX's own TPU kernel, splash attention, with segment ids.

It computes all blocks of a row and masks those of other segments, where `pallas_tpu` skips them; a second opinion on
speed, and a way round if the other misbehaves on some machine.

Letters: B rows, L queries, M keys, N heads, H head width.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from sora_jax.nn.kernels.ranges import have_keys, padded

# Blocks are multiples of a vector register; rows are padded to whole blocks.
_LANES, _BLOCK = 128, 512


def attend_splash(
    query_BLNH: jax.Array,
    key_BMNH: jax.Array,
    value_BMNH: jax.Array,
    query_segment_BL: jax.Array,
    key_segment_BM: jax.Array,
    *,
    causal: bool = False,
    interpret: bool = False,
) -> jax.Array:
    """Returns what `nn.attention.attend` does for whole rows; `interpret` runs it on a machine without a TPU."""
    length, heads, width = query_BLNH.shape[1:]
    block = min(_BLOCK, *(x.shape[1] + -x.shape[1] % _LANES for x in (query_BLNH, key_BMNH)))
    query, key, value = (
        jnp.swapaxes(padded(x, block), 1, 2) for x in (query_BLNH / math.sqrt(width), key_BMNH, value_BMNH)
    )
    query_segment, key_segment = padded(query_segment_BL, block), padded(key_segment_BM, block)
    shape = query.shape[2], key.shape[2]
    mask = masks.MultiHeadMask([masks.CausalMask(shape) if causal else masks.FullMask(shape)] * heads)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    kernel = splash.make_splash_mha(mask, head_shards=1, q_seq_shards=1, block_sizes=sizes, interpret=interpret)

    def one_row(query, key, value, query_segment, key_segment) -> Any:
        return kernel(query, key, value, segment_ids=splash.SegmentIds(q=query_segment, kv=key_segment))

    mixed = jax.vmap(one_row)(query.astype(query_BLNH.dtype), key, value, query_segment, key_segment)
    mixed = jnp.swapaxes(mixed, 1, 2)[:, :length]
    # Queries without a key get a mean of all values there, and padding sees padding.
    return jnp.where(have_keys(query_segment_BL, key_segment_BM)[..., None, None], mixed, 0)
