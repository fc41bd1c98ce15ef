"""Reads captions of the drawn world by its grammar, and judges what they say against what a scene shows.

No model judges: a caption either is a sentence of the world, in its own words or in those of
`data.sources.shapes_wordings`, mixed as one likes, and then says exactly this and that; or it counts as wrong in all.
"""

import collections
import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sora_jax.core.errors import UserError
from sora_jax.data.sources import shapes_wordings
from sora_jax.data.sources.shapes_world import BACKGROUNDS, DIRECTIONS, PALETTE, RADII, SHAPES, STILL, Scene

OBJECT_ATTRIBUTES = ("colour", "shape", "motion", "size")
# In every caption of the world where the scene has them; a background and a size may be left out.
_ALWAYS_SAID = ("colour", "shape", "motion", "bar")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToldObject:
    """What a caption says of one object, in the names of `shapes_world`; None where it does not say."""

    colour: str | None = None
    shape: str | None = None
    motion: str | None = None
    size: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionContent:
    """What a caption says, or could say of a scene; `background` is None where it does not say."""

    objects: tuple[ToldObject, ...]
    background: str | None
    bar: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionAccuracy:
    """What captions say of their scenes, all shares in [0, 1].

    By attribute: colour, shape, motion, size, background, bar. One that no caption states has no precision, one that no
    scene has no recall. A caption that cannot be read counts as if it stated all that is there, and all of it wrongly.
    """

    precision: dict[str, float]  # of what is stated, how much is right
    recall: dict[str, float]  # of what is there, how much is stated rightly
    hallucinated: float  # of the objects named, by colour and shape, how many are not there (CHAIR_i)
    exact: float  # of the captions: nothing wrong, and nothing left out but the background or a size
    unreadable: float  # of the captions: no sentence of the world

    def facts(self) -> dict[str, Any]:
        """Returns all of them, fit for JSON."""
        return dataclasses.asdict(self)


def parse_caption(text: str) -> CaptionContent | None:
    """Returns what a caption says, or None where it is no sentence of the world; blanks and case do not count."""
    found = _CAPTION.fullmatch(" ".join(text.lower().split()))
    if found is None or (found["before"] and found["after"]):
        return None
    things = [_THING.fullmatch(thing) for thing in found["things"].split(" and ")]
    ground = found["before"] or found["after"]
    return CaptionContent(
        objects=tuple(_told_object(thing) for thing in things if thing),
        background=_GROUND_NAMES[ground] if ground else None,
        bar=found["bar"] is not None,
    )


def truth(scene: Scene) -> CaptionContent:
    """Returns all that a caption can rightly say of a scene."""
    return CaptionContent(
        objects=tuple(
            ToldObject(colour=one.colour, shape=one.shape, motion=one.motion, size=one.size) for one in scene.objects
        ),
        background=scene.background,
        bar=scene.bar is not None,
    )


