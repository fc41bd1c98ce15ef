"""Words of captions and prompts: which of a prompt were never in a caption, and how captions spell those that were."""

import unicodedata
from collections.abc import Collection, Iterable

from sora_jax.data.tokens import clean_caption

# Characters of a spelling: longer ones are whole sentences of scripts without spaces, or no words.
_LONGEST_SPELLING = 32


def words_of(text: str) -> set[str]:
    """Returns the words of a text, each once; see `words_in_order`."""
    return set(words_in_order(text))


def words_in_order(text: str) -> list[str]:
    """Returns the words of a text, without regard to case; of scripts without spaces each character is one."""
    found, word = [], ""
    for character in f"{clean_caption(text).casefold()} ":
        wide = unicodedata.east_asian_width(character) in "WF" and not "가" <= character <= "힣"
        if (character.isalnum() and not wide) or (word and unicodedata.category(character).startswith("M")):
            word += character
            continue
        found += [word, character if wide and character.isalnum() else ""]
        word = ""
    return [one for one in found if one]


def unseen(prompts: Iterable[str], known: Collection[str]) -> list[str]:
    """Returns the words of prompts that are not known, each once, as they come."""
    words = (word for prompt in prompts for word in sorted(words_of(prompt), key=prompt.casefold().find))
    return list(dict.fromkeys(word for word in words if word not in known))


def spellings_of(text: str) -> set[str]:
    """Returns what stands between the spaces of a text, as it is written, each once; without what is very long."""
    return {one for one in clean_caption(text).split() if len(one) <= _LONGEST_SPELLING}


def respell(prompt: str, spellings: Collection[str]) -> str:
    """Returns the cleaned prompt, spelled as captions are that have these `spellings`.

    What no caption has is written in the first way that one has: in small letters, without the signs around it, or
    with a capital. What none has in any of these ways stays.
    """
    return " ".join(_respelled(word, spellings) for word in clean_caption(prompt).split())


def _respelled(word: str, spellings: Collection[str]) -> str:
    bare = word
    while bare and unicodedata.category(bare[0])[0] in "PS":
        bare = bare[1:]
    while bare and unicodedata.category(bare[-1])[0] in "PS":
        bare = bare[:-1]
    ways = [way for one in (word, bare) for way in (one, one.lower(), one.capitalize())]
    return next((way for way in ways if way in spellings), word)
