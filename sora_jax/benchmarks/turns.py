"""Contestants take turns, so that a machine which others use, or which slows down as it warms, is alike for all."""

import time
from collections.abc import Callable, Mapping

from tqdm import tqdm

# What each clock counts: time, or this process's seconds on a CPU that others use, too.
CLOCKS = ("wall", "process")


def fewest_seconds(calls: Mapping[str, Callable[[], object]], *, rounds: int, clock: str = "wall") -> dict[str, float]:
    """Returns the fewest seconds that each call took over some rounds, in each of which every call has one turn.

    A call returns when its work is done. What must be compiled is compiled beforehand. The seconds are those of
    `clock`, one of `CLOCKS`: of several threads those of the process add up, so compare them on one core alone.
    """
    now = time.perf_counter if clock == "wall" else time.process_time
    seconds = {name: float("inf") for name in calls}
    with tqdm(total=rounds * len(calls), desc="rounds", unit="turn", leave=False) as bar:
        for number in range(rounds):
            # There and back, so that no one always follows the same other.
            for name in list(calls)[:: 1 if number % 2 == 0 else -1]:
                began = now()
                calls[name]()
                seconds[name] = min(seconds[name], now() - began)
                bar.update()
    return seconds