def score_captions(pairs: Iterable[tuple[Scene, str]]) -> CaptionAccuracy:
    """Returns how right captions are, each of them written for the scene beside it; raises `UserError` without any."""
    stated, there, right = (collections.Counter[str]() for _ in range(3))
    named = absent = exact = unreadable = captions = 0
    for scene, text in pairs:
        captions += 1
        told, true = parse_caption(text), truth(scene)
        tally = _tally(told, true)
        stated += tally.stated
        there += tally.there
        right += tally.right
        named += len(true.objects if told is None else told.objects)
        absent += len(true.objects) if told is None else _absent(told, true)
        exact += told is not None and tally.exact
        unreadable += told is None
    if not captions:
        raise UserError("no captions to score; give at least one scene and its caption")
    return CaptionAccuracy(
        precision={name: right[name] / count for name, count in stated.items()},
        recall={name: right[name] / count for name, count in there.items()},
        hallucinated=absent / named,
        exact=exact / captions,
        unreadable=unreadable / captions,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Tally:
    """How often each attribute is stated, is there, and is stated rightly, in one caption."""

    stated: collections.Counter[str]
    there: collections.Counter[str]
    right: collections.Counter[str]

    @property
    def exact(self) -> bool:
        return self.right == self.stated and all(self.right[name] == self.there[name] for name in _ALWAYS_SAID)


def _tally(told: CaptionContent | None, true: CaptionContent) -> _Tally:
    if told is None:
        there = collections.Counter(name for name, _, value in _compared(true, true) if value)
        return _Tally(stated=there, there=there, right=collections.Counter())
    compared = list(_compared(told, true))
    return _Tally(
        stated=collections.Counter(name for name, said, _ in compared if said),
        there=collections.Counter(name for name, _, value in compared if value),
        right=collections.Counter(name for name, said, value in compared if said and said == value),
    )


def _compared(told: CaptionContent, true: CaptionContent) -> Iterator[tuple[str, str | bool | None, str | bool | None]]:
    """Yields (attribute, what is said, what is there) of each object, and of the scene; nothing is None or False."""
    for said, shown in _matched(told.objects, true.objects):
        for name in OBJECT_ATTRIBUTES:
            yield name, getattr(said, name), getattr(shown, name)
    yield "background", told.background, true.background
    yield "bar", told.bar, true.bar


def _matched(told: tuple[ToldObject, ...], true: tuple[ToldObject, ...]) -> Iterator[tuple[ToldObject, ToldObject]]:
    """Yields objects that are most alike, told and true; one that has no other is beside an object without attributes.

    Colour and shape together go before all else; ties keep the order of the caption.
    """

    def likeness(said: ToldObject, shown: ToldObject) -> int:
        equal = sum(getattr(said, name) == getattr(shown, name) is not None for name in OBJECT_ATTRIBUTES)
        same = (said.colour, said.shape) == (shown.colour, shown.shape)
        return equal + same * len(OBJECT_ATTRIBUTES) * len(true)

    padded = (*told, *(ToldObject() for _ in range(len(true) - len(told))))
    orders = itertools.permutations(range(len(padded)), len(true))
    best = max(orders, key=lambda order: sum(map(likeness, (padded[place] for place in order), true)))
    yield from ((padded[place], shown) for place, shown in zip(best, true, strict=True))
    yield from ((said, ToldObject()) for place, said in enumerate(padded) if place not in best)


def _absent(told: CaptionContent, true: CaptionContent) -> int:
    """Returns how many named objects are not there; one that is named more often than it is there is not.

    One of which colour or shape is not said is any that has the other.
    """
    shown, absent = [(one.colour, one.shape) for one in true.objects], 0
    named = [(one.colour, one.shape) for one in told.objects]
    for said in sorted(named, key=lambda one: one.count(None)):
        fits = [other for other in shown if all(own in (None, its) for own, its in zip(said, other, strict=True))]
        if fits:
            shown.remove(fits[0])
        absent += not fits
    return absent


def _told_object(found: re.Match[str]) -> ToldObject:
    return ToldObject(
        colour=_COLOUR_NAMES[found["colour"]] if found["colour"] else None,
        shape=_SHAPE_NAMES.get(found["shape"]),
        motion=_MOTION_NAMES[found["motion"]] if found["motion"] else None,
        size=found["size"],
    )


def _names(own: Iterable[str], others: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Returns the name in the world of each word for it, the name itself being one."""
    return {word: name for name in own for word in (name, *others[name])}


def _motion_names(others: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Returns the motion that each verb says: those of plain, of detailed and of reworded captions."""
    found = {"stays still": STILL, "staying still": STILL}
    for motion in DIRECTIONS:
        found[f"moves {motion}"] = motion
        found[f"moving {'to the ' if motion in ('left', 'right') else ''}{motion}"] = motion
    return found | {word: name for name, words in others.items() for word in words}


def _any_of(words: Iterable[str]) -> str:
    """Returns a pattern of any of the words, the longer before what it begins with."""
    return "|".join(map(re.escape, sorted(words, key=len, reverse=True)))


_COLOUR_WORDS, _SHAPE_WORDS, _MOTION_WORDS, _GROUND_WORDS, _PLACES, _ = shapes_wordings.TABLES
_COLOUR_NAMES = _names(PALETTE, _COLOUR_WORDS)
_SHAPE_NAMES = _names(SHAPES, _SHAPE_WORDS)
_GROUND_NAMES = _names(BACKGROUNDS, _GROUND_WORDS)
_MOTION_NAMES = _motion_names(_MOTION_WORDS)
_ARTICLE = "(?:an (?=[aeiou])|a (?![aeiou]))"


def _place_pattern(group: str) -> str:
    ground = f"{_ARTICLE}(?P<{group}>{_any_of(_GROUND_NAMES)})"
    befores_and_afters = [place.split("{}") for place in (*_PLACES, "over {} background")]
    # A group may stand once in a pattern, so what comes before the ground does not decide what comes after it.
    before, after = (_any_of(set(side)) for side in zip(*befores_and_afters, strict=True))
    return f"(?:{before}){ground}(?:{after})"


def _thing_pattern(*, named: bool) -> str:
    size, colour, shape, motion = (
        f"(?P<{name}>{_any_of(words)})" if named else f"(?:{_any_of(words)})"
        for name, words in zip(("size", "colour", "shape", "motion"), _THING_WORDS, strict=True)
    )
    return f"{_ARTICLE}(?:{size} )?(?:{colour} )?{shape}(?: {motion})?"


# An object of which no shape is said is a thing.
_THING_WORDS = (RADII, _COLOUR_NAMES, (*_SHAPE_NAMES, "thing"), _MOTION_NAMES)
_THING = re.compile(_thing_pattern(named=True))
_ANY_THING = _thing_pattern(named=False)
_CAPTION = re.compile(
    f"(?:{_place_pattern('before')} )?(?P<things>{_ANY_THING}(?: and {_ANY_THING})*)"
    f"(?: {_place_pattern('after')})?(?P<bar> behind a bar)?"
)
