"""The text tower of CLIP (arXiv 2103.00020).

Shapes: B texts, K tokens, D width, N heads, H width of a head.
"""

import dataclasses
from typing import Literal

import jax
from flax import nnx

from sora_jax.core.rng import Rngs
from sora_jax.models.text.attention import attend_text, causal_bias
from sora_jax.nn.linear import Linear, truncated_normal
from sora_jax.nn.norm import LayerNorm
from sora_jax.nn.stack import scan_blocks, stack_blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipTextConfig:
    """The shape of a tower.

    Attributes:
      vocabulary: Pieces.
      positions: Tokens of a text at most.
      width: D.
      mlp_width: Hidden width of the feed-forward.
      heads: N.
      depth: Blocks.
      activation: "quick_gelu", x sigmoid(1.702 x), as OpenAI's weights have it, or "gelu".
      eps: Of the norms.
    """

    vocabulary: int
    positions: int
    width: int
    mlp_width: int
    heads: int
    depth: int
    activation: Literal["quick_gelu", "gelu"]
    eps: float


class ClipText(nnx.Module):
    """Tokens -> the state of each after the last norm; it knows the text up to its token."""

    def __init__(self, config: ClipTextConfig, *, rngs: Rngs):
        self.table, self.place = (
            nnx.Param(truncated_normal(rngs.params(), (rows, config.width), 0.02), axes=(None, None))
            for rows in (config.vocabulary, config.positions)
        )
        self.blocks = stack_blocks(lambda r: ClipTextBlock(config, rngs=r), config.depth, rngs)
        self.norm = LayerNorm(config.width, eps=config.eps)

    def __call__(self, token_BK: jax.Array, length_B: jax.Array) -> jax.Array:
        """Returns the states (B, K, D) in the dtype of the parameters; those beyond a text's length mean nothing."""
        del length_B  # what comes later is never seen
        positions = token_BK.shape[1]
        x_BKD = self.table[...][token_BK] + self.place[...][:positions]
        bias = causal_bias(positions)
        return self.norm(scan_blocks(self.blocks, x_BKD, lambda block, x: block(x, bias), remat="none"))


class ClipTextBlock(nnx.Module):
    """Self-attention, then a feed-forward, each normed before."""

    def __init__(self, config: ClipTextConfig, *, rngs: Rngs):
        width, inside = config.width, (None, None)
        self.norm1, self.norm2 = (LayerNorm(width, eps=config.eps) for _ in range(2))
        self.to_q, self.to_k, self.to_v, self.to_out = (Linear(width, width, axes=inside, rngs=rngs) for _ in range(4))
        self.mlp_in = Linear(width, config.mlp_width, axes=inside, rngs=rngs)
        self.mlp_out = Linear(config.mlp_width, width, axes=inside, rngs=rngs)
        self.heads, self.activation = config.heads, config.activation

    def __call__(self, x_BKD: jax.Array, bias: jax.Array) -> jax.Array:
        normed = self.norm1(x_BKD)
        query, key, value = (to.to_heads(normed, self.heads) for to in (self.to_q, self.to_k, self.to_v))
        mixed = attend_text(query, key, value, bias, scale=query.shape[-1] ** -0.5)
        x_BKD = x_BKD + self.to_out.from_heads(mixed)
        hidden = self.mlp_in(self.norm2(x_BKD))
        if self.activation == "quick_gelu":
            hidden = hidden * jax.nn.sigmoid(1.702 * hidden)
        else:
            hidden = jax.nn.gelu(hidden, approximate=False)
        return x_BKD + self.mlp_out(hidden)
