"""Texts: captions cleaned, and the arrays that a pack holds of them.

Shapes: `K` text tokens, `k` those of one text, `Q` bytes of a text token.

What a text token is depends on the text encoder (`models/text`), so shards, packs, canvases and plans ask its
`Tokenizer`. The embedded one makes patches of bytes, as a latent token is a patch of pixels: no vocabulary, no file to
download, and nothing that a caption can contain is unknown. Tokens begin where words begin, so that a word has the same
bytes in the same slots wherever it stands (compare Xue et al., "ByT5", arXiv 2105.13626, section 3: one token
per byte, several times as many).
"""

import types
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from sora_jax.core.errors import UserError
from sora_jax.data.sources.caption_tables import Written

BYTES_PER_TOKEN = 8
MOST_CHARACTERS = 2**16  # of a caption; what lies beyond is not read

# They cannot be seen, but change how letters of some scripts, and emoji, look.
_JOINERS = "\u200c\u200d"
# What stands for a character, by its category: control, lone surrogate, format.
_REPLACED = {"Cc": " ", "Cs": " ", "Cf": ""}
# Cleaned captions of a clip, and how often each is drawn next to the others; None: all alike.
Captions = tuple[tuple[str, ...], tuple[float, ...] | None]
NO_CAPTIONS: Captions = ((), None)

# The arrays of one text by name, (k, width) each.
Text = dict[str, np.ndarray]


class Tokenizer(Protocol):
    """How texts become the arrays that packs hold of them.

    The empty text has at least one token, and no text has fewer. Several threads may ask at once, and worker processes
    get a pickled one.
    """

    @property
    def recipe(self) -> Mapping[str, str]:
        """What prepared shards record and must find again.

        "text_encoder" names the arrays and their version, with the digest of the weights that computed them;
        "tokenizer" is the digest of a file of tokens, where there is one. A text that would give other arrays has
        another recipe.
        """
        ...

    @property
    def cost(self) -> str:
        """What a token stands for, in words for who must shorten a prompt."""
        ...

    @property
    def arrays(self) -> Mapping[str, tuple[int, np.dtype]]:
        """Width and dtype of each array by its name in a pack, which begins with "text_" and ends with "_BK?"."""
        ...

    @property
    def stored(self) -> bool:
        """Whether the arrays are computed by a frozen encoder, once, and kept in the shards at true length.

        Each token then knows the whole text, so a caption that is dropped leaves the arrays of the empty text, which
        packs hold as well. Otherwise rows are filled from the captions, and each text begins as the empty one.
        """
        ...

    def count(self, text: str) -> int:
        """Returns k, the tokens of the whole text."""
        ...

    def cut(self, text: str, max_tokens: int) -> str:
        """Returns the cleaned text, shortened from its end until it has at most `max_tokens` tokens."""
        ...

    def encode(self, texts: Sequence[str]) -> list[Text]:
        """Returns the arrays of each text, (`count(text)`, width)."""
        ...


class ByteTokenizer:
    """Words in patches of at most Q bytes; see `Tokenizer`."""

    # Name and version of the tokens; raise it when a caption would give others.
    recipe = types.MappingProxyType({"text_encoder": f"byte patches of {BYTES_PER_TOKEN}, version 2"})
    cost = f"a word costs one token for every {BYTES_PER_TOKEN} bytes"
    arrays = types.MappingProxyType({"text_BKQ": (BYTES_PER_TOKEN, np.dtype(np.int32))})
    stored = False

    def count(self, text: str) -> int:
        """Returns the number of tokens of the whole text, START included."""
        return 1 + len(_pieces(text))

    def cut(self, text: str, max_tokens: int) -> str:
        """Returns the cleaned text, whole words off its end until it has at most `max_tokens` tokens.

        Of a first word that is longer, as in scripts without spaces, what fits is kept.
        """
        words = clean_caption(text).split()
        used = 1
        for number, word in enumerate(words):
            used += -(-len(word.encode()) // BYTES_PER_TOKEN)
            if used > max_tokens:
                fitting = word.encode()[: (max_tokens - 1) * BYTES_PER_TOKEN].decode(errors="ignore")
                return " ".join(words[:number]) or fitting
        return " ".join(words)

    def encode(self, texts: Sequence[str]) -> list[Text]:
        """Returns text_BKQ of each text, int32 (k, Q).

        The first token is START, all zeros; the empty text is START alone, which is also what caption dropout leaves.
        Then each word gives its UTF-8 bytes, `BYTES_PER_TOKEN` to a token, stored as byte + 1 (values 1...256) with
        zeros after the last.
        """
        return [{"text_BKQ": _spell(text)} for text in texts]


BYTE_TOKENIZER = ByteTokenizer()


def clean_caption(caption: str) -> str:
    """Returns the caption in Unicode NFC, words apart by one space, without what cannot be seen.

    Control characters and halves of surrogate pairs are as spaces; format characters (byte order marks, zero-width
    spaces, soft hyphens, directions) are left out but for joiners, which must join something.
    """
    if caption.isascii() and caption.isprintable():  # as most are, and every batch cleans its captions
        return " ".join(caption.split())
    seen = "".join(c if c in _JOINERS else _REPLACED.get(unicodedata.category(c), c) for c in caption)
    return " ".join(word for word in unicodedata.normalize("NFC", seen).split() if word.strip(_JOINERS))


def clean_captions(written: Iterable[Written]) -> Captions:
    """Returns what is written about a clip: of each caption `MOST_CHARACTERS`, cleaned, where something is left."""
    cleaned = ((clean_caption(text[:MOST_CHARACTERS]), weight) for text, weight in written)
    kept = [(caption, weight) for caption, weight in cleaned if caption]
    weights = tuple(weight for _, weight in kept)
    return tuple(caption for caption, _ in kept), weights if len(set(weights)) > 1 else None


def check_prompt(text: str, tokenizer: Tokenizer, *, max_tokens: int) -> str:
    """Returns the cleaned prompt; raises `UserError` when it is empty or longer than `max_tokens` tokens."""
    prompt = clean_caption(text)
    if not prompt:
        raise UserError(f"the prompt {text!r} is empty: describe the video in a few words")
    tokens = tokenizer.count(prompt)
    if tokens > max_tokens:
        raise UserError(
            f"the prompt has {tokens} tokens and this model takes {max_tokens}: shorten it "
            f"({tokenizer.cost}); it begins {prompt[:40]!r}"
        )
    return prompt


def _spell(caption: str) -> np.ndarray:
    """Returns the caption's tokens, int32 (k, Q)."""
    start = bytes(BYTES_PER_TOKEN)
    filled = b"".join([start, *(piece.ljust(BYTES_PER_TOKEN, b"\0") for piece in _pieces(caption))])
    # No byte of a cleaned caption is 0.
    values = np.frombuffer(filled, np.uint8).astype(np.int32).reshape(-1, BYTES_PER_TOKEN)
    return values + (values > 0)


def _pieces(caption: str) -> list[bytes]:
    """Returns the words' bytes in order, each word in pieces of at most `BYTES_PER_TOKEN`."""
    words = [word.encode() for word in clean_caption(caption).split()]
    return [word[i : i + BYTES_PER_TOKEN] for word in words for i in range(0, len(word), BYTES_PER_TOKEN)]
