"""Memory of the host: how it is asked for, and how much there is."""

import ctypes
import os
import re
import resource
import sys
from pathlib import Path

_SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_PROC, _GROUP = Path("/proc"), Path("/sys/fs/cgroup")


def use_huge_pages() -> None:
    """Starts this command again, as the same process, such that malloc asks for huge pages.

    XLA on CPU allocates the temporary buffers of a step anew at each step, and without huge pages each 4 kB of them
    costs a page fault. glibc reads the setting once, before the program begins, hence the new start: call this
    before anything heavy is imported. Does nothing where it cannot help: outside Linux, where the kernel gives huge
    pages to everybody or to nobody, and where the user set GLIBC_TUNABLES (`GLIBC_TUNABLES=` keeps small pages).
    """
    if "GLIBC_TUNABLES" in os.environ or not _SWITCH.exists() or "[madvise]" not in _SWITCH.read_text():
        return
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    sys.stdout.flush()
    os.execv(sys.executable, sys.orig_argv)


def give_back() -> None:
    """Returns to the system what was freed, of which glibc keeps half a gigabyte after a large program is compiled."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def available_memory() -> float | None:
    """Returns the bytes of main memory that this process may still take; None where the system does not say.

    The least of what is free, what the control group of the process is allowed, and what its own limit leaves.
    """
    found = [_free(), *_left_in_group(), _left_to_process()]
    known = [amount for amount in found if amount is not None]
    return max(min(known), 0.0) if known else None


def _free() -> float | None:
    return _kilobytes(_PROC / "meminfo", "MemAvailable")


def _left_in_group() -> list[float | None]:
    """Returns what limits of containers leave, of both versions of control groups."""
    files = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
    found: list[float | None] = []
    for limit, used in files:
        amounts = [_number(_GROUP / name) for name in (limit, used)]
        if amounts[0] is not None and amounts[1] is not None:
            found.append(amounts[0] - amounts[1])
    return found


def _left_to_process() -> float | None:
    """Returns what `ulimit -v` leaves: it counts addresses, of which a process asks for more than it uses."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = _kilobytes(_PROC / "self" / "status", "VmSize")
    return None if limit == resource.RLIM_INFINITY or used is None else limit - used


def _kilobytes(path: Path, name: str) -> float | None:
    """Returns the bytes that a file of /proc gives for a name; None where it does not."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", path.read_text(), re.MULTILINE) if path.exists() else None
    return None if found is None else 1024.0 * int(found[1])


def _number(path: Path) -> float | None:
    """Returns the number in a file; None where there is none, as where no limit is set."""
    text = path.read_text().strip() if path.exists() else ""
    return float(text) if text.isdecimal() else None
