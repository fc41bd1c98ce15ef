"""Captions as a captioner reads and writes them: byte patches of which the very text can be told again, with an end.

Letters: k tokens, Q bytes of a token.

A generator only reads, so `data.tokens.ByteTokenizer` may cut long words without a mark: "triangle" and the beginning
of "triangles" are the same token. What is written must say whether a word goes on, and where the caption ends.
Words of up to Q bytes are the same tokens in both.
"""

import types
from collections.abc import Sequence

import numpy as np

from sora_jax.data.tokens import BYTES_PER_TOKEN, Text, clean_caption

# A value of a slot that is no byte. In the last slot: the word goes on in the next token. In the first: END, the token
# after the last word of a caption, whose other slots are 0.
MARK = 257
# Values of a slot: 0 after the last byte of a word, byte + 1, and `MARK`.
SLOT_VALUES = 258


class CaptionTokenizer:
    """Words in patches of at most Q bytes, then END; see `data.tokens.Tokenizer`."""

    recipe = types.MappingProxyType({"text_encoder": f"caption patches of {BYTES_PER_TOKEN}, version 1"})
    cost = f"a word costs one token for every {BYTES_PER_TOKEN} bytes"
    arrays = types.MappingProxyType({"text_BKQ": (BYTES_PER_TOKEN, np.dtype(np.int32))})
    stored = False

    def count(self, text: str) -> int:
        """Returns the number of tokens of the whole text, START and END included."""
        return 2 + sum(_pieces_of(len(word.encode())) for word in clean_caption(text).split())

    def cut(self, text: str, max_tokens: int) -> str:
        """Returns the cleaned text, whole words off its end until it has at most `max_tokens` tokens."""
        words = clean_caption(text).split()
        used = 2
        for number, word in enumerate(words):
            used += _pieces_of(len(word.encode()))
            if used > max_tokens:
                return " ".join(words[:number])
        return " ".join(words)

    def encode(self, texts: Sequence[str]) -> list[Text]:
        """Returns text_BKQ of each text, int32 (k, Q): START, all zeros; the words; END."""
        return [{"text_BKQ": np.concatenate([spell_words(text), end_token()[None]])} for text in texts]


CAPTION_TOKENIZER = CaptionTokenizer()


def end_token() -> np.ndarray:
    """Returns END, int32 (Q,)."""
    return np.eye(1, BYTES_PER_TOKEN, dtype=np.int32)[0] * MARK


def spell_words(text: str) -> np.ndarray:
    """Returns START and the words of a text without END, int32 (k, Q): what a caption may begin with."""
    rows = [row for word in clean_caption(text).split() for row in _spell_word(word.encode())]
    return np.array([[0] * BYTES_PER_TOKEN, *rows], np.int32)


def read_tokens(tokens_KQ: np.ndarray) -> str:
    """Returns the text of tokens as of `CaptionTokenizer.encode`, up to END if there is one.

    A word that goes on beyond the last token is left out. Raises UnicodeDecodeError for bytes that are not UTF-8.
    """
    words, word = [], b""
    for row_Q in tokens_KQ.tolist():
        if row_Q[0] == MARK:
            break
        word += bytes(value - 1 for value in row_Q if 0 < value < MARK)
        if row_Q[-1] != MARK:
            words.append(word)
            word = b""
    return " ".join(word.decode() for word in words if word)


def _pieces_of(length: int) -> int:
    """Returns the tokens of a word of so many bytes."""
    return 1 if length <= BYTES_PER_TOKEN else 1 + -(-(length - BYTES_PER_TOKEN) // (BYTES_PER_TOKEN - 1))


def _spell_word(word: bytes) -> list[list[int]]:
    rows = []
    while len(word) > BYTES_PER_TOKEN:
        rows.append([byte + 1 for byte in word[: BYTES_PER_TOKEN - 1]] + [MARK])
        word = word[BYTES_PER_TOKEN - 1 :]
    return [*rows, [byte + 1 for byte in word] + [0] * (BYTES_PER_TOKEN - len(word))]
