"""Where the time of a training loop goes, and the progress line that says so.

with StepClock(stage="videos", steps=1000, start=200) as clock:
    for step in range(200, 1000):
        with clock.waiting():
            pack = next(packs)
        state, loss = train_step(state, pack)
        clock.step_done(loss=loss, tokens=real, capacity=possible)
        if step % 50 == 0:
            write(clock.rates())
"""

import dataclasses
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self, TextIO

import jax
from absl import logging
from tqdm import tqdm

_STATUS = Path("/proc/self/status")
_BAR = "{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} {unit} {elapsed}{postfix}"


@dataclasses.dataclass(kw_only=True)
class _Span:
    """Sums since `began`; seconds. `excluded` was spent on something else than training."""

    began: float
    waited: float = 0.0
    excluded: float = 0.0
    steps: int = 0
    tokens: int = 0
    capacity: int = 0
    flops: float = 0.0

    def rates(self, now: float, peak_flops: float | None) -> dict[str, float]:
        """Averages up to `now`; empty before the end of the first step."""
        seconds = now - self.began - self.excluded
        if not self.steps or seconds <= 0:
            return {}
        rates = {
            "seconds_per_step": seconds / self.steps,
            "tokens_per_second": self.tokens / seconds,
            "data_wait": self.waited / seconds,
        }
        if self.capacity:
            rates["fill"] = self.tokens / self.capacity
        if self.flops:
            rates["flops_per_second"] = self.flops / seconds
            if peak_flops is not None:
                rates["mfu"] = rates["flops_per_second"] / peak_flops
        return rates


