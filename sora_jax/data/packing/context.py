"""Which clips are given beside a clip, how often.

Letters: W draws, X kinds of clips beside, Y sets of them.
"""

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np

from sora_jax.core.errors import UserError

_NOTHING = "none"
# Between the kinds of a set.
_AND = "+"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextMix:
    """Shares of sets of clips beside, that sum to 1: "none", "edges", "edges+boxes".

    Of the set that is drawn each clip is left out again with the chance `dropout`, by itself, in [0, 1): so what is
    trained with several sees also some of them, and none.
    Raises UserError for shares that do not sum to 1, and for a kind twice in a set.
    """

    shares: Mapping[str, float]
    dropout: float

    def __post_init__(self):
        listed = ", ".join(f"{name} {share:g}" for name, share in self.shares.items())
        if min(self.shares.values(), default=-1) < 0 or abs(sum(self.shares.values()) - 1) > 1e-6:
            raise UserError(f"shares of context sum to {sum(self.shares.values()):g}, not 1 (each 0 or more): {listed}")
        if any(len({*kinds}) < len(kinds) or not all(kinds) for kinds in self.sets):
            raise UserError(f"context names a kind twice in one set, or none between two +: {listed}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"context.dropout {self.dropout:g} is outside [0, 1)")

    @property
    def sets(self) -> list[tuple[str, ...]]:
        """The kinds of each set, in the order of the shares."""
        return [() if name == _NOTHING else tuple(name.split(_AND)) for name in self.shares]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of clips beside that occur, sorted."""
        return tuple(sorted({*itertools.chain.from_iterable(self.sets)}))

    @property
    def parts(self) -> int:
        """P, the most clips that are given beside one."""
        return max(map(len, self.sets))

    def draw(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Returns bool (W, X), which of `kinds` each of `count` draws is given."""
        sets_YX = np.array([[kind in one for kind in self.kinds] for one in self.sets], bool)
        sets_YX = sets_YX.reshape(len(self.shares), len(self.kinds))
        reached_Y = np.cumsum([*self.shares.values()])
        chance_W = generator.random(count) * reached_Y[-1]
        set_W = np.minimum(np.searchsorted(reached_Y, chance_W, side="right"), len(sets_YX) - 1)
        return sets_YX[set_W] & (generator.random((count, len(self.kinds))) >= self.dropout)

    def lacking(self, context_NX: np.ndarray, tokens_N: np.ndarray, *, room: int) -> "Lacking":
        """Returns how many clips train without what may be beside them, and why, in rows with `room` for tokens.

        context_NX are the tokens of `kinds` beside each, 0 where a clip has none; tokens_N are its own.
        """
        missing = {kind: int(np.sum(context_NX[:, place] == 0)) for place, kind in enumerate(self.kinds)}
        sets_YX = np.array([[kind in one for kind in self.kinds] for one in self.sets], bool)
        largest_N = np.max(context_NX.astype(np.int64) @ sets_YX.T, axis=1, initial=0)
        # Clips that fit no row alone are in none.
        longest = int(np.max((tokens_N + largest_N)[tokens_N <= room], initial=0))
        long = int(np.sum((tokens_N + largest_N > room) & (tokens_N <= room)))
        missing = {kind: count for kind, count in missing.items() if count}
        return Lacking(missing=missing, long=long, longest=longest, room=room, of=len(tokens_N))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lacking:
    """Clips that go without what may be given beside them.

    Attributes:
      missing: How many have no clip of a kind, by kinds of which some have none.
      long: How many fit no row with all that a set of kinds has for them; they go without that set.
      longest: The most tokens that a clip has with such a set.
      room: The tokens of a row.
      of: All.
    """

    missing: Mapping[str, int]
    long: int
    longest: int
    room: int
    of: int
