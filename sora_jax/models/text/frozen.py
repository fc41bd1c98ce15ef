"""Frozen public text encoders: what they are to those who prepare, train and sample.

Shapes: K text tokens, k those of one text, E width.
"""

import bisect
import collections
import dataclasses
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx

from sora_jax.core.errors import UserError
from sora_jax.core.rng import Rngs
from sora_jax.data.tokens import Text, clean_caption
from sora_jax.models.flops import Work
from sora_jax.models.text.cleaning import Cleaning
from sora_jax.models.text.encoder import TextConfig
from sora_jax.models.text.files import EncoderFiles, weights_digest
from sora_jax.models.text.network import Network, TextWeights
from sora_jax.models.text.pieces import Pieces

# Texts of which the states are kept: prompts come again, and the network need not.
_KEPT = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """What is special to one of the public text encoders.

    Attributes:
      name: A key of `models.text.ENCODERS`.
      width: E of the weights that most people use: what is planned with where none are given.
      positions: Tokens of a text at most by its usual weights; None where the network sets no limit.
      cleaning: Of texts.
      before: Special tokens that a text begins with.
      after: Those that it ends with.
      states: What is kept of the network, in words.
      place: Where weights lie that no key names; raises UserError that says what to give.
      pieces: The tokenizer among the files; raises UserError where there is none.
      weights: The network in the files; raises UserError for another.
      usual: Key -> the network of the weights that most people use; None: it is not planned without weights.
    """

    name: str
    width: int
    positions: int | None
    cleaning: Cleaning
    before: tuple[str, ...]
    after: tuple[str, ...]
    states: str
    place: Callable[[], str]
    pieces: Callable[[EncoderFiles], Pieces]
    weights: Callable[[EncoderFiles], TextWeights]
    usual: Callable[[jax.Array], nnx.Module] | None = None


