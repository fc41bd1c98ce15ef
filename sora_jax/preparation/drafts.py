"""Drafts of captions, as a model writes them about a clip, and how often each is drawn beside those that were there."""

import dataclasses
from collections.abc import Mapping, Sequence

from sora_jax.core.errors import UserError

# How a draft was asked for.
SHORT, DETAILED = "short", "detailed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draft:
    """A caption as it was written.

    Attributes:
      text: As it is, not cleaned.
      style: `SHORT`, `DETAILED`, or "" of a writer that has one manner only.
      whole: Whether it came to its end.
      agreement: How well it agrees with its clip, in [-1, 1], by a model that compares them; None: nobody looked.
    """

    text: str
    style: str = ""
    whole: bool = True
    agreement: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drafts:
    """What was written about a clip: captions, and by name (subject, background, style, camera, motion) parts of it."""

    captions: tuple[Draft, ...]
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mix:
    """How often each kind of caption of a clip is drawn, next to the others: 0 or more, and not 0 for all that is new.

    Attributes:
      own: Those that the clip had, together.
      short: The short one that was written.
      detailed: The detailed one. A writer of one manner has the weight of both.
    """

    own: float
    short: float
    detailed: float

    def __post_init__(self):
        if not self.short + self.detailed > 0:
            raise UserError(f"short {self.short:g} and detailed {self.detailed:g}: one must be more than 0")

    def weigh(
        self, drafts: Sequence[Draft], own: Sequence[str], own_weights: Sequence[float] | None
    ) -> dict[str, float]:
        """Returns captions, new ones first, each with how often it is drawn, which is more than 0.

        Where one of the new ones lacks, or is the same as another, the rest of them take over its share.
        """
        of_style = {SHORT: self.short, DETAILED: self.detailed, "": self.short + self.detailed}
        new = [(draft.text, of_style[draft.style]) for draft in drafts]
        if not any(weight for _, weight in new):
            new = [(text, 1.0) for text, _ in new]
        old = list(zip(own, own_weights or [1.0] * len(own), strict=True))
        found: dict[str, float] = {}
        for share, captions in ((self.short + self.detailed, new), (self.own, old)):
            total = sum(weight for _, weight in captions)
            for text, weight in captions:
                if share * weight > 0:
                    found[text] = float(f"{found.get(text, 0.0) + share * weight / total:.6g}")
        return found
