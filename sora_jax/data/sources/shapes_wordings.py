"""Captions of the drawn world in many words, as people would write them.

With them a model whose text encoder has read other texts can learn what words have in common, instead of thirty words.
None of the words that `benchmarks/reworded.py` asks with is here: its prompts stay unseen.
"""

from collections.abc import Sequence

import numpy as np


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


_COLOURS: dict[str, tuple[str, ...]] = {
    "red": _words(
        "ruby, cherry, vermilion, burgundy, tomato red, brick red, strawberry, garnet, rust, wine, maroon, "
        "carmine, cardinal, blood red, rose red, raspberry, cranberry, coral red, poppy, apple red, lipstick "
        "red, chili red, dark red, deep red, pure red, claret, cerise, rouge, vivid red, beetroot, ketchup"
    ),
    "yellow": _words(
        "canary, mustard, amber, banana, buttery, honey, sunflower, corn, sunny, saffron, straw coloured, "
        "citrine, daffodil, dandelion, vivid yellow, chrome yellow, maize, butterscotch, custard, pineapple, "
        "primrose, flaxen, marigold, topaz, ochre, mango, pure yellow, light yellow, warm yellow, brass, "
        "sulphur, gilded, gilt, amber yellow, duckling, egg yolk, buttercup, cheese, taxi yellow"
    ),
    "green": _words(
        "lime, olive, jade, minty, forest green, leafy, mossy, fern, spinach, avocado, pea green, vivid "
        "green, dark green, sage, pine, viridian, shamrock, clover, malachite, kelly green, bottle green, "
        "cucumber, pistachio, hunter green, verdant, ivy, parsley, broccoli, pure green, deep green, lawn "
        "green, meadow"
    ),
    "cyan": _words(
        "teal, azure, sky blue, ice blue, sea green, bluish green, lagoon, arctic, cerulean, cyan blue, light "
        "cyan, vivid cyan, greenish blue, robin egg blue, baby blue, glacier, pool blue, peacock, caribbean "
        "blue, seafoam, tropical water, powder blue, verdigris, pure cyan, blue green, spearmint, light blue"
    ),
    "blue": _words(
        "cobalt, indigo, royal blue, ultramarine, ocean blue, denim, midnight blue, deep blue, vivid blue, "
        "dark blue, lapis, cornflower, blueberry, steel blue, prussian blue, oxford blue, persian blue, pure "
        "blue, marine blue, ink blue, bluebell, electric blue, admiral blue, dodger blue, blue jay, "
        "tanzanite, blue topaz, sea blue, jeans blue, gentian, hyacinth blue"
    ),
    "purple": _words(
        "lilac, lavender, plum, mauve, fuchsia, orchid, grape, amethyst, hot pink, mulberry, vivid purple, "
        "royal purple, aubergine, eggplant, heather, wisteria, iris, periwinkle, byzantium, boysenberry, "
        "tyrian purple, pinkish purple, heliotrope, thistle, rose pink, raspberry pink, pure purple, deep "
        "purple, dark purple, pink, neon pink, beet purple, bubblegum pink, purplish pink, peony, petunia, "
        "sugar pink, rosy purple"
    ),
}
_SHAPES: dict[str, tuple[str, ...]] = {
    "circle": _words(
        "ball, dot, sphere, orb, coin, globe, circular shape, bubble, marble, bead, button, pearl, wheel, "
        "plate, moon, circular patch, puck, record, circlet, frisbee, pancake, medallion, hoop, pea, penny"
    ),
    "square": _words(
        "cube, tile, quadrangle, four sided shape, rectangle, crate, brick, square shape, squared figure, "
        "window, stamp, die, pixel, carton, chest, slab, package, parcel, container, case, cabinet, square "
        "patch, paving stone, square piece"
    ),
    "triangle": _words(
        "three sided shape, cone, arrowhead, tent, three cornered shape, peak, pointed shape, triangular "
        "shape, trilateral, delta, spike, roof, mountain, pizza slice, spear tip, gable, steeple, fang, "
        "trigon, triangular figure, prism, shark fin, doorstop, ramp, obelisk, triangular patch, pointed hat"
    ),
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
    "dark": _words(
        "dim, shadowy, murky, unlit, charcoal, dusky, inky, pitch dark, nocturnal, ebony, jet, sombre, "
        "obsidian, very dark, coal, night, onyx, dreary, darkened, sooty, midnight"
    ),
    "grey": _words(
        "silver, stone, slate, concrete, cement, medium grey, greyish, pewter, smoky, cloudy, steel, leaden, "
        "foggy, granite, neutral, gunmetal, dull grey, mid grey, lead, drab, overcast"
    ),
    "light": _words(
        "white, ivory, pearly, snowy, cream, milky, whitish, luminous, chalky, off-white, alabaster, very "
        "light, eggshell, cotton, airy, washed out, faded, sunlit, lit, radiant, shining, paper"
    ),
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
