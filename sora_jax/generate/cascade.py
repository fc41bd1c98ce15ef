"""A video in passes: first small and slow, then larger and faster (a cascade, as arXiv 2210.02303 has it)."""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence

from sora_jax.core.errors import UserError

# What a pass multiplies, and by what: ("space", 2) height and width, ("time", 4) the frames per second.
Refinement = tuple[str, int]
_KINDS = ("space", "time")
# Sizes are rounded to whole tokens: a clip made 1.9 times larger is of half the size.
_ROUNDING = 1.15
_WRITTEN = re.compile(r"(\w+):([0-9]{1,4})", re.ASCII)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RefinerConfig:
    """How a model that was trained with small, slow clips beside clips makes large, fast ones of them.

    Attributes:
      level: Of the noise on the small clip, in [0, 1].
      steps: Of the solver; None: as many as otherwise.
      tile: Height and width of what is made at once at most, px; None: whole frames.
    """

    level: float
    steps: int | None
    tile: int | None

    def __post_init__(self):
        if not 0 <= self.level <= 1:
            raise UserError(f"refiner.level {self.level:g} is outside [0, 1]")
        for name, value in (("steps", self.steps), ("tile", self.tile)):
            if value is not None and value < 1:
                raise UserError(f"refiner.{name} {value} must be 1 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refiner:
    """What such a model was trained with.

    Attributes:
      space: By what height and width of the small clip were divided, ascending.
      time: Of how many frames it had one, ascending.
      config: How it is sampled.
    """

    space: tuple[int, ...]
    time: tuple[int, ...]
    config: RefinerConfig

    def factors(self, space: float, time: float) -> tuple[int, int]:
        """Returns the largest numbers that it was trained with and that are no larger than these, the smallest else."""
        return _at_most(self.space, space), _at_most(self.time, time)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pass:
    """What one pass makes: height and width in px, frames, and frames per second."""

    size: tuple[int, int]
    frames: int
    fps: float


def check_refinements(refine: Sequence[Refinement]) -> None:
    """Raises UserError for what is not ("space", n) or ("time", n) with a whole number n from 2 on."""
    for kind, factor in refine:
        if kind not in _KINDS or factor < 2:
            raise UserError(
                f"refine has ({kind!r}, {factor}): give 'space' or 'time', each with a whole number from 2 on"
            )


def read_refinements(text: str) -> tuple[Refinement, ...]:
    """Returns the refinements of "space:2,time:4", none of "none"; raises UserError for what is neither."""
    if text == "none":
        return ()
    found = [_WRITTEN.fullmatch(part.strip()) for part in text.split(",")]
    steps = [(one[1], int(one[2])) for one in found if one]
    if len(steps) < len(found):
        raise UserError(f"refine {text!r} is not such as space:2,time:4, or none")
    check_refinements(steps)
    return tuple(steps)


def plan_passes(
    refine: Sequence[Refinement],
    *,
    size: tuple[int, int],
    frames: int,
    fps: float,
    check: Callable[[tuple[int, int]], object] = lambda size: None,
) -> tuple[Pass, ...]:
    """Returns the passes to a video of `frames` frames, the smallest and slowest first; none without refinements.

    The last may have a few frames more than `frames`, as a pass has a frame where the one before it has one. Raises
    UserError where a side is no multiple of what it is to be multiplied by, or `check` raises it for a size.
    """
    passes = [Pass(size=size, frames=frames, fps=fps)]
    for kind, factor in reversed(refine):
        later = passes[0]
        if kind == "time":
            earlier = Pass(size=later.size, frames=1 + math.ceil((later.frames - 1) / factor), fps=later.fps / factor)
            passes[0] = dataclasses.replace(later, frames=1 + (earlier.frames - 1) * factor)
        else:
            height, width = later.size
            if height % factor or width % factor:
                raise UserError(f"{height}x{width} px are not {factor} times a size in whole px, as refine asks for")
            earlier = dataclasses.replace(later, size=(height // factor, width // factor))
            _check_small(earlier.size, size, check)
        passes.insert(0, earlier)
    return tuple(passes) if refine else ()


def _at_most(factors: Sequence[int], wanted: float) -> int:
    """Returns the largest of ascending factors that is at most `wanted`, but for rounding to whole tokens."""
    return max((factor for factor in factors if factor <= wanted * _ROUNDING), default=factors[0])


def _check_small(small: tuple[int, int], size: tuple[int, int], check: Callable[[tuple[int, int]], object]) -> None:
    try:
        check(small)
    except UserError as error:
        raise UserError(
            f"{size[0]}x{size[1]} px are refined from {small[0]}x{small[1]} px: {error}; ask for another size, or for "
            "refine=none"
        ) from error
