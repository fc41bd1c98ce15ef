"""Where the time of a training loop goes.

clock = StepClock(start=200)
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

import jax
from tqdm import tqdm

_STATUS = Path("/proc/self/status")


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
    """Times the steps of a stage after `start`, and tells how many are done.

    The first step compiles: it counts in `compile_seconds` and in no other rate than its own. What is done under
    `paused()`, such as sampling, counts in neither. `peak_flops` is what all devices together can do, FLOP/s; None if
    unknown. `show` is called after each step with the number of steps done and facts in words; `now` returns seconds.
    """

    def __init__(
        self,
        *,
        start: int = 0,
        peak_flops: float | None = None,
        show: Callable[[int, str], None] = lambda done, facts: None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._now, self._peak_flops = now, peak_flops
        self._done, self._show = start, show
        self._began = now()
        # Since the first step ended, and since `rates` was last called.
        self._all, self._window = _Span(began=self._began), _Span(began=self._began)
        self._compile_seconds: float | None = None
        self._first: dict[str, float] = {}

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
        self._show(self._done, self._facts(loss, now))

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

    def _facts(self, loss: float | None, now: float) -> str:
        rates = self._all.rates(now, self._peak_flops)
        shown = [] if loss is None else [f"loss {loss:.4g}"]
        if rates:
            shown.append(f"{tqdm.format_sizeof(rates['tokens_per_second'])} tokens/s")
        if "fill" in rates:
            shown.append(f"padding {1 - rates['fill']:.1%}")
        if "mfu" in rates:
            shown.append(f"MFU {rates['mfu']:.1%}")
        return ", ".join(shown)


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