class FrozenTokenizer:
    """States of texts by a frozen encoder; see `data.tokens.Tokenizer`.

    Files are opened when they are first needed: the weights by `encode`, of which they stay in memory until `release`.
    A text that was asked for lately is not computed again. A pickled one brings no network and opens its files anew.
    """

    cost = "a common word costs one token, a rare one several"
    stored = True

    def __init__(self, family: Family, config: TextConfig):
        self._family, self._path, self._max_tokens = family, config.weights, config.max_tokens
        self._open()

    def _open(self) -> None:
        self._lock = threading.RLock()
        self._network: Network | None = None
        self._kept: collections.OrderedDict[str, Text] = collections.OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {name: vars(self)[name] for name in ("_family", "_path", "_max_tokens")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    @property
    def recipe(self) -> Mapping[str, str]:
        """What the states depend on; UserError where files are missing."""
        family = self._family
        return {
            "text_encoder": f"{family.name} {self._digest} ({family.states}, bfloat16), version 1",
            "cleaning": family.cleaning.version,
            "tokenizer": self._pieces.digest,
            "text_tokens": f"{self._max_tokens} at most",
        }

    @property
    def width(self) -> int:
        """E."""
        return self._family.width if self._path is None else self._weights.width

    def build(self) -> Callable[[jax.Array], nnx.Module] | None:
        """Returns key -> the network, as `TextEncoder.network` says."""
        return self._family.usual if self._path is None else self._weights.build

    @property
    def arrays(self) -> Mapping[str, tuple[int, np.dtype]]:
        """States are stored as bfloat16, whatever the network computes in."""
        return {"text_BKE": (self.width, np.dtype(ml_dtypes.bfloat16))}

    def count(self, text: str) -> int:
        """Returns the number of tokens of the whole text, special ones included."""
        around = len(self._family.before) + len(self._family.after)
        return around + len(self._pieces.split(cleaned)) if (cleaned := self._family.cleaning.clean(text)) else around

    def cut(self, text: str, max_tokens: int) -> str:
        """Returns the text, whole words off its end until it has at most `max_tokens` tokens.

        Of a first word that is longer, as in scripts without spaces, what fits is kept.
        """
        text = clean_caption(text)
        if self.count(text) <= max_tokens:
            return text
        words = text.split()
        fitting = bisect.bisect_right(range(len(words)), max_tokens, key=lambda n: self.count(" ".join(words[:n]))) - 1
        if fitting > 0:
            return " ".join(words[:fitting])
        first = words[0]
        return first[: bisect.bisect_right(range(len(first)), max_tokens, key=lambda n: self.count(first[:n])) - 1]

    def encode(self, texts: Sequence[str]) -> list[Text]:
        """Returns text_BKE of each text, bfloat16 (k, E)."""
        with self._lock:
            new = [text for text in dict.fromkeys(texts) if text not in self._kept]
            found = {text: self._kept[text] for text in texts if text in self._kept}
            if new:
                states = self._loaded().states([self._numbers(text) for text in new], positions=self._weights.positions)
                found |= {text: {"text_BKE": states_KE} for text, states_KE in zip(new, states, strict=True)}
            for text in reversed(found):
                self._kept[text] = found[text]
                self._kept.move_to_end(text)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return [found[text] for text in texts]

    def release(self) -> None:
        """Lets the network go; the states of texts that were asked for lately stay."""
        with self._lock:
            self._network = None

    def _loaded(self) -> Network:
        if self._network is None:
            self._network = Network(self._weights)
        return self._network

    def _numbers(self, text: str) -> list[int]:
        """Returns the numbers of a text's pieces, special tokens included."""
        cleaned = self._family.cleaning.clean(text)
        around = [[self._special(token) for token in side] for side in (self._family.before, self._family.after)]
        return [*around[0], *(self._pieces.split(cleaned) if cleaned else ()), *around[1]]

    def _special(self, token: str) -> int:
        number = self._pieces.number(token)
        if number is None:
            raise UserError(f"{self._files.path}: the tokenizer has no {token}, which {self._family.name} needs")
        return number

    @functools.cached_property
    def _files(self) -> EncoderFiles:
        return EncoderFiles(self._path or self._family.place())

    @functools.cached_property
    def _digest(self) -> str:
        return weights_digest(self._weights.used)

    @functools.cached_property
    def _weights(self) -> TextWeights:
        weights = self._family.weights(self._files)
        if weights.positions is not None and self._max_tokens > weights.positions:
            most = f"the {weights.positions} tokens that {self._files.path} takes"
            raise UserError(f"text.max_tokens {self._max_tokens} exceeds {most}")
        return weights

    @functools.cached_property
    def _pieces(self) -> Pieces:
        return self._family.pieces(self._files)


class StoredStates(nnx.Module):
    """Hands on the states that shards hold; nothing in it is trained."""

    def __call__(self, pack: dict[str, jax.Array], segment_BK: jax.Array, dtype: jnp.dtype) -> jax.Array:
        del segment_BK
        return pack["text_BKE"].astype(dtype)


class FrozenText:
    """A frozen encoder of a config; see `models.text.encoder.TextEncoder`."""

    def __init__(self, family: Family, config: TextConfig):
        """UserError where `text.max_tokens` is more than the network takes."""
        if family.positions is not None and config.max_tokens > family.positions:
            raise UserError(
                f"text.max_tokens {config.max_tokens} exceeds the {family.positions} tokens that {family.name} takes"
            )
        self.tokenizer = FrozenTokenizer(family, config)

    @property
    def width(self) -> int:
        """E."""
        return self.tokenizer.width

    def flops(self, work: Work) -> float:
        """Returns 0: in training nothing is encoded."""
        del work
        return 0.0

    def module(self, *, remat: str, rngs: Rngs) -> StoredStates:
        """Returns what hands on stored states."""
        del remat, rngs
        return StoredStates()

    def network(self) -> Callable[[jax.Array], nnx.Module] | None:
        """Returns key -> the network of the weights; None where none are given and no shape is usual."""
        return self.tokenizer.build()

    def release(self) -> None:
        """Lets the network go."""
        self.tokenizer.release()
