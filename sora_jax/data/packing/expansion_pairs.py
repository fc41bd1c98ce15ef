"""Pairs of a prompt and a detailed caption of the same clip, without the clip: a captioner learns to expand from them.

Letters: N samples, M stored captions, V those and the pairs.

A captioner that has read "expand: red circle right" and then a detailed caption of such a clip, without seeing it,
writes out prompts in the form of the captions (compare DALL-E 3, "Improving image generation with better captions",
appendix C). What is to come out has the distribution of the training captions by construction.
"""

import dataclasses

import numpy as np

from sora_jax.core import rng
from sora_jax.data.caption_tokens import spell_words
from sora_jax.data.packing.packs import Row
from sora_jax.data.packing.rows import Lengths
from sora_jax.data.prompt_guard import find_additions, find_losses, shorten
from sora_jax.data.shards.prepared import Prepared

_TASK_WORD = "expand:"
_TERSE_SHARE = 0.5  # of the prompts of pairs
_EXTRA_TOKENS = len(spell_words(_TASK_WORD)) - 1


def ask_to_expand(prompt: str) -> str:
    """Returns the text after which a captioner writes a prompt at length."""
    return f"{_TASK_WORD} {prompt}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpansionPairs:
    """Texts without a clip: one of a sample's captions as a prompt, and the longest of those that keep what it says.

    Half of the prompts are shortened as users write.

    Attributes:
      share: Of all that is drawn, in (0, 1).
    """

    share: float

    def lengths(self, stored: Lengths) -> Lengths:
        """Returns what planning knows where pairs are drawn as well, of each sample one more for each of its captions.

        The row of a text alone is planned as if it had one token.
        """
        start_N, count_N = stored.caption_start_N1[:-1], np.diff(stored.caption_start_N1)
        owner_M = np.repeat(np.arange(len(count_N)), count_N)
        text_M = stored.text_tokens_M.astype(np.int64)
        weights_M = np.ones(len(text_M)) if stored.weights_M is None else stored.weights_M
        weights_M = weights_M / np.add.reduceat(weights_M, start_N)[owner_M]
        # START of the second text is none.
        pair_M = text_M + np.maximum.reduceat(text_M, start_N)[owner_M] - 1 + _EXTRA_TOKENS
        order_V = np.argsort(np.concatenate([owner_M, owner_M]), kind="stable")
        return dataclasses.replace(
            stored,
            text_tokens_M=np.concatenate([text_M, pair_M])[order_V],
            caption_start_N1=2 * stored.caption_start_N1,
            weights_M=np.concatenate([(1 - self.share) * weights_M, self.share / count_N[owner_M]])[order_V],
            alone_M=np.repeat([False, True], len(text_M))[order_V],
        )


def put_pair(row: Row, index: int, sample: Prepared, number: int, *, seed: int, draw: int) -> None:
    """Adds the pair of a sample whose prompt is its caption `number` to a row that says how much of a text is given.

    Nothing is learnt that would be refused of what is written, such as to add another thing.
    """
    count, prompt = row.layout.tokenizer.count, sample.captions[number]
    text = max((one for one in sample.captions if _keeps(prompt, one)), key=count)
    generator = rng.generator(seed, "terse prompts", draw)
    if generator.random() < _TERSE_SHARE:
        terse = shorten(prompt, generator)
        # A comma may take a token that was not planned for.
        prompt = terse if count(terse) <= count(prompt) and _keeps(terse, text) else prompt
    asked = ask_to_expand(prompt)
    (both,) = row.layout.tokenizer.encode([f"{asked} {text}"])
    row.put(sample=index, grid=(0, 0, 0), fps=sample.fps, text=both, tokens_LP=None, given=len(spell_words(asked)))


def _keeps(prompt: str, text: str) -> bool:
    return not find_losses(prompt, text) and not find_additions(prompt, text, joined=True)
