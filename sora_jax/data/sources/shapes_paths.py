"""Ways of objects of the drawn world: straight ones, and smooth curves that follow no axis.

Points are (row, column), fractions of (height, width).
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

Point = tuple[float, float]

# Raise when curves would be drawn otherwise: it enters the fingerprint of worlds that have some.
CURVES = 2
# Points that say a curve, its ends among them.
_FEWEST, _MOST = 3, 6
# Those between the ends, which a curve only leans to, may lie so much of the room beside it.
_BEYOND = 1.5
# Of the short side, what a curve gets ahead at least.
_AHEAD = 0.2
# Where a curve must lie in its room.
_LOOKED_AT = np.linspace(0, 1, 17)


def along(points: Sequence[Point], progress: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows and columns at `progress`, in [0, 1], of the Bezier curve that the points say; of its shape.

    Of two points it is the straight line between them, at even speed. By the algorithm of de Casteljau.
    """
    return _between([row for row, _ in points], progress), _between([column for _, column in points], progress)


def _between(line: list[Any], progress: np.ndarray) -> np.ndarray:
    while len(line) > 1:
        line = [a + (b - a) * progress for a, b in itertools.pairwise(line)]
    return line[0]


def draw_curve(
    generator: np.random.Generator, *, direction: tuple[int, int], radius: float, side: tuple[int, int]
) -> tuple[Point, ...]:
    """Returns the points of a curve on which an object stays whole inside the frame, by rejection.

    From its start to its end it leads nearer to `direction`, one of an axis, than to any other; it never turns back
    there, and bends across. `radius` is a fraction of the short side, `side` (height, width) in px.
    """
    short = min(side)
    reach_2 = radius * short / np.array(side)
    # As of straight ways, the largest object has room for the shortest.
    room_2 = 1 - 2 * reach_2
    count = int(generator.integers(_FEWEST, _MOST + 1))
    axis = int(direction[0] == 0)
    while True:
        points = generator.uniform(-_BEYOND, 1 + _BEYOND, (count, 2))
        points[[0, -1]] = generator.uniform(0, 1, (2, 2))
        points[:, axis] = np.sort(generator.uniform(0, 1, count))[:: direction[axis]]
        way_2 = (points[-1] - points[0]) * room_2 * side
        ahead = float(way_2 @ np.array(direction))
        if ahead < _AHEAD * short or ahead < np.abs(way_2).max():
            continue
        curve = tuple((float(row), float(column)) for row, column in points)
        if all(line.min() >= 0 and line.max() <= 1 for line in along(curve, _LOOKED_AT)):
            return tuple((float(row), float(column)) for row, column in reach_2 + points * room_2)
