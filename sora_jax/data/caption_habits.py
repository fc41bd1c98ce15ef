"""Of what kind the captions of clips are: how long, how alike they begin, how many words they know.

A model that writes captions has habits that a person has not: one length, one opening, few words. A generator that is
trained on them learns the habits too, so they are looked at before.
"""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from sora_jax.data.words import words_in_order

_OPENING = 3  # words
_COMMONEST = 10
_PERCENTILES = (0, 5, 50, 95, 100)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionHabits:
    """What the captions of some clips have in common; each caption counts once, whatever its weight.

    Attributes:
      clips: That were looked at.
      uncaptioned: Of these, without a caption.
      lengths: Words of each caption.
      distinct: Words that there are, without regard to case.
      openings: The commonest first three words, as they are spelled without capitals and marks, and how many captions
        begin so; commonest first.
    """

    clips: int
    uncaptioned: int
    lengths: tuple[int, ...]
    distinct: int
    openings: tuple[tuple[str, int], ...]

    def facts(self) -> dict[str, str]:
        """Returns what is told of them, by name."""
        captions = len(self.lengths)
        spread = " ".join(f"{value:.3g}" for value in np.percentile(self.lengths, _PERCENTILES)) if captions else "-"
        repeated = self.openings[0][1] / captions if captions else 0.0
        return {
            "clips without a caption": f"{self.uncaptioned / max(1, self.clips):.1%}",
            "captions": str(captions),
            "words of a caption, 0 5 50 95 100 %": spread,
            "distinct words": str(self.distinct),
            "captions with the commonest opening": f"{repeated:.1%}",
        }


def caption_habits(captions: Sequence[Sequence[str]]) -> CaptionHabits:
    """Returns the habits of captions: a list, which may be empty, for each clip."""
    texts = [words_in_order(caption) for of_clip in captions for caption in of_clip]
    openings = collections.Counter(" ".join(words[:_OPENING]) for words in texts)
    return CaptionHabits(
        clips=len(captions),
        uncaptioned=sum(not of_clip for of_clip in captions),
        lengths=tuple(map(len, texts)),
        distinct=len({word for words in texts for word in words}),
        openings=tuple(openings.most_common(_COMMONEST)),
    )
