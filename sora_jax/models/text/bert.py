"""The encoder of BERT (arXiv 1810.04805), the network of MiniLM.

Shapes: B texts, K tokens, D width, N heads, H width of a head.
"""

import dataclasses

import jax
from flax import nnx

from sora_jax.core.rng import Rngs
from sora_jax.models.text.attention import attend_text, padding_bias
from sora_jax.nn.linear import Linear, truncated_normal
from sora_jax.nn.norm import LayerNorm
from sora_jax.nn.stack import scan_blocks, stack_blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertConfig:
    """The shape of an encoder.

    Attributes:
      vocabulary: Pieces.
      positions: Tokens of a text at most.
      kinds: Of segments; a text alone is of the first.
      width: D.
      mlp_width: Hidden width of the feed-forward.
      heads: N.
      depth: Blocks.
      eps: Of the norms.
    """

    vocabulary: int
    positions: int
    kinds: int
    width: int
    mlp_width: int
    heads: int
    depth: int
    eps: float


class BertEncoder(nnx.Module):
    """Tokens -> the state of each, which knows the whole text."""

    def __init__(self, config: BertConfig, *, rngs: Rngs):
        width = config.width
        self.table, self.place, self.kind = (
            nnx.Param(truncated_normal(rngs.params(), (rows, width), 0.02), axes=(None, None))
            for rows in (config.vocabulary, config.positions, config.kinds)
        )
        self.norm = LayerNorm(width, eps=config.eps)
        self.blocks = stack_blocks(lambda r: BertBlock(config, rngs=r), config.depth, rngs)

    def __call__(self, token_BK: jax.Array, length_B: jax.Array) -> jax.Array:
        """Returns the states (B, K, D) in the dtype of the parameters; those beyond a text's length mean nothing."""
        positions = token_BK.shape[1]
        x_BKD = self.norm(self.table[...][token_BK] + self.place[...][:positions] + self.kind[...][0])
        bias = padding_bias(length_B, positions)
        return scan_blocks(self.blocks, x_BKD, lambda block, x: block(x, bias), remat="none")


class BertBlock(nnx.Module):
    """Self-attention, then a feed-forward, each normed after it is added."""

    def __init__(self, config: BertConfig, *, rngs: Rngs):
        width, inside = config.width, (None, None)
        self.to_q, self.to_k, self.to_v, self.to_out = (Linear(width, width, axes=inside, rngs=rngs) for _ in range(4))
        self.norm1, self.norm2 = (LayerNorm(width, eps=config.eps) for _ in range(2))
        self.mlp_in = Linear(width, config.mlp_width, axes=inside, rngs=rngs)
        self.mlp_out = Linear(config.mlp_width, width, axes=inside, rngs=rngs)
        self.heads = config.heads

    def __call__(self, x_BKD: jax.Array, bias: jax.Array) -> jax.Array:
        query, key, value = (to.to_heads(x_BKD, self.heads) for to in (self.to_q, self.to_k, self.to_v))
        mixed = attend_text(query, key, value, bias, scale=query.shape[-1] ** -0.5)
        x_BKD = self.norm1(x_BKD + self.to_out.from_heads(mixed))
        hidden = jax.nn.gelu(self.mlp_in(x_BKD), approximate=False)
        return self.norm2(x_BKD + self.mlp_out(hidden))
