"""Captions: cleaned text, and text to byte tokens.

Shapes: `K` text tokens, `Q` bytes of a text token.

A text token is a patch of bytes, as a latent token is a patch of pixels: no vocabulary, no file to download,
and nothing that a caption can contain is unknown. Tokens begin where words begin, so that a word has the same
bytes in the same slots wherever it stands (compare Xue et al., "ByT5", arXiv 2105.13626, section 3: one token
per byte, several times as many).
"""

import unicodedata
from collections.abc import Iterable

import numpy as np

from sora_jax.core.errors import UserError
from sora_jax.data.sources.caption_tables import Written

BYTES_PER_TOKEN = 8
# Name and version of the tokens, as prepared shards record them; raise it when a caption would give others.
TOKENIZER = "byte patches of 8, version 2"
MOST_CHARACTERS = 2**16  # of a caption; what lies beyond is not read

# They cannot be seen, but change how letters of some scripts, and emoji, look.
_JOINERS = "\u200c\u200d"
# What stands for a character, by its category: control, lone surrogate, format.
_REPLACED = {"Cc": " ", "Cs": " ", "Cf": ""}
# Cleaned captions of a clip, and how often each is drawn next to the others; None: all alike.
Captions = tuple[tuple[str, ...], tuple[float, ...] | None]
NO_CAPTIONS: Captions = ((), None)


def clean_caption(caption: str) -> str:
    """Returns the caption in Unicode NFC, words apart by one space, without what cannot be seen.

    Control characters and halves of surrogate pairs are as spaces; format characters (byte order marks, zero-width
    spaces, soft hyphens, directions) are left out but for joiners, which must join something.
    """
    seen = "".join(c if c in _JOINERS else _REPLACED.get(unicodedata.category(c), c) for c in caption)
    return " ".join(word for word in unicodedata.normalize("NFC", seen).split() if word.strip(_JOINERS))


def clean_captions(written: Iterable[Written]) -> Captions:
    """Returns what is written about a clip: of each caption `MOST_CHARACTERS`, cleaned, where something is left."""
    cleaned = ((clean_caption(text[:MOST_CHARACTERS]), weight) for text, weight in written)
    kept = [(caption, weight) for caption, weight in cleaned if caption]
    weights = tuple(weight for _, weight in kept)
    return tuple(caption for caption, _ in kept), weights if len(set(weights)) > 1 else None


def tokenize(caption: str, *, max_tokens: int) -> np.ndarray:
    """Returns the cleaned caption's tokens, int32 (k, Q) with 1 <= k <= `max_tokens`, Q = `BYTES_PER_TOKEN`.

    The first token is START, all zeros; the empty caption is START alone, which is also what caption dropout
    leaves. Then each word gives its UTF-8 bytes, `BYTES_PER_TOKEN` to a token, stored as byte + 1 (values
    1...256) with zeros after the last. What exceeds `max_tokens` is cut off: `count_tokens` tells beforehand.
    """
    assert max_tokens > 0, max_tokens
    pieces = _pieces(caption)[: max_tokens - 1]
    tokens_KQ = np.zeros((1 + len(pieces), BYTES_PER_TOKEN), np.int32)
    for row_Q, piece in zip(tokens_KQ[1:], pieces, strict=True):
        row_Q[: len(piece)] = np.frombuffer(piece, np.uint8).astype(np.int32) + 1
    return tokens_KQ


def count_tokens(caption: str) -> int:
    """Returns the number of tokens of the whole caption, START included."""
    return 1 + len(_pieces(caption))


def cut_caption(caption: str, max_tokens: int) -> str:
    """Returns the cleaned caption, whole words off its end until it has at most `max_tokens` tokens.

    Of a first word that is longer, as in scripts without spaces, what fits is kept.
    """
    words = clean_caption(caption).split()
    used = 1
    for number, word in enumerate(words):
        used += -(-len(word.encode()) // BYTES_PER_TOKEN)
        if used > max_tokens:
            fitting = word.encode()[: (max_tokens - 1) * BYTES_PER_TOKEN].decode(errors="ignore")
            return " ".join(words[:number]) or fitting
    return " ".join(words)


def check_prompt(text: str, max_tokens: int) -> str:
    """Returns the cleaned prompt; raises `UserError` when it is empty or longer than `max_tokens` tokens."""
    prompt = clean_caption(text)
    if not prompt:
        raise UserError(f"the prompt {text!r} is empty: describe the video in a few words")
    tokens = count_tokens(prompt)
    if tokens > max_tokens:
        raise UserError(
            f"the prompt has {tokens} tokens and this model takes {max_tokens}: shorten it "
            f"(a word costs one token for every {BYTES_PER_TOKEN} bytes); it begins {prompt[:40]!r}"
        )
    return prompt


def _pieces(caption: str) -> list[bytes]:
    """Returns the words' bytes in order, each word in pieces of at most `BYTES_PER_TOKEN`."""
    words = [word.encode() for word in clean_caption(caption).split()]
    return [word[i : i + BYTES_PER_TOKEN] for word in words for i in range(0, len(word), BYTES_PER_TOKEN)]
