"""Captions as a captioner reads and writes them: byte patches of which the very text can be told again, with an end.

Letters: k tokens, Q bytes of a token.

A generator only reads, so `data.tokens.ByteTokenizer` may cut long words without a mark: "triangle" and the beginning
of "triangles" are the same token. What is written must say whether a word goes on, and where the caption ends.
Words of up to Q bytes are the same tokens in both.
"""

from collections.abc import Sequence

import numpy as np

from sora_jax.data.tokens import BYTES_PER_TOKEN, ByteTokenizer, Text, clean_caption

# A value of a slot that is no byte. In the last slot: the word goes on in the next token. In the first: END, the token
# after the last word of a caption, whose other slots are 0.
MARK = 257
# Values of a slot: 0 after the last byte of a word, byte + 1, and `MARK`.
SLOT_VALUES = 258


class CaptionTokenizer(ByteTokenizer):
    """The words of a caption as `spell_words` has them, in rows that were planned for `ByteTokenizer`.

    Words of more than 15 bytes may take a token more than planned: then letters are cut off the end.
    """

    def encode(self, texts: Sequence[str]) -> list[Text]:
        """Returns text_BKQ of each text, int32 (k, Q): START, all zeros, and the words; END is the captioner's."""
        return [{"text_BKQ": self._fitted(text)} for text in texts]

    def _fitted(self, text: str) -> np.ndarray:
        most, fitted_KQ = self.count(text), spell_words(text)
        while len(fitted_KQ) > most:
            text = text[:-1]
            fitted_KQ = spell_words(text)
        return fitted_KQ


CAPTION_TOKENIZER = CaptionTokenizer()


def end_token() -> np.ndarray:
    """Returns END, int32 (Q,)."""
    return np.eye(1, BYTES_PER_TOKEN, dtype=np.int32)[0] * MARK


def spell_words(text: str) -> np.ndarray:
    """Returns START and the words of a text without END, int32 (k, Q): what a caption may begin with."""
    rows = [row for word in clean_caption(text).split() for row in _spell_word(word.encode())]
    return np.array([[0] * BYTES_PER_TOKEN, *rows], np.int32)


def read_tokens(tokens_KQ: np.ndarray) -> str:
    """Returns the text of tokens as of `spell_words`, up to END if there is one.

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


def _spell_word(word: bytes) -> list[list[int]]:
    rows = []
    while len(word) > BYTES_PER_TOKEN:
        rows.append([byte + 1 for byte in word[: BYTES_PER_TOKEN - 1]] + [MARK])
        word = word[BYTES_PER_TOKEN - 1 :]
    return [*rows, [byte + 1 for byte in word] + [0] * (BYTES_PER_TOKEN - len(word))]
