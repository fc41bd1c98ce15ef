"""Words of captions and prompts: which of a prompt were never in a caption."""

import unicodedata
from collections.abc import Iterable

from sora_jax.data.tokens import clean_caption


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


def unseen(prompts: Iterable[str], known: set[str]) -> list[str]:
    """Returns the words of prompts that are not known, each once, as they come."""
    words = (word for prompt in prompts for word in sorted(words_of(prompt), key=prompt.casefold().find))
    return list(dict.fromkeys(word for word in words if word not in known))
