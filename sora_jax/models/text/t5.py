"""The encoder of the T5 family: T5 v1.1 and ByT5 (arXiv 1910.10683, 2105.13626), and UMT5, which Wan hears.

Shapes: B texts, K tokens, D width, N heads, H width of a head, F hidden width, V pieces, R buckets of distances.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sora_jax.core.rng import Rngs
from sora_jax.models.text.attention import attend_text, padding_bias
from sora_jax.nn.linear import truncated_normal
from sora_jax.nn.norm import RMSNorm
from sora_jax.nn.stack import scan_blocks, stack_blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
    """The shape of an encoder of the family.

    Attributes:
      vocabulary: V.
      width: D.
      mlp_width: F.
      heads: N.
      head_width: H.
      depth: Blocks.
      buckets: R.
      max_distance: Between two tokens, from which on the bias is the same.
      bias_in_each: Whether each block has biases of its own (UMT5), or all those of the first.
      eps: Of the norms.
    """

    vocabulary: int
    width: int
    mlp_width: int
    heads: int
    head_width: int
    depth: int
    buckets: int
    max_distance: int
    bias_in_each: bool
    eps: float


class T5Encoder(nnx.Module):
    """Tokens -> the state of each, which knows the whole text."""

    def __init__(self, config: T5Config, *, rngs: Rngs):
        self.config = config
        self.table = _param(rngs, config.vocabulary, config.width)
        self.blocks = stack_blocks(lambda r: T5Block(config, rngs=r), config.depth, rngs)
        if not config.bias_in_each:
            self.bias = _param(rngs, config.buckets, config.heads)
        self.norm = RMSNorm(config.width, eps=config.eps)

    def __call__(self, token_BK: jax.Array, length_B: jax.Array) -> jax.Array:
        """Returns the states (B, K, D) in the dtype of the parameters; those beyond a text's length mean nothing."""
        config, positions = self.config, token_BK.shape[1]
        bucket_KK = distance_buckets(positions, buckets=config.buckets, max_distance=config.max_distance)
        padding = padding_bias(length_B, positions)
        shared = None if config.bias_in_each else self.bias[...]

        def apply(block: T5Block, x_BKD: jax.Array) -> jax.Array:
            table_RN = block.bias[...] if shared is None else shared
            by_distance = jnp.moveaxis(table_RN.astype(jnp.float32)[bucket_KK], -1, 0)
            return block(x_BKD, padding + by_distance)

        return self.norm(scan_blocks(self.blocks, self.table[...][token_BK], apply, remat="none"))


class T5Block(nnx.Module):
    """Self-attention without a scale, then a gated feed-forward; no biases but those of distances."""

    def __init__(self, config: T5Config, *, rngs: Rngs):
        width, inner = config.width, config.heads * config.head_width
        self.norm1 = RMSNorm(width, eps=config.eps)
        self.to_q, self.to_k, self.to_v = (_param(rngs, inner, width) for _ in range(3))
        self.to_out = _param(rngs, width, inner)
        if config.bias_in_each:
            self.bias = _param(rngs, config.buckets, config.heads)
        self.norm2 = RMSNorm(width, eps=config.eps)
        self.mlp_gate, self.mlp_in = (_param(rngs, config.mlp_width, width) for _ in range(2))
        self.mlp_out = _param(rngs, width, config.mlp_width)
        self.heads = config.heads

    def __call__(self, x_BKD: jax.Array, bias: jax.Array) -> jax.Array:
        normed = self.norm1(x_BKD)
        heads = *normed.shape[:2], self.heads, -1
        query, key, value = (_map(normed, kernel).reshape(heads) for kernel in (self.to_q, self.to_k, self.to_v))
        mixed = attend_text(query, key, value, bias, scale=1.0)
        x_BKD = x_BKD + _map(mixed.reshape(*mixed.shape[:2], -1), self.to_out)
        normed = self.norm2(x_BKD)
        gate = jax.nn.gelu(_map(normed, self.mlp_gate), approximate=True)
        return x_BKD + _map(gate * _map(normed, self.mlp_in), self.mlp_out)


def distance_buckets(positions: int, *, buckets: int, max_distance: int) -> np.ndarray:
    """Returns which bias a query (first axis) and a key have, int32 (K, K), by how far and on which side the key is.

    Half of the buckets are for keys after the query. Of each half the first half are single distances, the rest grow
    as powers up to `max_distance`.
    """
    distance_KK = np.arange(positions)[None, :] - np.arange(positions)[:, None]
    half, exact = buckets // 2, buckets // 4
    far = np.maximum(np.abs(distance_KK), 1).astype(np.float32)
    grown = exact + (np.log(far / exact) / np.log(max_distance / exact) * (half - exact)).astype(np.int32)
    apart = np.where(np.abs(distance_KK) < exact, np.abs(distance_KK), np.minimum(grown, half - 1))
    return (apart + np.where(distance_KK > 0, half, 0)).astype(np.int32)


def _param(rngs: Rngs, rows: int, columns: int) -> nnx.Param:
    return nnx.Param(truncated_normal(rngs.params(), (rows, columns), columns**-0.5), axes=(None, None))


def _map(x: jax.Array, kernel: nnx.Param) -> jax.Array:
    """Returns the product with a kernel (out, in), which lies as in the files."""
    return jnp.einsum("...i,oi->...o", x, kernel[...])
