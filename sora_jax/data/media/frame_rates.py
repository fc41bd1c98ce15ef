"""Frames at a rate by choice, taken from those that are there by their own times."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

Frame = TypeVar("Frame")


def at_rate(timed: Iterable[tuple[Frame, float]], *, fps: float, slack: float = 0.0) -> Iterator[Frame]:
    """Yields for each time k / fps after that of the first frame, k = 0, 1, ..., the latest frame at or before it.

    `timed` are frames with their times in seconds, in order; one whose time goes back has that of the frame before it.
    A frame up to `slack` seconds late is in time, since times are rounded. The last output time is the last that is not
    after the last frame. So frames that follow faster than 1 / fps are left out, and one that is held longer is
    repeated. A frame is yielded when a later one, or the end, has shown that it is the latest.
    """
    latest, start, now, number = None, None, 0.0, 0
    for frame, time in timed:
        start = time if start is None else start
        now = max(now, time - start)
        while latest is not None and number / fps + slack < now:
            yield latest
            number += 1
        latest = frame
    while latest is not None and number / fps <= now + slack:
        yield latest
        number += 1
