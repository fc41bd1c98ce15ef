"""Writes the bytes of a text token, one after the other, from the vector that a larger model has of it.

Slots written apart would mix words: of "red" or "blue" they would make "rlud". So a small causal model goes over the
slots of a token, as that of MEGABYTE over the bytes of a patch (arXiv 2305.07185, section 2).

Shapes: R tokens, B rows, K text tokens, Q slots, V symbols, D width of the larger model, W of this one, N heads, H head
width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from sora_jax.core.rng import Rngs
from sora_jax.data.caption_tokens import SLOT_VALUES
from sora_jax.data.tokens import BYTES_PER_TOKEN
from sora_jax.nn.activation import gelu
from sora_jax.nn.attention import attend
from sora_jax.nn.gather import gather_level
from sora_jax.nn.linear import Linear, truncated_normal
from sora_jax.nn.norm import RMSNorm

_HEAD_WIDTH = 32  # or the width, where that is less


class Spelling(NamedTuple):
    """Tokens being written: what the larger model says of each slot, and keys and values of the slots so far."""

    slots_RQW: jax.Array
    key_RQNH: jax.Array
    value_RQNH: jax.Array


class Speller(nnx.Module):
    """One causal block over the slots of a token."""

    def __init__(self, width: int, *, local_width: int, rngs: Rngs):
        self.slots = Linear(width, BYTES_PER_TOKEN * local_width, axes=("embed", None), rngs=rngs)
        table = truncated_normal(rngs.params(), (SLOT_VALUES, local_width), 1.0)
        self.table = nnx.Param(table, axes=("vocabulary", None))
        self.norm1 = RMSNorm(local_width)
        self.to_qkv = Linear(local_width, 3 * local_width, axes=(None, None), rngs=rngs)
        self.to_out = Linear(local_width, local_width, axes=(None, None), std=0.02, rngs=rngs)
        self.norm2 = RMSNorm(local_width)
        self.mlp_in = Linear(local_width, 4 * local_width, axes=(None, None), rngs=rngs)
        self.mlp_out = Linear(4 * local_width, local_width, axes=(None, None), std=0.02, rngs=rngs)
        self.norm3 = RMSNorm(local_width)
        self.to_symbols = Linear(local_width, SLOT_VALUES, axes=(None, "vocabulary"), std=0.02, rngs=rngs)
        self.heads = max(1, local_width // _HEAD_WIDTH)

    @jax.named_scope("speller")
    def __call__(self, state_BKD: jax.Array, text_BKQ: jax.Array) -> jax.Array:
        """Returns logits_BKQV, float32, of each slot given the slots before it in `text_BKQ`, int32 symbols."""
        rows, length, slots = text_BKQ.shape
        x = self.slots(state_BKD).reshape(rows * length, slots, -1)
        before = self._embedded(text_BKQ.reshape(rows * length, slots)[:, :-1]).astype(x.dtype)
        x = x + jnp.pad(before, ((0, 0), (1, 0), (0, 0)))
        query, key, value = self._heads_of(x)
        one = jnp.ones(x.shape[:2], jnp.int32)
        mixed = attend(query, key, value, one, one, segments=1, causal=True, along=("text", "text"))
        return self._finished(x, mixed).reshape(rows, length, slots, -1)

    def begin(self, state_RD: jax.Array) -> Spelling:
        """Returns tokens of which nothing is written."""
        tokens = len(state_RD)
        slots_RQW = self.slots(state_RD).reshape(tokens, BYTES_PER_TOKEN, -1)
        nothing = jnp.zeros((*slots_RQW.shape[:2], self.heads, slots_RQW.shape[-1] // self.heads), slots_RQW.dtype)
        return Spelling(slots_RQW, nothing, nothing)

    def step(self, spelling: Spelling, symbol_R: jax.Array, slot: jax.Array | int) -> tuple[jax.Array, Spelling]:
        """Returns logits_RV, float32, of slot number `slot`, in which all tokens are.

        `symbol_R`, int32, was written into the slot before; it is not looked at for the first.
        """
        x = jax.lax.dynamic_index_in_dim(spelling.slots_RQW, slot, axis=1)
        x = x + jnp.where(slot > 0, self._embedded(symbol_R[:, None]), 0.0).astype(x.dtype)
        query, key, value = self._heads_of(x)
        key_RQNH = jax.lax.dynamic_update_slice_in_dim(spelling.key_RQNH, key, slot, axis=1)
        value_RQNH = jax.lax.dynamic_update_slice_in_dim(spelling.value_RQNH, value, slot, axis=1)
        written_RQ = jnp.broadcast_to(jnp.arange(BYTES_PER_TOKEN) <= slot, key_RQNH.shape[:2]).astype(jnp.int32)
        one_R1 = jnp.ones((len(x), 1), jnp.int32)
        mixed = attend(query, key_RQNH, value_RQNH, one_R1, written_RQ, segments=1, along=("text", "text"))
        return self._finished(x, mixed)[:, 0], Spelling(spelling.slots_RQW, key_RQNH, value_RQNH)

    def _embedded(self, symbol_RQ: jax.Array) -> jax.Array:
        """Returns the table's entries of symbols, (R, Q, W) float32."""
        found = gather_level(self.table[...][None], symbol_RQ.reshape(1, -1))
        return found.reshape(*symbol_RQ.shape, -1)

    def _heads_of(self, x_RQW: jax.Array) -> list[jax.Array]:
        """Returns queries, keys and values."""
        return jnp.split(self.to_qkv.to_heads(self.norm1(x_RQW), 3 * self.heads), 3, axis=2)

    def _finished(self, x_RQW: jax.Array, mixed_RQNH: jax.Array) -> jax.Array:
        """Returns logits_RQV of what attention gave."""
        x_RQW = x_RQW + self.to_out.from_heads(mixed_RQNH)
        x_RQW = x_RQW + self.mlp_out(gelu(self.mlp_in(self.norm2(x_RQW))))
        return self.to_symbols(self.norm3(x_RQW)).astype(jnp.float32)
