"""What a captioner is told of clips beside their stored captions: style words, and pairs of texts without the clip.

Letters: N samples, M stored captions, V those that are made of them.

A captioner that has read "short:" before short captions and "detailed:" before long ones writes either when it is asked
to. One that has read "expand: a red circle" and then a detailed caption of a red circle, without seeing it, expands
prompts into the form of captions (compare DALL-E 3, "Improving image generation with better captions", appendix C).
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from sora_jax.core import rng
from sora_jax.core.errors import UserError
from sora_jax.data.caption_tokens import spell_words
from sora_jax.data.packing.packs import Row
from sora_jax.data.packing.rows import Lengths
from sora_jax.data.prompt_guard import find_faults, shorten
from sora_jax.data.shards.prepared import Prepared
from sora_jax.video import shapes
from sora_jax.video.patches import patchify

SHORT, DETAILED, EXPAND = "short:", "detailed:", "expand:"
_TERSE_SHARE = 0.5  # of the prompts of pairs


class Told(NamedTuple):
    """What is told of a clip: `given`, of which nothing is to be learnt, then `text`; `alone`: without the clip."""

    given: str
    text: str
    alone: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class StyleMix:
    """Shares of what is told of clips.

    Attributes:
      short: Of what has a clip, how much is its shortest caption after "short:".
      detailed: How much is its longest caption after "detailed:"; the rest are stored captions as they are.
      expand: Of everything, how much are pairs: "expand:", one of a clip's captions, and the longest of those that keep
        what it says. Half of these prompts are shortened as users write.
    """

    short: float
    detailed: float
    expand: float

    def __post_init__(self):
        if min(self.short, self.detailed) < 0 or self.short + self.detailed > 1:
            raise UserError(
                f"captioner_loss.styles ({self.short:g}, {self.detailed:g}) must be shares of at least 0, 1 in all at "
                "most; (0.25, 0.25) leaves half of the captions as they are"
            )
        if not 0 <= self.expand < 1:
            raise UserError(f"captioner_loss.expand_share {self.expand:g} is outside [0, 1); 0.2 is usual")

    def lengths(self, stored: Lengths) -> Lengths:
        """Returns what planning knows where these are told instead of the stored captions.

        The row of a text alone is planned as if it had one token.
        """
        start_N, count_N = stored.caption_start_N1[:-1], np.diff(stored.caption_start_N1)
        owner_M, each_N = np.repeat(np.arange(len(count_N)), count_N), np.arange(len(count_N))
        text_M = stored.text_tokens_M.astype(np.int64)
        weights_M = np.ones(len(text_M)) if stored.weights_M is None else stored.weights_M
        weights_M = weights_M / np.add.reduceat(weights_M, start_N)[owner_M]
        longest_N = np.maximum.reduceat(text_M, start_N)
        shares = self._shares()
        # START of the second text is none.
        made = {
            "": (owner_M, text_M, weights_M),
            SHORT: (each_N, stored.shortest_text_N() + _tokens(SHORT), np.ones(len(each_N))),
            DETAILED: (each_N, longest_N + _tokens(DETAILED), np.ones(len(each_N))),
            EXPAND: (owner_M, text_M + longest_N[owner_M] - 1 + _tokens(EXPAND), 1 / count_N[owner_M]),
        }
        owner_V, text_V, weights_V = (
            np.concatenate([made[word][place] * (shares[word] if place == 2 else 1) for word in shares])
            for place in range(3)
        )
        alone_V = np.concatenate([np.full(len(made[word][0]), word == EXPAND) for word in shares])
        order_V = np.argsort(owner_V, kind="stable")
        return dataclasses.replace(
            stored,
            text_tokens_M=text_V[order_V],
            caption_start_N1=np.concatenate([[0], np.cumsum(np.bincount(owner_V, minlength=len(count_N)))]),
            weights_M=weights_V[order_V],
            alone_M=alone_V[order_V],
        )

    def tell(self, sample: Prepared, number: int, row: Row, *, seed: int, draw: int) -> Told:
        """Returns what is told of a sample as number `number` of its captions in `lengths`, at a draw."""
        captions, count = sample.captions, row.layout.tokenizer.count
        for word in self._shares():
            size = len(captions) if word in ("", EXPAND) else 1
            if number < size:
                break
            number -= size
        else:
            raise AssertionError(f"{sample.source_id} has no caption {number}")
        if word == EXPAND:
            prompt, generator = captions[number], rng.generator(seed, "terse prompts", draw)
            text = max((one for one in captions if not find_faults(prompt, one)), key=count)
            terse = shorten(prompt, generator) if generator.random() < _TERSE_SHARE else prompt
            # A comma may take a token that was not planned for.
            return Told(f"{word} {terse if count(terse) <= count(prompt) else prompt}", text, alone=True)
        chosen = {"": captions[number], SHORT: min(captions, key=count), DETAILED: max(captions, key=count)}
        return Told(word, chosen[word], alone=False)

    def _shares(self) -> dict[str, float]:
        """Returns the share of each form, by its word, of those that there are."""
        with_clip = 1 - self.expand
        plain = 1 - self.short - self.detailed
        shares = {"": plain * with_clip, SHORT: self.short * with_clip, DETAILED: self.detailed * with_clip}
        return {word: share for word, share in {**shares, EXPAND: self.expand}.items() if share > 0}


def put_told(row: Row, index: int, sample: Prepared, told: Told) -> None:
    """Adds what is told of a sample to a row that has a place for how much of a text is given."""
    layout = row.layout
    (text,) = layout.tokenizer.encode([f"{told.given} {told.text}"])
    t, h, w, _ = sample.latent_THWC.shape
    row.put(
        sample=index,
        grid=(0, 0, 0) if told.alone else shapes.token_grid((t, h, w), layout.patch),
        fps=sample.fps,
        text=text,
        tokens_LP=None if told.alone else patchify(sample.latent_THWC, layout.patch),
        given=len(spell_words(told.given)),
    )


def _tokens(word: str) -> int:
    return len(spell_words(word)) - 1
