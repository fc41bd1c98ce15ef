"""What captions of a run say about prompts: words that none of them has, and prompts that say less than all of them."""

import collections
import contextlib
from collections.abc import Iterator, Sequence

import numpy as np

from sora_jax.core.errors import DataError
from sora_jax.data.shards.catalogue import read_words
from sora_jax.data.shards.files import index_paths
from sora_jax.data.shards.prepared import PreparedSet
from sora_jax.data.words import unseen, words_of
from sora_jax.experiment.schema import Settings
from sora_jax.train.workdir import Workdir

_MOST_WORDS = 8
# Share of the captions from which on a word, such as an article, tells nothing.
_COMMON = 0.9
# Clips whose captions are compared with prompts, fewer where their latents are large: a second at most.
_MOST_CLIPS, _MOST_BYTES = 1_000, 2**26


def prompt_advice(
    workdir: Workdir, settings: Settings, prompts: Sequence[str], negatives: Sequence[str] = ()
) -> list[str]:
    """Returns sentences on what the model cannot have learnt of prompts; none where the prepared clips are gone.

    Of `negatives`, negative prompts, words alone count. A public model was trained on captions that nobody here knows.
    """
    if settings.model is not None or not (prompts or negatives):
        return []
    return [*_never_seen(workdir, settings, [*prompts, *negatives]), *_too_little(workdir, settings, prompts)]


def _never_seen(workdir: Workdir, settings: Settings, prompts: Sequence[str]) -> Iterator[str]:
    known = read_words(*(workdir.prepared(name) for name in settings.collections))
    # Not known: prepared before words were noted, or not at all.
    found = [] if known is None else unseen(prompts, known)
    if not found:
        return
    listed = ", ".join(map(repr, found[:_MOST_WORDS]))
    more = f" and {len(found) - _MOST_WORDS} more" if len(found) > _MOST_WORDS else ""
    yield (
        f"no caption of this run has {listed}{more}: the model never learnt what that looks like; use words of the "
        "captions, or train on clips that show it"
    )


def _too_little(workdir: Workdir, settings: Settings, prompts: Sequence[str]) -> Iterator[str]:
    """Yields a sentence on each prompt that captions have all words of, and more, where none is contained in it.

    Where each caption names a colour, a model never saw a text without one, and gives an empty picture.
    """
    captions = _captions(workdir, settings)
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


def _captions(workdir: Workdir, settings: Settings) -> dict[str, set[str]]:
    """Returns captions of clips spread over the collections, each with its words."""
    folders = [workdir.prepared(name) for name in settings.collections]
    if not all(map(index_paths, folders)):
        return {}
    prepared = PreparedSet(*folders)
    size = sum(file.stat().st_size for folder in folders for file in folder.glob("*.arrayrecord"))
    count = min(len(prepared), _MOST_CLIPS, 1 + _MOST_BYTES * len(prepared) // max(size, 1))
    found = {}
    for number in np.unique(np.linspace(0, len(prepared) - 1, count).astype(int)).tolist():
        with contextlib.suppress(DataError):  # training and `verify` tell of it
            found |= {text: words_of(text) for text in prepared.raw(number).captions if text}
    return found
