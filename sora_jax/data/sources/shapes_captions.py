"""How captions of the drawn world are worded: sentences of one grammar, rightly told or with faults.

`evaluation/caption_reader.py` reads all of them back.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np


class NamedThing(Protocol):
    """What is said of one object; None where that is nothing."""

    @property
    def colour(self) -> str | None: ...

    @property
    def shape(self) -> str | None: ...

    @property
    def motion(self) -> str | None: ...


class SizedThing(NamedThing, Protocol):
    """The same, with the size that detailed captions name."""

    @property
    def size(self) -> str | None: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaidThing:
    """What a caption with faults says of one object; None where that is nothing."""

    colour: str | None
    shape: str | None
    motion: str | None
    size: str | None


def phrase(thing: NamedThing) -> str:
    """Returns what a plain caption says of one object; one without a shape is a thing."""
    verb = {None: "", "still": " stays still"}.get(thing.motion, f" moves {thing.motion}")
    return f"{_noun(thing)}{verb}"


def compose(things: Sequence[SizedThing], *, ground: str | None, bar: bool) -> tuple[str, ...]:
    """Returns the captions of objects on a ground: short, plain, plain reordered, detailed; only the last has sizes.

    Where the ground is None none of them names one.
    """
    plain = " and ".join(map(phrase, things))
    detailed = " and ".join(map(_detailed_phrase, things))
    behind = " behind a bar" if bar else ""
    if ground is None:
        return (f"{plain}{behind}",) * 3 + (f"{detailed}{behind}",)
    place = f"a {ground} background"
    return (
        f"{plain}{behind}",
        f"{plain} on {place}{behind}",
        f"on {place} {plain}{behind}",
        f"{detailed} over {place}{behind}",
    )


def compose_spoiled(
    things: Sequence[SizedThing],
    *,
    ground: str,
    bar: bool,
    words: Mapping[str, Sequence[str]],
    faults: tuple[float, float],
    generator: np.random.Generator,
) -> tuple[str, ...]:
    """Returns the captions of objects on a ground by one who overlooks and mistakes things, alike in all of them.

    `faults` are the chances that an attribute is left out, and that another of `words` (by "colour", "shape", "motion",
    "size", "background") is said instead. A bar may be left out only.
    """
    missing, wrong = faults

    def said(name: str, true: str | None) -> str | None:
        chance, other = generator.random(), generator.integers(len(words[name]) - 1)
        if true is None or chance < missing:
            return None
        return [word for word in words[name] if word != true][other] if chance < missing + wrong else true

    told = [
        SaidThing(
            colour=said("colour", thing.colour),
            shape=said("shape", thing.shape),
            motion=said("motion", thing.motion),
            size=said("size", thing.size),
        )
        for thing in things
    ]
    seen = generator.random() >= missing
    return compose(told, ground=said("background", ground), bar=bar and bool(seen))


def _noun(thing: NamedThing, size: str | None = None) -> str:
    return " ".join(word for word in ("a", size, thing.colour, thing.shape or "thing") if word is not None)


def _detailed_phrase(thing: SizedThing) -> str:
    name = _noun(thing, thing.size)
    if thing.motion is None:
        return name
    if thing.motion == "still":
        return f"{name} staying still"
    return f"{name} moving {'to the ' if thing.motion in ('left', 'right') else ''}{thing.motion}"
