"""Clips as they will be encoded: cut to the limits of their collection, and all collections as one source."""

import bisect
import dataclasses
import itertools
from collections.abc import Sequence

from sora_jax.data.clips import Clip, Fitted, fit_clip
from sora_jax.data.sources.base import Source
from sora_jax.data.tokens import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipBudget:
    """What is done to a clip before it is encoded; see `data.clips.fit_clip`.

    Attributes:
      stride: Frames, rows and columns of pixels of one token.
      min_tokens: Of a clip.
      max_tokens: Of a clip.
      max_frames: Of a clip.
      tokenizer: What makes text tokens.
      max_text_tokens: Of a caption.
      max_bad_share: Share of clips that may be skipped.
      square_crop: Whether clips are cut to their central squares.
    """

    stride: tuple[int, int, int]
    min_tokens: int
    max_tokens: int
    max_frames: int
    tokenizer: Tokenizer
    max_text_tokens: int
    max_bad_share: float
    square_crop: bool = False

    def fit(self, source: Source, index: int) -> Fitted:
        """Returns clip `index` as it will be encoded; raises BadClip."""
        return self.cut(source[index])

    def cut(self, clip: Clip) -> Fitted:
        """Returns a clip as it will be encoded; raises BadClip."""
        return fit_clip(
            clip,
            stride=self.stride,
            min_tokens=self.min_tokens,
            max_tokens=self.max_tokens,
            max_frames=self.max_frames,
            square_crop=self.square_crop,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collection:
    """Clips that are cut, prepared and weighted as one; `readers` of them are read side by side.

    `heldout` are clips of the same kind that training never sees; None: there are none.
    """

    name: str
    source: Source
    limits: ClipBudget
    readers: int = 1
    heldout: Source | None = None


class FittedSource:
    """The clips of some collections, one after the other, as they will be encoded: what the autoencoder trains on."""

    def __init__(self, collections: Sequence[Collection]):
        self._collections = collections
        self._ends = list(itertools.accumulate(len(one.source) for one in collections))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Clip:
        """Returns clip `index`, fitted; raises BadClip."""
        collection, inner = self._locate(index)
        return collection.limits.fit(collection.source, inner).clip

    def source_id(self, index: int) -> str:
        """Returns the name of clip `index` within its own source."""
        collection, inner = self._locate(index)
        return collection.source.source_id(inner)

    def origin(self, index: int) -> str:
        """Returns the origin of clip `index`, before it is fitted."""
        collection, inner = self._locate(index)
        return collection.source.origin(inner)

    def _locate(self, index: int) -> tuple[Collection, int]:
        number = bisect.bisect_right(self._ends, index)
        collection = self._collections[number]
        return collection, index - self._ends[number] + len(collection.source)
