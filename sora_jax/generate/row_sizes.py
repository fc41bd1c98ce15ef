"""How long the rows of a batch of canvases are, and how many: each size is a program of its own.

Rows as training has them fit most that is made. What is far smaller, such as one image or the first pass of a cascade,
would be a small part of them, and what is larger does not fit.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from sora_jax.data.packing.packs import PackLayout
from sora_jax.data.packing.plan import Budget, plan_window
from sora_jax.generate.canvas import Canvas, lengths_of

# Rows of other lengths are multiples of it: blocks of attention, and devices that split a row, come out even.
ROW_UNIT = 128
# What is made in a cascade by half the height and width first has a fourth of the tokens.
_SPARE = 4


class RowSize(NamedTuple):
    """Rows of a batch, and tokens of a row."""

    rows: int
    tokens: int

    @property
    def total(self) -> int:
        """Tokens of a batch."""
        return self.rows * self.tokens


def of_length(layout: PackLayout, tokens: int) -> PackLayout:
    """Returns a layout whose rows hold so many tokens."""
    return dataclasses.replace(layout, budget=dataclasses.replace(layout.budget, tokens=tokens))


def longer_rows(size: RowSize, tokens: int, *, parts: int = 1) -> RowSize:
    """Returns rows that hold `tokens`, of no more tokens in all than `size` has where that is possible.

    A canvas that training's rows do not hold is solved in such rows: they are as many as come out even over `parts`.
    """
    length = -(-tokens // ROW_UNIT) * ROW_UNIT
    fewer = max(1, size.total // length)
    return RowSize(rows=-(-fewer // parts) * parts, tokens=length)


class RowSizes:
    """The sizes for which there are programs, of canvases of one kind that rows of `size` hold.

    A size is `size`, or has fewer rows, shorter ones or both, each a half, a quarter and so on, so that there are few.
    Rows are a multiple of `parts`. Making a program takes longer than some rows that stay empty: one that is there
    serves what would need more than a `_SPARE`-th of it.
    """

    def __init__(self, size: RowSize, *, parts: int = 1):
        self._largest, self._parts = size, parts
        self._made: set[RowSize] = set()

    def choose(self, canvases: Sequence[Canvas], layout: PackLayout) -> RowSize:
        """Returns the size of a batch that holds all canvases; where none does, the largest, for several batches."""
        lengths = lengths_of(canvases, layout)
        least = next(_holding(self._all(), *lengths, layout.budget), self._largest)
        made = next(_holding(self._made, *lengths, layout.budget), least)
        chosen = made if made.total < _SPARE * least.total else least
        self._made.add(chosen)
        return chosen

    def _all(self) -> Iterator[RowSize]:
        rows, tokens = self._largest
        fewer = [*_doublings(self._parts, rows)] if rows % self._parts == 0 else []
        return itertools.starmap(RowSize, itertools.product([*fewer, rows], [*_doublings(ROW_UNIT, tokens), tokens]))


def _holding(sizes: Iterable[RowSize], tokens_N: np.ndarray, text_N: np.ndarray, budget: Budget) -> Iterator[RowSize]:
    """Yields the sizes of which one batch holds all canvases, those of the fewest tokens first.

    Of as many tokens in all the longer rows come first: they waste less at their ends.
    """
    for size in sorted(sizes, key=lambda size: (size.total, size.rows)):
        if tokens_N.sum() <= size.total:
            plan = plan_window(tokens_N, text_N, dataclasses.replace(budget, tokens=size.tokens), seed=0, window=0)
            if not plan.rejected and len(plan) <= size.rows:
                yield size


def _doublings(least: int, end: int) -> Iterator[int]:
    return itertools.takewhile(lambda value: value < end, (least << power for power in itertools.count()))
