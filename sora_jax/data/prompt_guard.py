"""Whether a longer text keeps all that a prompt says, and says nothing against it; and prompts as short as users type.

Words are compared, nothing judges: what is lost is told for certain, what is contradicted where the grammar is plain
English (a colour or a number before its noun, a direction in its clause, a negation before a word), and so is what is
added (a thing with its article that no place leads to).
"""

import collections
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence

import numpy as np


def _read_list(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Say how words belong together, not what is seen.
_FUNCTION_WORDS = _read_list(
    """
    a an the of on in at with and or to is are was were be being been it its this that these those over into onto
    from by as for there while which who whose
    """
)
_NEGATIONS = _read_list(
    """
    no not without never none neither nor
    """
)
_COLOURS = _read_list(
    """
    red orange yellow green cyan blue purple violet pink brown black white grey gray gold golden silver beige
    turquoise teal magenta crimson scarlet navy maroon
    """
)
_DIRECTIONS = _read_list(
    """
    left right up down still upward downward upwards downwards leftward rightward
    """
)
# Between a colour, or a number, and its noun.
_BETWEEN = _read_list(
    """
    small large big little tiny huge tall short long old young new bright dark light pale deep soft shiny glossy
    round thick thin wide narrow
    """
)
# Lead to where something is, or to what belongs to it.
_LEADING = _read_list(
    """
    of on in at with into onto over from by for to behind under above below near beside through across against around
    between along toward towards before inside outside the this that these those its
    """
)
_ARTICLES = _read_list(
    """
    a an another
    """
)
_ENDING = _FUNCTION_WORDS | _NEGATIONS | _LEADING
# Directions that nothing is gone along: "down a street" is one way, "right a street" is not.
_SIDES = _read_list(
    """
    left right still
    """
)
# Which way they go belongs to who goes.
_VERBS = ("mov", "stay", "go", "slid", "drift", "float", "fly", "travel", "head", "run", "walk", "ris", "fall", "glid")
_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_NUMBERS = {word: str(number) for number, word in enumerate(_NAMES)}
_WORD = re.compile(r"\w+(?:['\u2019.,:-]\w+)*")
_QUOTED = re.compile(r"\"([^\"]+)\"|\u201c([^\u201d]+)\u201d|\u00ab([^\u00bb]+)\u00bb|\u2018([^\u2019]+)\u2019(?!\w)")
_BREAK = re.compile(r"[,;.:!?()]|\band\b|\bwhile\b")
_JOINT = re.compile(rf"({_BREAK.pattern})")
_DROPPED, _TURNED, _LISTED = 0.2, 0.25, 0.25


def find_losses(prompt: str, longer: str) -> tuple[str, ...]:
    """Returns in words what of a prompt a longer text lacks or contradicts; empty where it keeps all."""
    return (*lost(prompt, longer), *contradicted(prompt, longer))


def lost(prompt: str, longer: str) -> tuple[str, ...]:
    """Returns in words what is said in a prompt and not in a longer text.

    Its words but those that only join others, in any form that plain endings make, its numbers, and to the letter what
    it quotes. Letters' case does not count, but in quotes.
    """
    there = {_stem(word) for word in _words(longer)}
    whole = _folded(longer)
    # Words of scripts without spaces stand within others.
    kept = (_stem(word) in there or (not word.isascii() and word in whole) for word in _content(prompt))
    words = [f"{word!r} is lost" for word, is_kept in zip(_content(prompt), kept, strict=True) if not is_kept]
    texts = [one for found in _QUOTED.findall(unicodedata.normalize("NFC", prompt)) for one in found if one]
    quoted = [f"the text {text!r} is lost" for text in texts if text not in unicodedata.normalize("NFC", longer)]
    return tuple(dict.fromkeys([*words, *quoted]))


def contradicted(prompt: str, longer: str) -> tuple[str, ...]:
    """Returns in words where a longer text says another colour, number or direction of a noun, or denies a word."""
    found = []
    for what, read in _READERS.items():
        asked = read(prompt)
        for noun, values in read(longer).items():
            if noun in asked and (other := sorted(values - asked[noun])):
                whole = next(word for word in _words(prompt) if _stem(word) == noun)
                found.append(f"{what} of {whole!r} is {' and '.join(other)}, not {' and '.join(sorted(asked[noun]))}")
    denied = _denied(longer) - _denied(prompt)
    words = {_stem(word) for word in _content(prompt)}
    return (*found, *(f"{word!r} is denied" for word in sorted(denied & words)))


def find_additions(prompt: str, longer: str, *, joined: bool) -> tuple[str, ...]:
    """Returns in words which things a longer text shows beside those of a prompt; empty where it shows no others.

    Things are what begins a part of a sentence with an article, a number or a colour: neither where something is ("on a
    dark background") nor what belongs to it ("with a hat", "holds a cup"). Where the prompt names nothing, the first
    one is what it is about.

    Args:
      prompt: As the user wrote it.
      longer: What it became.
      joined: Whether only what "and" or "while" joins is looked at: prose says much behind a comma that is no thing.
    """
    asked = collections.Counter(_stem(word) for word in _words(prompt) if _is_noun(word))
    things = _things(longer)
    found, seen = [], collections.Counter[str]()
    for phrase, is_joined in things if asked else things[1:]:
        named = {_stem(word) for word in phrase} & asked.keys()
        seen.update(named)
        if joined and not is_joined:
            continue
        again = any(seen[noun] > asked[noun] for noun in named)
        if again or not named:
            found.append(f"{' '.join(phrase)!r} is added")
    twice = (
        [] if joined else [noun for noun, times in _introduced(longer).items() if times > max(1, asked[_stem(noun)])]
    )
    return (*found, *_more_than_one(prompt, longer), *(f"{noun!r} is there twice" for noun in twice))


def shorten(text: str, generator: np.random.Generator) -> str:
    """Returns a text as short as users type: "a red circle moves right" may be "red circle right", or "circle, red".

    Words that only join others go, and some of the others; neighbours may change places, and commas part them.
    """
    words = [word for word in text.split() if _folded(word) not in _FUNCTION_WORDS]
    kept = [word for word, chance in zip(words, generator.random(len(words)), strict=True) if chance >= _DROPPED]
    if not kept:
        return text
    if len(kept) > 1 and generator.random() < _TURNED:
        place = int(generator.integers(len(kept) - 1))
        kept[place], kept[place + 1] = kept[place + 1], kept[place]
    return (", " if generator.random() < _LISTED else " ").join(kept)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _words(text: str) -> list[str]:
    """Returns the words of a text, of one case; numbers as digits."""
    found = (match.group() for match in _WORD.finditer(_folded(text)))
    return [_NUMBERS.get(word, word) for word in found]


def _content(text: str) -> list[str]:
    return [word for word in _words(text) if word not in _FUNCTION_WORDS]


def _stem(word: str) -> str:
    """Returns what forms of an English word have in common: moves, moving and moved are the same."""
    if not (word.isascii() and word.isalpha()):
        return re.sub(r"['\u2019]s$", "", word)
    for ending in ("ing", "ed", "es", "s", "e"):
        if word.endswith(ending) and len(word) >= len(ending) + 3:
            word = word.removesuffix(ending)
            break
    if len(word) > 3 and word[-1] == word[-2]:
        word = word[:-1]
    return f"{word[:-1]}i" if word.endswith("y") and len(word) > 2 else word


def _clauses(text: str) -> list[list[str]]:
    """Returns the words of each part of a text that "and" and commas leave.

    A part without a noun belongs to the one before it, the first to the one behind it: "red, circle, right" is one.
    """
    found: list[list[str]] = []
    for part in _BREAK.split(_folded(text)):
        words = _words(part)
        if found and not (any(map(_is_noun, words)) and any(map(_is_noun, found[-1]))):
            found[-1] += words
        else:
            found.append(words)
    return found


def _is_noun(word: str) -> bool:
    others = _FUNCTION_WORDS | _NEGATIONS | _COLOURS | _DIRECTIONS | _BETWEEN
    return word not in others and not word.isdecimal() and not _stem(word).startswith(_VERBS)


def _things(text: str) -> list[tuple[list[str], bool]]:
    """Returns the words of each thing that a part of a text begins with, and whether "and" or "while" joins it."""
    pieces = _JOINT.split(_folded(text))
    found = []
    for number in range(0, len(pieces), 2):
        joints = pieces[max(0, number - 1) : number + 2 : 2] if number else pieces[1:2]
        for words in _unjoined(_words(pieces[number])):
            thing = _first_thing(words)
            if any(map(_is_noun, thing)):
                found.append((thing, any(joint in ("and", "while") for joint in joints)))
    return found


def _unjoined(words: list[str]) -> Iterator[list[str]]:
    """Yields what lacks an "and" between: "a red circle moves right a blue square" are two parts."""
    start = 0
    for place in range(1, len(words)):
        if words[place - 1] in _SIDES and _introduces(words[place]):
            yield words[start:place]
            start = place
    yield words[start:]


def _first_thing(words: list[str]) -> list[str]:
    """Returns the words of the thing that some words begin with; none where they begin with something else.

    Before it a place may stand: "on a dark background a red circle".
    """
    led = placed = False
    for place, word in enumerate(words):
        if word in _LEADING:
            led = placed = True
        elif _introduces(word) and not led:
            return _phrase(words[place:])
        elif _is_noun(word):
            led = False
            if not placed:
                break
    return []


def _phrase(words: list[str]) -> list[str]:
    """Returns the beginning of some words that is about one thing: "a shot of a red car" goes on behind its "of"."""
    named = False
    for place, word in enumerate(words):
        after_of = place > 0 and words[place - 1] == "of"
        if word == "of":
            named = False
        elif place and not after_of and (word in _ENDING or (named and _introduces(word))):
            return words[:place]
        named = named or _is_noun(word)
    return words


def _introduced(text: str) -> collections.Counter[str]:
    """Returns how often each noun has an article that is not "the": what stammers says "a dark background" twice."""
    words, found = _words(text), collections.Counter[str]()
    for place, word in enumerate(words):
        if word in _ARTICLES:
            found.update(itertools.islice(filter(_is_noun, words[place + 1 :]), 1))
    return found


def _introduces(word: str) -> bool:
    return word in _ARTICLES or word in _COLOURS or word.isdecimal()


def _more_than_one(prompt: str, longer: str) -> list[str]:
    """Returns in words of what a longer text shows several, where the prompt has one, and no number."""
    said, found = set(_words(prompt)), []
    nouns = {_stem(word): word for word in said if _is_noun(word)}
    plurals = {_stem(word) for word in _words(longer) if word.endswith("s") and word not in said}
    numbered = _READERS["the number"](prompt)
    for noun, values in _READERS["the number"](longer).items():
        if noun in nouns.keys() & plurals and noun not in numbered and values - {"0", "1"}:
            found.append(f"there are {' and '.join(sorted(values))} of {nouns[noun]!r}")
    return found


def _before_noun(text: str, is_value: Callable[[str], bool]) -> dict[str, set[str]]:
    """Returns by noun what is said of the kind that `is_value` tells right before it, or else behind it."""
    found: dict[str, set[str]] = {}
    for words in _clauses(text):
        for place, word in enumerate(words):
            if is_value(word):
                ahead = itertools.dropwhile(lambda one: one in _BETWEEN or one in _COLOURS, words[place + 1 :])
                _note(found, word, [one for one in (next(ahead, ""), *reversed(words[:place])) if one])
    return found


def _ways(text: str) -> dict[str, set[str]]:
    """Returns by noun the directions that follow it, or else stand before it."""
    found: dict[str, set[str]] = {}
    for words in _clauses(text):
        for place, word in enumerate(words):
            if word in _DIRECTIONS:
                _note(found, re.sub("wards?$", "", word), [*reversed(words[:place]), *words[place + 1 :]])
    return found


def _note(found: dict[str, set[str]], value: str, places: Sequence[str]) -> None:
    """Adds a value to the first noun of some words."""
    for noun in filter(_is_noun, places):
        found.setdefault(_stem(noun), set()).add(value)
        return


def _denied(text: str) -> set[str]:
    """Returns the words that follow a negation in its clause."""
    found: set[str] = set()
    for words in _clauses(text):
        for place, word in enumerate(words):
            if word in _NEGATIONS:
                found |= {_stem(one) for one in words[place + 1 : place + 4]}
    return found


_READERS: dict[str, Callable[[str], dict[str, set[str]]]] = {
    "the colour": lambda text: _before_noun(text, lambda word: word in _COLOURS),
    "the number": lambda text: _before_noun(text, str.isdecimal),
    "the direction": _ways,
}
