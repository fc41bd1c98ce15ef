"""What captions of a run say about prompts: words that none of them has, and prompts that say less than all of them."""

import collections
from collections.abc import Iterator, Sequence

from sora_jax.data.words import unseen, words_of
from sora_jax.experiment.caption_words import CaptionWords

_MOST_WORDS = 8
# Share of the captions from which on a word, such as an article, tells nothing.
_COMMON = 0.9


def prompt_advice(caption_words: CaptionWords, prompts: Sequence[str], negatives: Sequence[str] = ()) -> list[str]:
    """Returns sentences on what the model cannot have learnt of prompts; of negative ones words alone count."""
    return [*_never_seen(caption_words, [*prompts, *negatives]), *_too_little(caption_words, prompts)]


def _never_seen(caption_words: CaptionWords, prompts: Sequence[str]) -> Iterator[str]:
    found = unseen(prompts, caption_words.words) if prompts and caption_words.words is not None else []
    if not found:
        return
    listed = ", ".join(map(repr, found[:_MOST_WORDS]))
    more = f" and {len(found) - _MOST_WORDS} more" if len(found) > _MOST_WORDS else ""
    yield (
        f"no caption of this run has {listed}{more}: the model never learnt what that looks like; use words of the "
        "captions, or train on clips that show it"
    )


def _too_little(caption_words: CaptionWords, prompts: Sequence[str]) -> Iterator[str]:
    """Yields a sentence on each prompt that captions have all words of, and more, where none is contained in it.

    Where each caption names a colour, a model never saw a text without one, and gives an empty picture.
    """
    captions = caption_words.captions if prompts else {}
    often = collections.Counter(word for has in captions.values() for word in has)
    common = {word for word, times in often.items() if times >= _COMMON * len(captions)}
    telling = {text: has - common for text, has in captions.items() if has - common}
    for prompt in dict.fromkeys(prompts):
        words = words_of(prompt) - common
        further = {text: len(has) for text, has in telling.items() if words < has}
        if words and further and not any(has <= words for has in telling.values()):
            yield (
                f"each caption of this run with the words of {prompt!r} says more, such as "
                f"{min(further, key=further.__getitem__)!r}: say as much, or what is left out may not be there at all"
            )
