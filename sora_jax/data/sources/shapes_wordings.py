"""Captions of the drawn world in many words, as people would write them.

With them a model whose text encoder has read other texts can learn what words have in common, instead of thirty words.
None of the words that `benchmarks/reworded.py` asks with is here: its prompts stay unseen.
"""

from collections.abc import Sequence

import numpy as np

_COLOURS: dict[str, tuple[str, ...]] = {
    "red": (
        "ruby",
        "cherry",
        "vermilion",
        "burgundy",
        "tomato red",
        "brick red",
        "strawberry",
        "garnet",
        "rust",
        "wine",
    ),
    "yellow": ("canary", "mustard", "amber", "banana", "buttery", "honey", "sunflower", "corn", "sunny", "saffron"),
    "green": ("lime", "olive", "jade", "minty", "forest green", "leafy", "mossy", "fern", "spinach", "avocado"),
    "cyan": ("teal", "azure", "sky blue", "ice blue", "sea green", "bluish green", "lagoon", "arctic", "cerulean"),
    "blue": ("cobalt", "indigo", "royal blue", "ultramarine", "ocean blue", "denim", "midnight blue", "deep blue"),
    "purple": ("lilac", "lavender", "plum", "mauve", "fuchsia", "orchid", "grape", "amethyst", "hot pink", "mulberry"),
}
_SHAPES: dict[str, tuple[str, ...]] = {
    "circle": ("ball", "dot", "sphere", "orb", "coin", "globe"),
    "square": ("cube", "tile", "quadrangle", "four sided shape", "rectangle", "crate", "brick"),
    "triangle": ("three sided shape", "cone", "arrowhead", "tent", "three cornered shape", "peak", "pointed shape"),
}
_SIDEWAYS = ("goes {}", "slides to the {}", "travels {}", "heads to the {}", "shifts {}", "runs to the {} side")
_MOTIONS: dict[str, tuple[str, ...]] = {
    "left": tuple(verb.format("left") for verb in _SIDEWAYS),
    "right": tuple(verb.format("right") for verb in _SIDEWAYS),
    "up": ("goes up", "ascends", "soars", "lifts off", "floats up", "heads to the top"),
    "down": ("goes down", "descends", "drops", "plunges", "tumbles", "heads to the bottom"),
    "still": ("rests", "does not move", "stands still", "waits", "is motionless", "stays in place"),
}
_GROUNDS: dict[str, tuple[str, ...]] = {
    "dark": ("dim", "shadowy", "murky", "unlit", "charcoal", "dusky"),
    "grey": ("silver", "stone", "slate", "concrete", "cement", "medium grey"),
    "light": ("white", "ivory", "pearly", "snowy", "cream", "milky"),
}
_PLACES = ("on {} background", "in front of {} wall", "over {} ground", "on {} surface", "in {} scene")
_OWN_SHARE = 0.2  # of the words that are those of the plain captions
TABLES = (_COLOURS, _SHAPES, _MOTIONS, _GROUNDS, _PLACES, _OWN_SHARE)


def reword(
    generator: np.random.Generator, *, things: Sequence[tuple[str, str, str | None]], ground: str, count: int
) -> tuple[str, ...]:
    """Returns `count` captions of objects, (colour, shape, motion) each, on a ground; words are drawn anew in each."""
    return tuple(_caption(generator, things, ground) for _ in range(count))


def _caption(generator: np.random.Generator, things: Sequence[tuple[str, str, str | None]], ground: str) -> str:
    place = _PLACES[generator.integers(len(_PLACES))].format(_a(_word(generator, _GROUNDS, ground)))
    said = []
    for colour, shape, motion in things:
        thing = _a(f"{_word(generator, _COLOURS, colour)} {_word(generator, _SHAPES, shape)}")
        moves = "" if motion is None else f" {_verb(generator, motion)}"
        said.append(f"{thing}{moves}")
    plain = " and ".join(said)
    return f"{place} {plain}" if generator.random() < 0.3 else f"{plain} {place}"


def _word(generator: np.random.Generator, table: dict[str, tuple[str, ...]], name: str) -> str:
    """Returns the name itself at times, else one of its other words."""
    number, own = generator.integers(len(table[name])), generator.random() < _OWN_SHARE
    return name if own else table[name][number]


def _verb(generator: np.random.Generator, motion: str) -> str:
    word = _word(generator, _MOTIONS, motion)
    if word != motion:
        return word
    return "stays still" if motion == "still" else f"moves {motion}"


def _a(text: str) -> str:
    """Returns the text after its article; all of these that begin with a vowel are spoken with one."""
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"
