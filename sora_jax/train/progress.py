"""How far a run is and how long it will yet take, in one line; and how far one piece of work alone is.

with RunProgress(parts) as progress:
    progress.begin("videos")
    progress.go_on_from(200)
    for done in range(201, 1001):
        ...
        progress.update(done, "loss 0.61")
    progress.end()
"""

import collections
import contextlib
import dataclasses
import io
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Self, TextIO

from absl import logging
from tqdm import tqdm

_BAR = "{percentage:3.0f}% |{bar:20}| {desc}"
_EVERY_SECONDS = 30.0
# The pace is the mean of so many last updates, those left out that took so many times the median: they compiled a
# program, saved or showed something, which does not come with every step. In the median what was expected counts as so
# many updates: the first ones may all compile, each for another size of batch.
_REMEMBERED, _OUTLIER, _EXPECTED = 100, 5.0, 3
# Seconds that what was expected counts for, beside what was measured, in judging what comes later.
_TRUST = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A stage of a run, or the evaluation at its end, as it is expected to go.

    Attributes:
      name: Of the stage.
      total: How many units of work it has.
      unit: Their name, in the plural.
      each: Seconds that a unit takes.
      once: Seconds for what is not done unit by unit: to compile programs, to show samples.
      compiling: Seconds of these until the first unit: its programs are compiled, or read from the cache.
      done: Units that were done when the run was started.
      took: Seconds that it took, where it is finished; None where it is not.
    """

    name: str
    total: int
    unit: str
    each: float
    once: float
    compiling: float = 0.0
    done: int = 0
    took: float | None = None

    @property
    def left(self) -> float:
        """Seconds that it will take from where it is."""
        return 0.0 if self.took is not None else self.once + (self.total - self.done) * self.each


class Display:
    """Lines that come and go: a live bar on a terminal; elsewhere a line of the log every `every_seconds`.

    `stream` None is standard error. While the bar lives, what is printed and logged appears above it.
    """

    def __init__(
        self,
        *,
        every_seconds: float = _EVERY_SECONDS,
        stream: TextIO | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        target: TextIO = sys.stderr if stream is None else stream
        self._every_seconds, self._now = every_seconds, now
        self._logged: float | None = None
        self._bar = None
        self._above = contextlib.ExitStack()
        if target.isatty():
            self._bar = tqdm(total=1.0, bar_format=_BAR, dynamic_ncols=True, file=target)
            if stream is None:
                self._make_room(target)

    def _make_room(self, target: TextIO) -> None:
        """Sends what is printed to the terminal, and what is logged, to the place above the bar."""
        if sys.stdout.isatty():
            self._above.enter_context(contextlib.redirect_stdout(_Above(target)))
        handler = logging.get_absl_handler().python_handler
        before = handler.setStream(_Above(target))
        self._above.callback(handler.setStream, before or target)

    def show(self, share: float, text: str, *, at_once: bool = False) -> None:
        """Shows `text` and that `share` is done, in [0, 1]; in a log only if it is time to, or `at_once`."""
        if self._bar is not None:
            self._bar.set_description_str(text, refresh=False)
            self._bar.update(share - self._bar.n)
            return
        now = self._now()
        if at_once or self._logged is None or now - self._logged >= self._every_seconds:
            self._logged = now
            logging.info("%s", text)

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        print(text, flush=True)
        self._logged = self._now()

    def close(self) -> None:
        """Leaves the bar as it is and ends its line."""
        if self._bar is not None:
            self._bar.close()
        self._above.close()


class _Above(io.TextIOBase):
    """A terminal as it is written to while a bar lives in its last line."""

    def __init__(self, target: TextIO) -> None:
        self._target, self._rest = target, ""

    def write(self, text: str) -> int:
        """Writes the lines that are whole, and keeps the rest until it is."""
        lines, newline, self._rest = (self._rest + text).rpartition("\n")
        if newline:
            tqdm.write(lines, file=self._target)
        return len(text)


class Progress:
    """How far one piece of work is that is no run: `name` done/`total` `unit`."""

    def __init__(self, name: str, *, total: int, unit: str, display: Display | None = None) -> None:
        self._name, self._total, self._unit = name, total, unit
        self._display = Display() if display is None else display

    def update(self, done: int) -> None:
        """Shows that `done` are done."""
        text = f"{self._name} {done}/{self._total} {self._unit}"
        self._display.show(done / max(self._total, 1), text, at_once=done == self._total)

    def close(self) -> None:
        """Ends the showing."""
        self._display.close()


class RunProgress:
    """How far a run is: which part of how many, which share of the whole, how much time is left of the whole.

    What is left is first what `parts` expect. Then it is judged by what was measured: of the part in progress by the
    pace of its last units, of later ones by how much longer than expected all took so far. It is not shown before the
    first units of a part were measured.

    Args:
      parts: All parts of the run, finished ones included, in order.
      display: Where it is shown; None shows nothing, as in the processes that do not speak.
      now: Returns seconds.
    """

    def __init__(
        self, parts: Sequence[Part], *, display: Display | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._parts = {part.name: part for part in parts}
        self._numbers = {part.name: f"stage {number} of {len(parts)}" for number, part in enumerate(parts, 1)}
        self._display, self._now = display, now
        self._current: _Current | None = None
        self._measured = _Sums()  # of the parts that ended since the start
        self._shown = 0.0

    def begin(self, name: str) -> None:
        """Begins a part."""
        self._parts[name] = dataclasses.replace(self._parts[name], took=None)
        self._current = _Current(self._parts[name], self._now())
        seconds = self._measured.once * self._parts[name].compiling
        first = f"; first its programs are compiled, about {about(seconds)}" if seconds else ""
        self._say(f"{self._where()}, {self._whole()}{first}")

    def go_on_from(self, done: int) -> None:
        """Says that `done` units of the part were done before it began, or are again all that are done."""
        self._now_in.go_on_from(done, self._now())

    def update(self, done: int, facts: str = "") -> None:
        """Shows that `done` units of the part are done, with `facts` beside."""
        current = self._now_in
        current.update(done, self._now())
        if self._display is not None:
            part = current.part
            text = f"{self._where()} {done}/{part.total} {part.unit}, {self._whole()}{facts and f', {facts}'}"
            self._display.show(self._shown, text)

    def end(self) -> None:
        """Ends the part."""
        current = self._now_in
        took = self._now() - current.began
        self._measured = self._measured + current.sums(self._now())
        self._parts[current.part.name] = dataclasses.replace(current.part, took=took)
        self._current = None
        self._say(f"{self._numbers[current.part.name]}: {current.part.name} took {about(took)}, {self._whole()}")

    def left(self) -> float:
        """Returns the seconds that are left of the whole run."""
        now, current = self._now(), self._current
        measured = self._measured if current is None else self._measured + current.sums(now)
        found = 0.0
        for part in self._parts.values():
            if current is not None and part.name == current.part.name:
                found += current.left(now, self._measured)
            elif part.took is None:
                found += measured.once * part.once + measured.each * (part.total - part.done) * part.each
        return found

    def share(self) -> float:
        """Returns the share of the whole run that is done, in [0, 1]; it never falls."""
        done = sum(part.took or part.done * part.each for part in self._parts.values())
        if self._current is not None:
            done += self._now() - self._current.began
        left = self.left()
        self._shown = max(self._shown, done / (done + left) if left else 1.0)
        return self._shown

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._display is not None:
            self._display.close()

    @property
    def _now_in(self) -> "_Current":
        assert self._current is not None, "no part has begun"
        return self._current

    def _where(self) -> str:
        name = self._now_in.part.name
        return f"{self._numbers[name]}: {name}"

    def _whole(self) -> str:
        share, left = self.share(), self.left()
        if not left:
            return "100% of the run is done"
        known = self._current is None or self._current.measured
        return f"{min(int(100 * share), 99)}% of the run" + (f", about {about(left)} left" if known else "")

    def _say(self, text: str) -> None:
        if self._display is not None:
            self._display.say(text)
            self._display.show(self._shown, text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Sums:
    """Seconds that were expected, and that it took; of units, and of what was done once."""

    units_expected: float = 0.0
    units_took: float = 0.0
    once_expected: float = 0.0
    once_took: float = 0.0

    def __add__(self, other: "_Sums") -> "_Sums":
        mine, others = dataclasses.asdict(self), dataclasses.asdict(other)
        return _Sums(**{name: mine[name] + others[name] for name in mine})

    @property
    def each(self) -> float:
        """How many times as long as expected a unit takes."""
        return (self.units_took + _TRUST) / (self.units_expected + _TRUST)

    @property
    def once(self) -> float:
        """How many times as long as expected the rest takes."""
        return (self.once_took + _TRUST) / (self.once_expected + _TRUST)


class _Current:
    """The part in progress."""

    def __init__(self, part: Part, began: float) -> None:
        self.part, self.began = part, began
        self._first, self._done, self._last = part.done, part.done, began
        # (units, seconds) of updates; the first one compiled.
        self._updates: collections.deque[tuple[int, float]] = collections.deque(maxlen=_REMEMBERED)
        self._is_first = True

    def go_on_from(self, done: int, now: float) -> None:
        self._first = self._done = done
        self._last = now

    @property
    def measured(self) -> bool:
        """Whether as many updates were measured as what was expected counts for."""
        return len(self._updates) >= _EXPECTED

    def update(self, done: int, now: float) -> None:
        if done > self._done and not self._is_first:
            self._updates.append((done - self._done, now - self._last))
        self._is_first = False
        self._done, self._last = done, now

    def _pace(self, expected: float) -> float:
        """Returns the seconds of a unit; `expected` counts as much as one update."""
        paces = [seconds / units for units, seconds in self._updates]
        limit = _OUTLIER * statistics.median_low([expected] * _EXPECTED + paces)
        kept = [one for one, pace in zip(self._updates, paces, strict=True) if pace <= limit]
        if not kept:
            return expected
        units, seconds = sum(one[0] for one in kept), sum(one[1] for one in kept)
        weight = units / len(kept)
        return (seconds + weight * expected) / (units + weight)

    def sums(self, now: float) -> _Sums:
        """Returns what was expected of the part up to here and what it took."""
        part, units, spent = self.part, self._done - self._first, now - self.began
        if not units:
            return _Sums()
        in_units = min(units * self._pace(part.each), spent)
        return _Sums(
            units_expected=units * part.each,
            units_took=in_units,
            once_expected=part.once * units / max(part.total - self._first, 1),
            once_took=(spent - in_units) * units / max(part.total - self._first, 1),
        )

    def left(self, now: float, before: _Sums) -> float:
        """Returns the seconds left of the part, where parts `before` took so long."""
        part, units = self.part, self._done - self._first
        pace = self._pace(before.each * part.each)
        rest = max(part.total - self._done, 0)
        once = max(before.once * part.once - (now - self.began - units * pace), 0.0)
        return rest * pace + once * rest / max(part.total - self._first, 1)


def about(seconds: float) -> str:
    """Returns a duration in words, as roughly as it is known: 40 s, 6 min, 2 h 10 min, 3 d 4 h, 20 days."""
    if seconds < 90:
        return f"{max(10 * round(seconds / 10), 10)} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60 // 10 * 10} min"
    days, hours = minutes // 1440, minutes % 1440 // 60
    return f"{days} days" if days >= 10 else f"{days} d {hours} h"


def in_sentence(parts: Sequence[Part]) -> str:
    """Returns what the parts that are not finished are expected to take, in words."""
    todo = [part for part in parts if part.took is None]
    if not todo:
        return "nothing is left to do but what is new"
    listed = ", ".join(f"{part.name} {about(part.left)}" for part in todo)
    what = "the run takes" if len(todo) == len(parts) and not any(part.done for part in parts) else "what is left takes"
    return f"{what} about {about(sum(part.left for part in todo))} on this machine: {listed}"
