"""The tokens of captions as a captioner reads and writes them: those of a pack, and END behind each caption.

Shapes: B rows, K text tokens of a row, S segments, Q bytes of a text token.

A slot of a token holds one of the values of `data/caption_tokens.py`. A caption is START (empty slots
alone), its words, END; it ends a token early where a slot is empty.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sora_jax.data.caption_tokens import MARK, end_token
from sora_jax.diffusion import known


class CaptionTexts(NamedTuple):
    """Captions of rows; int32."""

    text_BKQ: jax.Array
    segment_BK: jax.Array  # 0 where padding
    position_BK: jax.Array  # place within the caption, START 0


def with_end(pack: dict[str, jax.Array], segments: int) -> CaptionTexts:
    """Returns the captions of a pack, each with END behind it: K + S tokens, where the pack has K.

    Segments of a row follow one another, as they do in a pack. A segment without text has no END either.
    """
    text_BKQ, segment_BK = pack["text_BKQ"], pack["text_segment_BK"]
    rows, length = segment_BK.shape
    total = length + segments
    index_K, ids_S = jnp.arange(length), jnp.arange(1, segments + 1)
    count_BS = known.count_tokens(segment_BK, segments)
    last_BS = jnp.max(jnp.where(segment_BK[:, None] == ids_S[:, None], index_K, -1), axis=-1)
    # Each END before moves what follows by one; what goes to `total` is dropped.
    place_BK = jnp.where(segment_BK > 0, index_K + segment_BK - 1, total)
    end_BS = jnp.where(count_BS > 0, last_BS + ids_S, total)
    place_BM = jnp.concatenate([place_BK, end_BS], axis=1)

    def placed(*parts: jax.Array) -> jax.Array:
        both = jnp.concatenate(parts, axis=1).astype(jnp.int32)
        empty = jnp.zeros((rows, total, *both.shape[2:]), jnp.int32)
        return empty.at[jnp.arange(rows)[:, None], place_BM].set(both, mode="drop")

    end_BSQ = jnp.broadcast_to(end_token(), (rows, segments, text_BKQ.shape[-1]))
    return CaptionTexts(
        placed(text_BKQ, end_BSQ),
        placed(segment_BK, jnp.broadcast_to(ids_S, (rows, segments))),
        placed(pack["text_position_BK"], count_BS),
    )


def is_start(text_BKQ: jax.Array) -> jax.Array:
    """Returns whether each token is START, bool (B, K); padding is as START."""
    return jnp.all(text_BKQ == 0, axis=-1)


def is_end(text_BKQ: jax.Array) -> jax.Array:
    """Returns whether each token is END, bool (B, K)."""
    return text_BKQ[..., 0] == MARK


def asked_slots(text_BKQ: jax.Array) -> jax.Array:
    """Returns which slots of a token say something, bool (B, K, Q): up to the first empty one, and of END the first."""
    goes_on_BKQ = (text_BKQ > 0) & (text_BKQ < MARK)
    before_BKQ = jnp.cumprod(goes_on_BKQ[..., :-1].astype(jnp.int32), axis=-1) > 0
    return jnp.pad(before_BKQ, ((0, 0), (0, 0), (1, 0)), constant_values=True)


def digest_captions(texts: CaptionTexts, segments: int) -> jax.Array:
    """Returns a number of each segment's caption, uint32 (B, S), equal for equal captions; 0 where there is none.

    Two others have the same one in 4e9 pairs.
    """
    odd = jnp.uint32(0x9E3779B1)
    text_BKQ = texts.text_BKQ.astype(jnp.uint32)
    token_BK = jnp.zeros(text_BKQ.shape[:2], jnp.uint32)
    for slot in range(text_BKQ.shape[-1]):
        token_BK = _mixed(token_BK * odd + text_BKQ[..., slot])
    token_BK = _mixed(token_BK + texts.position_BK.astype(jnp.uint32) * odd)
    member_BSK = texts.segment_BK[:, None] == jnp.arange(1, segments + 1)[:, None]
    return jnp.sum(jnp.where(member_BSK, token_BK[:, None], jnp.uint32(0)), axis=-1, dtype=jnp.uint32)


def _mixed(x: jax.Array) -> jax.Array:
    """Returns uint32 numbers whose every bit depends on every bit of `x` (the finaliser of MurmurHash3)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
