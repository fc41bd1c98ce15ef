"""The embedded text encoder: pieces of bytes through a small transformer, trained with the model; needs no files.

Shapes: B rows, K text tokens, Q bytes of a text token, D width of the encoder.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from sora_jax.core.errors import UserError
from sora_jax.core.mesh import current_platform
from sora_jax.core.rng import Rngs
from sora_jax.core.sharding import constrain, constrain_row_major
from sora_jax.data.tokens import BYTE_TOKENIZER, BYTES_PER_TOKEN
from sora_jax.models.flops import Work
from sora_jax.models.text.encoder import TextConfig
from sora_jax.nn.activation import gelu
from sora_jax.nn.attention import attend
from sora_jax.nn.embed import sinusoid
from sora_jax.nn.linear import Linear, truncated_normal
from sora_jax.nn.norm import RMSNorm
from sora_jax.nn.stack import scan_blocks, stack_blocks

# A byte is stored as its value + 1; 0 fills the slots that a short piece leaves empty.
NUM_BYTES = 257


class ByteText:
    """The byte encoder of a config; see `models.text.encoder.TextEncoder`."""

    tokenizer = BYTE_TOKENIZER

    def __init__(self, config: TextConfig):
        """UserError where weights are given."""
        if config.weights is not None:
            raise UserError(f"text.weights {config.weights} with text.encoder 'bytes', which is trained: leave it None")
        self._config = config
        self.width = config.width

    def flops(self, work: Work) -> float:
        """Returns the FLOPs of one forward pass."""
        width = self.width
        return float(self._config.depth * (work.text_tokens * 2 * 12 * width**2 + 4 * width * work.text_squares))

    def module(self, *, remat: str, rngs: Rngs) -> "ByteEncoder":
        """Returns the encoder with fresh parameters."""
        return ByteEncoder(self._config, bytes_per_token=BYTES_PER_TOKEN, remat=remat, rngs=rngs)

    def network(self) -> None:
        """Returns None: nothing is frozen."""

    def release(self) -> None:
        """Does nothing: what is trained is no network of the encoder's own."""


class TextBlock(nnx.Module):
    """Pre-norm self-attention within the caption, then a feed-forward of four times the width."""

    def __init__(self, config: TextConfig, *, rngs: Rngs):
        width = config.width
        self.norm1 = RMSNorm(width)
        self.to_qkv = Linear(width, 3 * width, axes=("embed", "heads"), rngs=rngs)
        self.to_out = Linear(width, width, axes=("heads", "embed"), std=0.02, rngs=rngs)
        self.norm2 = RMSNorm(width)
        self.mlp_in = Linear(width, 4 * width, axes=("embed", "mlp"), rngs=rngs)
        self.mlp_out = Linear(4 * width, width, axes=("mlp", "embed"), std=0.02, rngs=rngs)
        self.heads = config.heads

    def __call__(self, x_BKD: jax.Array, segment_BK: jax.Array) -> jax.Array:
        x_BKD = constrain_row_major(x_BKD, "batch", "text", "features")
        qkv = self.to_qkv.to_heads(self.norm1(x_BKD), 3 * self.heads)
        query, key, value = jnp.split(qkv, 3, axis=2)
        mixed = attend(query, key, value, segment_BK, segment_BK, along=("text", "text"))
        x_BKD = x_BKD + self.to_out.from_heads(mixed)
        return x_BKD + self.mlp_out(gelu(self.mlp_in(self.norm2(x_BKD))))


class ByteEncoder(nnx.Module):
    """Captions as pieces of at most Q bytes -> one vector per piece.

    A piece is embedded as the sum over its slots of a table indexed by (slot, byte), so every spelling has its own
    vector and no vocabulary is needed.
    """

    def __init__(self, config: TextConfig, *, bytes_per_token: int, remat: str, rngs: Rngs):
        """`remat` is what the backward pass keeps, a key of `nn.stack.REMAT_POLICIES`."""
        shape = (bytes_per_token, NUM_BYTES, config.width)
        std = bytes_per_token**-0.5
        self.table = nnx.Param(truncated_normal(rngs.params(), shape, std), axes=(None, "vocabulary", "embed"))
        self.start = nnx.Param(truncated_normal(rngs.params(), (config.width,), 1.0), axes=("embed",))
        self.blocks = stack_blocks(lambda r: TextBlock(config, rngs=r), config.depth, rngs)
        self.norm = RMSNorm(config.width)
        self.remat = remat

    def __call__(self, pack: dict[str, jax.Array], segment_BK: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """Returns text_BKD in `dtype`.

        Args:
          pack: Of it text_BKQ, int32, byte + 1 by slot, 0 for an empty slot (a piece of only zeros starts a caption),
            and text_position_BK, int32, the position inside the caption.
          segment_BK: int32 segment of each text token, 0 for padding.
          dtype: Of the computation and the result.
        """
        text_BKQ, position_BK = pack["text_BKQ"], pack["text_position_BK"]
        x = spelled(self.table[...], text_BKQ)
        is_start = jnp.all(text_BKQ == 0, axis=-1, keepdims=True)
        x = jnp.where(is_start, self.start[...], x) + sinusoid(position_BK, x.shape[-1], max_period=1_000.0)
        x = constrain(x.astype(dtype), "batch", "text", "features")
        x = scan_blocks(self.blocks, x, lambda block, x: block(x, segment_BK), remat=self.remat)
        return self.norm(x)


def spelled(table_QVD: jax.Array, text_BKQ: jax.Array) -> jax.Array:
    """Returns the sum of a table's entries of the symbols in each piece's slots, (B, K, D) float32; 0 has none."""
    if current_platform() == "cpu":
        slots = jnp.arange(text_BKQ.shape[-1])
        return jnp.sum(table_QVD[slots, text_BKQ] * (text_BKQ > 0)[..., None], axis=-2)
    # By a product with ones and zeros: accelerators gather, and add up gradients, row by row.
    symbols = table_QVD.shape[1]
    ones_BKQV = jax.nn.one_hot(text_BKQ, symbols) * (jnp.arange(symbols) > 0)
    return jnp.einsum("BKQV,QVD->BKD", ones_BKQV, table_QVD, precision="highest")
