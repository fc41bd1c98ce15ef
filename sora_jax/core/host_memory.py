"""Memory of the host, for runs whose device is the CPU."""

import os
import sys
from pathlib import Path

_SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")


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
