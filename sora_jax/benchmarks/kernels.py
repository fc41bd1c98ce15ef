"""Which kernels a profile spent its time in, and how long the device waited between them.

  python -m sora_jax.benchmarks.kernels --profile=runs/base/profile/videos
  python -m sora_jax.benchmarks.train_step --contestants=ours_packed --profile=/tmp/step

A profile is a folder that `jax.profiler` wrote, as with `log.profile_steps` (docs/debugging.md); the newest
in it counts. On a CPU kernels are XLA's operations, of which several may run side by side.
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jax.profiler import ProfileData

from sora_jax.core.commands import Flags, run_command
from sora_jax.core.errors import UserError

_FLAGS = Flags()
_PROFILE = _FLAGS.path("profile", None, "The folder of the profile.")
_ROWS = _FLAGS.integer("rows", 30, "Kernels that are shown, those of most time first.", least=1)
_FLAGS.rename("kernels_profile", "profile")
_FLAGS.rename("kernels_rows", "rows")

# Lines of a device that hold kernels: streams of a GPU, operations of a TPU.
_LINES = ("Stream", "XLA Ops")


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelRun:
    """A kernel that ran: its name, and when it began and ended in nanoseconds."""

    name: str
    start: float
    end: float


def main(_: Sequence[str]) -> None:
    """Prints the table."""
    if _PROFILE.value is None:
        raise UserError("no profile is given: --profile=DIR, as of runs/base/profile/videos")
    print(kernel_table(kernels_of(_PROFILE.value), rows=_ROWS.value))


def kernels_of(folder: str | Path) -> list[KernelRun]:
    """Returns the kernels of the newest profile in `folder`, in order; UserError where there is none."""
    files = sorted(Path(folder).rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise UserError(f"{folder} holds no profile (*.xplane.pb): have one written by log.profile_steps")
    planes = list(ProfileData.from_file(str(files[-1])).planes)
    of_devices = [plane for plane in planes if plane.name.startswith("/device:")]
    kernels = (
        KernelRun(name=event.name, start=event.start_ns, end=event.start_ns + event.duration_ns)
        for event in _events(of_devices or planes, device=bool(of_devices))
    )
    return sorted(kernels, key=lambda kernel: kernel.start)


def _events(planes: Iterable[Any], *, device: bool) -> Iterator[Any]:
    """Yields what ran on a device, or of the host's many events XLA's operations."""
    for plane in planes:
        for line in plane.lines:
            if line.name.startswith(_LINES) or not device:
                yield from (event for event in line.events if device or "hlo_op" in dict(event.stats))


def kernel_table(kernels: Sequence[KernelRun], *, rows: int) -> str:
    """Returns milliseconds, calls and names of the `rows` kernels of most time, under a line about all of them."""
    if not kernels:
        return "no kernel ran"
    time: collections.defaultdict[str, float] = collections.defaultdict(float)
    calls: collections.Counter[str] = collections.Counter()
    for kernel in kernels:
        time[kernel.name] += kernel.end - kernel.start
        calls[kernel.name] += 1
    last = max(kernel.end for kernel in kernels)
    span, work = last - kernels[0].start, sum(time.values())
    lines = [
        f"{len(kernels):,} kernels in {span / 1e6:.1f} ms, {work / 1e6:.1f} ms of work, "
        f"{idle(kernels) / 1e6:.1f} ms in which none ran"
    ]
    most = sorted(time.items(), key=lambda item: -item[1])[:rows]
    lines += [f"{spent / 1e6:10.2f} ms {calls[name]:7,}  {name[:100]}" for name, spent in most]
    return "\n".join(lines)


def idle(kernels: Sequence[KernelRun]) -> float:
    """Returns the nanoseconds between the first of `kernels`, which are in order, and the last in which none ran."""
    waited, until = 0.0, kernels[0].start
    for kernel in kernels:
        waited += max(0.0, kernel.start - until)
        until = max(until, kernel.end)
    return waited


if __name__ == "__main__":
    run_command(main, _FLAGS)
