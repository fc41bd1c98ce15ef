"""Which values a captioner may write in a slot of a token: what is then read is whole words of valid UTF-8.

Letters: N captions that are written, V values of a slot (`data.caption_tokens`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.data.caption_tokens import MARK, SLOT_VALUES
from sora_jax.data.tokens import BYTES_PER_TOKEN

# Bytes that follow the first of a character (Unicode 15, table 3-7), by state: 0 is between characters. A state is the
# range of the next byte and the state after it.
_FOLLOW = {
    1: (0x80, 0xBF, 0),
    2: (0x80, 0xBF, 1),
    3: (0x80, 0xBF, 2),
    4: (0xA0, 0xBF, 1),  # after E0: what shorter forms can say is not said so
    5: (0x80, 0x9F, 1),  # after ED: no halves of surrogate pairs
    6: (0x90, 0xBF, 2),  # after F0: as after E0
    7: (0x80, 0x8F, 2),  # after F4: nothing beyond the last character
}
# Ranges of first bytes, and the state after them. ASCII that cannot be seen parts words or is cleaned away.
_FIRST = [(0x21, 0x7E, 0), (0xC2, 0xDF, 1), (0xE0, 0xE0, 4), (0xE1, 0xEC, 2), (0xED, 0xED, 5), (0xEE, 0xEF, 2)]
_FIRST += [(0xF0, 0xF0, 6), (0xF1, 0xF3, 3), (0xF4, 0xF4, 7)]


def _make_following() -> np.ndarray:
    """Returns the state after each value in each state, int32 (states, V); -1 where it may not be written."""
    table = np.full((1 + len(_FOLLOW), SLOT_VALUES), -1, np.int32)
    ranges = [(0, *one) for one in _FIRST] + [(state, *one) for state, one in _FOLLOW.items()]
    for state, low, high, after in ranges:
        table[state, low + 1 : high + 2] = after
    return table


_FOLLOWING = _make_following()
_IS_BYTE = (np.arange(SLOT_VALUES) > 0) & (np.arange(SLOT_VALUES) < MARK)


class WordState(NamedTuple):
    """Where each caption is within its words.

    Attributes:
      character_N: int32 state of the character that is being written, 0 between characters.
      goes_on_N: Whether the word began in an earlier token.
      word_over_N: Whether nothing but 0 follows in this token.
      done_N: Whether END is written: nothing but 0 follows at all.
    """

    character_N: jax.Array
    goes_on_N: jax.Array
    word_over_N: jax.Array
    done_N: jax.Array


def nothing_written(count: int) -> WordState:
    """Returns the beginning of so many captions."""
    no = jnp.zeros(count, bool)
    return WordState(character_N=jnp.zeros(count, jnp.int32), goes_on_N=no, word_over_N=no, done_N=no)


def may_follow(written: WordState, slot: jax.Array) -> jax.Array:
    """Returns which values may be written in the slot, bool (N, V); there is always one."""
    after_NV = jnp.asarray(_FOLLOWING)[written.character_N]
    first, last = slot == 0, slot == BYTES_PER_TOKEN - 1
    # A word that fills its token is over with it: its last character must be whole.
    may_NV = (after_NV >= 0) & (~last | (after_NV == 0))
    between_N = written.character_N == 0
    ends_N = between_N & ~first
    # The first slot of a caption's own word may be END, the last of any token may say that the word goes on.
    marks_N = jnp.where(first, ~written.goes_on_N, last)
    may_NV = may_NV.at[:, 0].set(ends_N).at[:, MARK].set(marks_N)
    only_zero_V = jnp.arange(SLOT_VALUES) == 0
    over_N = written.word_over_N | written.done_N
    return jnp.where(over_N[:, None], only_zero_V, may_NV)


def write_value(written: WordState, value_N: jax.Array, slot: jax.Array) -> WordState:
    """Returns where captions are after a value that may follow; after the last slot the next token begins."""
    first, last = slot == 0, slot == BYTES_PER_TOKEN - 1
    is_byte_N = jnp.asarray(_IS_BYTE)[value_N]
    after_N = jnp.asarray(_FOLLOWING)[written.character_N, value_N]
    done_N = written.done_N | (first & (value_N == MARK))
    over_N = written.word_over_N | (value_N == 0) | done_N
    return WordState(
        character_N=jnp.where(is_byte_N, after_N, written.character_N),
        goes_on_N=jnp.where(last, (value_N == MARK) & ~over_N, written.goes_on_N),
        word_over_N=over_N & ~last,
        done_N=done_N,
    )
