"""Which drafts of captions are good enough to train on, and what is mended in them."""

import collections
import dataclasses
import re
import unicodedata
from collections.abc import Callable

from sora_jax.core.errors import UserError
from sora_jax.data.clips import Clip
from sora_jax.data.sources.base import digest
from sora_jax.data.tokens import Tokenizer, clean_caption
from sora_jax.preparation.directions import directions_said, shares_of_motion
from sora_jax.preparation.drafts import Draft, Mix
from sora_jax.preparation.remote_captions import RemoteConfig

_KINDS = r"(?:video|clip|footage|film|image|picture|photo|photograph|scene|animation)(?: clip)?"
_SHOWS = r"(?:shows?|showing|depicts?|depicting|features?|featuring|captures?|capturing|displays?|presents?|of)"
# What models like to begin with, and what tells nothing of the clip.
STOCK_OPENINGS = (
    rf"(?:in|throughout) (?:the|this) (?:short )?{_KINDS}\b,? ?(?:(?:we|you) (?:can )?see\b|there (?:is|are)\b)?|"
    rf"(?:the|this|an?) (?:short |close-up )?{_KINDS} {_SHOWS}\b|(?:here )?(?:we|you) (?:can )?see\b"
)
_IN_A_ROW = 4  # words that are told to be repeated
_SPACES = "\t\n\r"
# Unicode categories of what is no text: control characters, halves of pairs, private and unassigned characters.
_NO_TEXT = ("Cc", "Cs", "Co", "Cn")
_LOST = "\N{REPLACEMENT CHARACTER}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecaptionConfig:
    """How captions are written anew, which are refused, and how often each is drawn; see `configs/base.py`."""

    batch: int
    mix: Mix
    min_words: int
    max_tokens: int | None
    max_repeats: int | None
    opening: str | None
    max_unclean: int | None
    min_agreement: float | None
    min_direction: float | None
    server: RemoteConfig

    def __post_init__(self):
        try:
            re.compile(self.opening or "")
        except re.error as error:
            raise UserError(f"opening {self.opening!r} is no regular expression: {error}") from error

    @property
    def choice(self) -> str:
        """A digest of what decides which captions are taken, and with which weights."""
        asked = ("batch", "server")
        return digest({name: value for name, value in dataclasses.asdict(self).items() if name not in asked})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a draft is not taken: `key` of config.recaption, and a sentence about it."""

    key: str
    reason: str


class DraftFilters:
    """Judges drafts, one after the other.

    Args:
      config: What is refused.
      tokenizer: Counts text tokens.
      max_tokens: Of a caption, where the config leaves it open.

    Attributes:
      openings: Drafts of which an opening was taken off.
      refused: Drafts by the key by which they were refused.
    """

    def __init__(self, config: RecaptionConfig, *, tokenizer: Tokenizer, max_tokens: int):
        self._config, self._tokenizer = config, tokenizer
        self._max_tokens = max_tokens if config.max_tokens is None else config.max_tokens
        opening = STOCK_OPENINGS if config.opening is None else config.opening
        self._opening = re.compile(opening, re.IGNORECASE) if opening else None
        self.openings = 0
        self.refused: collections.Counter[str] = collections.Counter()
        self._filters: dict[str, Callable[[Draft, Clip], str | None]] = {
            "max_unclean": self._unclean,
            "min_words": self._empty,
            "max_tokens": self._long,
            "max_repeats": self._repeating,
            "min_agreement": self._disagreeing,
            "min_direction": self._misdirected,
        }

    def judge(self, draft: Draft, clip: Clip) -> Draft | Refusal:
        """Returns a draft with its text cleaned and without its opening, or the first reason to refuse it."""
        mended = dataclasses.replace(draft, text=self._without_opening(clean_caption(draft.text)))
        for key, fault_of in self._filters.items():
            fault = fault_of(draft if key == "max_unclean" else mended, clip)
            if fault is not None:
                self.refused[key] += 1
                return Refusal(key=key, reason=f"{fault} (recaption.{key})")
        return mended

    def _without_opening(self, text: str) -> str:
        found = self._opening.match(text) if self._opening else None
        if not found or not found.end():
            return text
        self.openings += 1
        rest = text[found.end() :].lstrip(" ,:")
        return rest[:1].upper() + rest[1:] if text[:1].isupper() else rest

    def _unclean(self, draft: Draft, _: Clip) -> str | None:
        most = self._config.max_unclean
        bad = sum(c not in _SPACES and (c == _LOST or unicodedata.category(c) in _NO_TEXT) for c in draft.text)
        return None if most is None or bad <= most else f"has {bad} characters that are no text"

    def _empty(self, draft: Draft, _: Clip) -> str | None:
        words, least = len(draft.text.split()), self._config.min_words
        return None if words >= least else f"has {words} words, under {least}"

    def _long(self, draft: Draft, _: Clip) -> str | None:
        tokens = self._tokenizer.count(draft.text)
        if not draft.whole:
            return f"is cut off after {tokens} tokens"
        return None if tokens <= self._max_tokens else f"has {tokens} tokens, over {self._max_tokens}"

    def _repeating(self, draft: Draft, _: Clip) -> str | None:
        words = re.findall(r"\w+", draft.text.casefold())
        runs = collections.Counter(zip(*(words[start:] for start in range(_IN_A_ROW)), strict=False))
        most = self._config.max_repeats
        if most is None or not runs or max(runs.values()) <= most:
            return None
        run, times = runs.most_common(1)[0]
        return f"says {' '.join(run)!r} {times} times"

    def _disagreeing(self, draft: Draft, _: Clip) -> str | None:
        least = self._config.min_agreement
        if least is None or draft.agreement is None or draft.agreement >= least:
            return None
        return f"agrees with its clip by {draft.agreement:.2f}, under {least:.2f}"

    def _misdirected(self, draft: Draft, clip: Clip) -> str | None:
        least = self._config.min_direction
        said = [] if least is None else directions_said(draft.text)
        shares = shares_of_motion(clip.pixels_THWC) if said else None
        if shares is None or least is None:
            return None
        wrong = [way for way in said if shares[way] < least]
        return f"says {wrong[0]}, where {shares[wrong[0]]:.0%} of what moves goes" if wrong else None
