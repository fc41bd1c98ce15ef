"""Attention of a block: to the tokens of a segment, or to its text and to what is seen besides.

Shapes: B rows, L tokens, M context or image tokens, D width, N heads, H head width.
"""

import functools
from typing import NamedTuple

import jax
from flax import nnx

from sora_jax.core.rng import Rngs
from sora_jax.nn import rope
from sora_jax.nn.attention import Alone, Repeated, attend, attend_but_alone
from sora_jax.nn.flash import KeyPart
from sora_jax.nn.linear import Linear
from sora_jax.nn.norm import RMSNorm


class Padding(NamedTuple):
    """The zeros that texts are padded with: one token of each segment, counted as often as the segment has it."""

    zero_11D: jax.Array  # its embedding
    log_count_BL: jax.Array  # float32 logarithm of how many of them each token sees


class ImageTokens(NamedTuple):
    """Tokens of given images, projected, and the int32 segment of each."""

    image_BMD: jax.Array
    segment_BM: jax.Array


class Beside(NamedTuple):
    """What attention to the text sees besides the text."""

    padding: Padding | None
    image: ImageTokens | None


class Attention(nnx.Module):
    """Multi-head attention with RMS norm over all heads of queries and of keys."""

    def __init__(self, width: int, *, heads: int, backend: str, exchange: str, context: str, image: bool, rngs: Rngs):
        """`context` is the logical axis of the keys; with `image` there are also keys of tokens of images."""
        self.to_q = Linear(width, width, axes=("embed", "heads"), rngs=rngs)
        self.to_k = Linear(width, width, axes=("embed", "heads"), rngs=rngs)
        self.to_v = Linear(width, width, axes=("embed", "heads"), rngs=rngs)
        self.to_out = Linear(width, width, axes=("heads", "embed"), rngs=rngs)
        self.norm_q = RMSNorm(width)
        self.norm_k = RMSNorm(width)
        self.add_k_proj = Linear(width, width, axes=("embed", "heads"), rngs=rngs) if image else None
        self.add_v_proj = Linear(width, width, axes=("embed", "heads"), rngs=rngs) if image else None
        self.norm_added_k = RMSNorm(width) if image else None
        self.heads, self.backend, self.exchange = heads, backend, exchange
        self.along = ("length", context)

    def __call__(
        self,
        x_BLD: jax.Array,
        context_BMD: jax.Array,
        segment_BL: jax.Array,
        context_segment_BM: jax.Array,
        rotation: tuple[jax.Array, jax.Array] | None,
        *,
        segments: int | None,
        beside: Beside | None = None,
        alone: Alone | None = None,
        further: KeyPart | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Returns (x_BLD with what it saw, keys and values of the context (B, M, N, H)).

        With `alone`, as of `attend_but_alone`, the context is the tokens themselves, and nothing else is seen. Keys
        that are `further` are seen with those of the context.
        """
        heads = self.heads
        query = self.norm_q(self.to_q.to_heads(x_BLD, heads))
        key = self.norm_k(self.to_k.to_heads(context_BMD, heads))
        if rotation is not None:
            query, key = rope.rotate(query, rotation), rope.rotate(key, rotation)
        options = {"segments": segments, "along": self.along, "backend": self.backend, "exchange": self.exchange}
        attend_to = functools.partial(attend, **options)
        repeated = None if beside is None or beside.padding is None else self._repeated(beside.padding)
        value = self.to_v.to_heads(context_BMD, heads)
        if alone is None:
            mixed = attend_to(query, key, value, segment_BL, context_segment_BM, repeated=repeated, further=further)
        else:
            mixed = attend_but_alone(query, key, value, segment_BL, alone, **options)
        if beside is not None and beside.image is not None:
            # Of their own softmax, and added.
            mixed = mixed + attend_to(query, *self._image(beside.image), segment_BL, beside.image.segment_BM)
        return self.to_out.from_heads(mixed), (key, value)

    def _repeated(self, padding: Padding) -> Repeated:
        """Returns the key of the zeros that texts are padded with."""
        return Repeated(
            key_NH=self.norm_k(self.to_k.to_heads(padding.zero_11D, self.heads))[0, 0],
            value_NH=self.to_v.to_heads(padding.zero_11D, self.heads)[0, 0],
            log_count_BL=padding.log_count_BL,
        )

    def _image(self, image: ImageTokens) -> tuple[jax.Array, jax.Array]:
        """Returns keys and values of the tokens of images, (B, M, N, H)."""
        assert self.add_k_proj is not None
        assert self.add_v_proj is not None
        assert self.norm_added_k is not None
        key = self.norm_added_k(self.add_k_proj.to_heads(image.image_BMD, self.heads))
        return key, self.add_v_proj.to_heads(image.image_BMD, self.heads)
