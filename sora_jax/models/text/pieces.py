"""The pieces that public text encoders read, from a user's files: tokenizer.json, spiece.model, or bytes.

What a caption holds is text and nothing else: "</s>" or "<extra_id_0>" in one is spelt, as any other characters are.
The special tokens are added by who asks, by their numbers.
"""

import hashlib
import importlib
import json
from typing import Any, Protocol

from sora_jax.core.errors import UserError

# Put before the name of a special token, which no text then spells: cleaned texts hold no such character.
_HIDDEN = "\0"


class Pieces(Protocol):
    """How a text is cut into the pieces of a vocabulary."""

    @property
    def digest(self) -> str:
        """What names the file, for the recipe of prepared shards."""
        ...

    def split(self, text: str) -> list[int]:
        """Returns the numbers of the pieces, without special tokens."""
        ...

    def number(self, token: str) -> int | None:
        """Returns the number of a special token; None where there is none."""
        ...


class JsonPieces:
    """The pieces of a tokenizer.json, cut by `tokenizers`."""

    def __init__(self, data: bytes, place: str):
        """Reads `data`; UserError, which names `place`, where it is none or `tokenizers` is not installed."""
        self.digest = f"tokenizer.json {hashlib.sha256(data).hexdigest()[:16]}"
        library = _library("tokenizers", place)
        try:
            tree = json.loads(data)
            self._special = _hide_special_tokens(tree)
            self._cut = library.Tokenizer.from_str(json.dumps(tree))
        # The library raises the base class for whatever it cannot read.
        except Exception as error:
            raise UserError(f"{place} is not a tokenizer that can be read ({error}); download it again") from error

    def split(self, text: str) -> list[int]:
        return self._cut.encode(text, add_special_tokens=False).ids

    def number(self, token: str) -> int | None:
        return self._special.get(token)


class SentencePieces:
    """The pieces of a spiece.model, cut by `sentencepiece`."""

    def __init__(self, data: bytes, place: str):
        """As that of `JsonPieces`."""
        self.digest = f"spiece.model {hashlib.sha256(data).hexdigest()[:16]}"
        library = _library("sentencepiece", place)
        try:
            self._cut = library.SentencePieceProcessor(model_proto=data)
        except (RuntimeError, OSError, ValueError) as error:
            raise UserError(f"{place} is not a SentencePiece model ({error}); download it again") from error

    def split(self, text: str) -> list[int]:
        return self._cut.encode(text)

    def number(self, token: str) -> int | None:
        number = self._cut.piece_to_id(token)
        return None if number == self._cut.unk_id() else number


class BytePieces:
    """ByT5's: the bytes of UTF-8 after three special tokens."""

    digest = "bytes of UTF-8"

    def split(self, text: str) -> list[int]:
        return [byte + 3 for byte in text.encode()]

    def number(self, token: str) -> int | None:
        return {"<pad>": 0, "</s>": 1, "<unk>": 2}.get(token)


def _hide_special_tokens(tree: dict[str, Any]) -> dict[str, int]:
    """Returns the numbers of special tokens, and takes from a tokenizer.json all by which a text could spell one.

    Their names in the vocabulary change, their numbers do not. What the file says of padding, of length and of tokens
    around a text goes too: the text alone is cut.
    """
    special = {token["content"]: token["id"] for token in tree.get("added_tokens", ())}
    tree.update(added_tokens=[], truncation=None, padding=None, post_processor=None)
    model = tree["model"]
    if isinstance(vocabulary := model["vocab"], dict):
        model["vocab"] = {_HIDDEN + name if name in special else name: n for name, n in vocabulary.items()}
    else:
        model["vocab"] = [[_HIDDEN + name if name in special else name, score] for name, score in vocabulary]
    if model.get("unk_token") in special:
        model["unk_token"] = _HIDDEN + model["unk_token"]
    return special


def _library(name: str, place: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{place} needs {name} ({error}): pip install 'sora-jax[text]'") from error
