"""What a text encoder is, to those who train, sample, plan and prepare with one.

Shapes: B rows, K text tokens, E width of the encoder.
"""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from sora_jax.core.rng import Rngs
from sora_jax.data.tokens import Tokenizer
from sora_jax.models.flops import TextCost

# The arrays of a pack, int32 segment_BK (0 hides a text token), the dtype of computation and result -> text_BKE.
Encode = Callable[[dict[str, jax.Array], jax.Array, jnp.dtype], jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The text encoder and the length of captions; see `configs/base.py`.

    Attributes:
      encoder: A key of `models.text.ENCODERS`.
      weights: Where those of a frozen one lie; None for one that is trained, or whose weights a package brings.
      width: Of one that is trained with the model.
      depth: Blocks of the same.
      heads: Attention heads of the same.
      max_tokens: Text tokens of a caption at most.
    """

    encoder: str
    weights: str | None
    width: int
    depth: int
    heads: int
    max_tokens: int


class TextEncoder(TextCost, Protocol):
    """A text encoder as a config asks for it, before it has parameters: `width` is E, `flops` are those of training."""

    @property
    def tokenizer(self) -> Tokenizer:
        """What makes the arrays that the encoder reads."""
        ...

    def module(self, *, remat: str, rngs: Rngs) -> Encode:
        """Returns what encodes a pack, an `nnx.Module`: it has what is trained with the transformer.

        `remat` is what the backward pass keeps, a key of `nn.stack.REMAT_POLICIES`.
        """
        ...

    def network(self) -> Callable[[jax.Array], nnx.Module] | None:
        """Returns key -> the frozen network, int32 token_BK and length_B -> states; None where none is, or is known.

        Where no weights are given it is of the shape of those that most people use, to be planned with.
        """
        ...

    def release(self) -> None:
        """Lets go of a frozen network, which `encode` loads again when it is asked for a text that it does not know."""
        ...