class StepClock:
    """Times the steps of a stage from `start` (done already) to `steps`, and shows progress while it is open.

    The first step compiles: it counts in `compile_seconds` and in no other rate than its own. What is done under
    `paused()`, such as sampling, counts in neither. `peak_flops` is what all devices together can do, FLOP/s; None if
    unknown. `now` returns seconds; for the rest see `Progress`.
    """

    def __init__(
        self,
        *,
        stage: str,
        steps: int,
        start: int = 0,
        peak_flops: float | None = None,
        every_seconds: float = 30.0,
        stream: TextIO | None = None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._now, self._peak_flops = now, peak_flops
        self._done, self._steps = start, steps
        self._began = now()
        # Since the first step ended, and since `rates` was last called.
        self._all, self._window = _Span(began=self._began), _Span(began=self._began)
        self._compile_seconds: float | None = None
        self._first: dict[str, float] = {}
        self._progress = Progress(stage, total=steps, first=start, every_seconds=every_seconds, stream=stream, now=now)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for data."""
        began = self._now()
        try:
            yield
        finally:
            seconds = self._now() - began
            self._all.waited += seconds
            self._window.waited += seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keeps the time inside out of every rate."""
        began = self._now()
        try:
            yield
        finally:
            seconds = self._now() - began
            self._all.excluded += seconds
            self._window.excluded += seconds

    def step_done(self, *, tokens: int, capacity: int, flops: float = 0.0, loss: float | None = None) -> None:
        """Ends a step of `flops` model FLOPs that trained on `tokens` real tokens in rows with room for `capacity`."""
        self._done += 1
        now = self._now()
        for span in (self._all, self._window):
            span.steps += 1
            span.tokens += tokens
            span.capacity += capacity
            span.flops += flops
        if self._compile_seconds is None:
            self._compile_seconds = now - self._began - self._all.waited - self._all.excluded
            self._first = self._window.rates(now, self._peak_flops)
            self._all, self._window = _Span(began=now), _Span(began=now)
        self._progress.update(self._done, self._facts(loss, now))

    def back_to(self, done: int) -> None:
        """Says that steps after `done` are done again; what they took stays in the averages."""
        self._done = done

    def rates(self) -> dict[str, float]:
        """Averages since the last call.

        They are `seconds_per_step`, `tokens_per_second`, `data_wait`, `fill`, `flops_per_second` and `mfu`.

        Tokens are real ones; `data_wait` is the share of the time, 0 to 1, in which the loop waited for data, `fill`
        the share of the rows' room that held tokens, and `mfu` the share of the devices' peak that model FLOPs took.
        What is not known is left out. If no step but the first ended since, they are
        those of the first, compilation included; if none did, empty.
        """
        now = self._now()
        rates, self._first = self._window.rates(now, self._peak_flops) or self._first, {}
        if rates:
            self._window = _Span(began=now)
        return rates

    def facts(self) -> dict[str, float]:
        """The same averages over all steps but the first, and `compile_seconds`, `peak_memory_gb`, `device_memory_gb`.

        `compile_seconds` is the first step without its wait for data; absent if no step was run.
        """
        compiled = {} if self._compile_seconds is None else {"compile_seconds": self._compile_seconds}
        rates = self._all.rates(self._now(), self._peak_flops)
        return {**compiled, **rates, "peak_memory_gb": peak_memory_gb(), **device_memory_gb()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.close()

    def _facts(self, loss: float | None, now: float) -> str:
        rates = self._all.rates(now, self._peak_flops)
        shown = [] if loss is None else [f"loss {loss:.4g}"]
        if rates:
            shown.append(f"{tqdm.format_sizeof(rates['tokens_per_second'])} tokens/s")
        if "fill" in rates:
            shown.append(f"padding {1 - rates['fill']:.1%}")
        if "mfu" in rates:
            shown.append(f"MFU {rates['mfu']:.1%}")
        if rates:
            left = max(self._steps - self._done, 0) * rates["seconds_per_step"]
            shown.append(f"{tqdm.format_interval(left)} left")
        return ", ".join(shown)


class Progress:
    """A progress bar on a terminal; elsewhere a log line every `every_seconds`, the first and last included.

    `first` of `total` are done already. `stream` None is standard error.
    """

    def __init__(
        self,
        name: str,
        *,
        total: int,
        first: int = 0,
        unit: str = "steps",
        every_seconds: float = 30.0,
        stream: TextIO | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        target: TextIO = sys.stderr if stream is None else stream
        self._name, self._total, self._unit = name, total, unit
        self._every_seconds, self._now = every_seconds, now
        self._logged: float | None = None
        self._bar = None
        if target.isatty():
            settings = {"bar_format": _BAR, "dynamic_ncols": True}
            self._bar = tqdm(desc=name, total=total, initial=first, unit=unit, file=target, **settings)

    def update(self, done: int, facts: str = "") -> None:
        """Shows that `done` are done, with `facts` beside."""
        if self._bar is not None:
            self._bar.set_postfix_str(facts, refresh=False)
            self._bar.update(done - self._bar.n)
            return
        now = self._now()
        if self._logged is None or now - self._logged >= self._every_seconds or done == self._total:
            self._logged = now
            logging.info("%s %d/%d %s%s", self._name, done, self._total, self._unit, facts and f", {facts}")

    def close(self) -> None:
        """Leaves the bar as it is and ends its line."""
        if self._bar is not None:
            self._bar.close()


def device_memory_gb() -> dict[str, float]:
    """Returns the most memory that a device of this process has held so far, GB, as {"device_memory_gb": ...}.

    Empty where devices do not say, as a CPU.
    """
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [one["peak_bytes_in_use"] for one in stats if one and "peak_bytes_in_use" in one]
    return {"device_memory_gb": max(peaks) / 1e9} if peaks else {}


def peak_memory_gb() -> float:
    """The most main memory this process has held so far, in GB (1e9 bytes). Devices have their own."""
    if _STATUS.exists():
        # What getrusage says on Linux counts the parent too, as it was when it started this process.
        (kilobytes,) = re.findall(r"^VmHWM:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
        return int(kilobytes) * 1024 / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
