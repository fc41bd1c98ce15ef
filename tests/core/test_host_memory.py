"""Huge pages are asked for once, where the kernel leaves the choice, and never against the user's."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from sora_jax.core import host_memory
from sora_jax.core.host_memory import available_memory

SCRIPT = """
import os, sys
from pathlib import Path
from sora_jax.core import host_memory
host_memory._SWITCH = Path(sys.argv[1])
print("start", os.environ.get("GLIBC_TUNABLES"), os.getpid(), sys.argv[2:], flush=True)
host_memory.use_huge_pages()
print("goes on")
"""


def starts(switch: Path, **environment: str) -> list[list[str]]:
    command = [sys.executable, "-c", SCRIPT, str(switch), "--word=two words"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=True)
    lines = done.stdout.splitlines()
    assert lines[-1] == "goes on"
    return [line.split(maxsplit=3)[1:] for line in lines[:-1]]


@pytest.mark.skipif(sys.platform != "linux", reason="the setting is glibc's")
def test_the_command_starts_again_as_the_same_process_with_the_same_arguments(tmp_path):
    switch = tmp_path / "enabled"
    switch.write_text("always [madvise] never\n")
    first, second = starts(switch)
    assert (first[0], second[0]) == ("None", "glibc.malloc.hugetlb=1")
    assert first[1:] == second[1:]
    assert second[2] == "['--word=two words']"


@pytest.mark.parametrize("kernel", ["[always] madvise never\n", "always madvise [never]\n", None])
def test_where_it_cannot_help_nothing_happens(tmp_path, kernel):
    switch = tmp_path / "enabled"
    if kernel:
        switch.write_text(kernel)
    assert [start[0] for start in starts(switch)] == ["None"]


@pytest.mark.parametrize("chosen", ["", "glibc.malloc.hugetlb=0"])
def test_the_user_has_the_last_word(tmp_path, chosen):
    switch = tmp_path / "enabled"
    switch.write_text("always [madvise] never\n")
    assert len(starts(switch, GLIBC_TUNABLES=chosen)) == 1


def machine(root: Path, monkeypatch, *, limit=None, **files: str) -> None:
    """Makes `root` what the system says of its memory: files of /proc and of the control group, and `ulimit -v`."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(host_memory, "_PROC", root / "proc")
    monkeypatch.setattr(host_memory, "_GROUP", root / "group")
    ends = (resource.RLIM_INFINITY if limit is None else limit, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: ends)


FREE = "MemTotal: 9000000 kB\nMemAvailable:    4000000 kB\n"


def test_what_is_free_is_known_where_the_system_says(tmp_path, monkeypatch):
    machine(tmp_path, monkeypatch)
    assert available_memory() is None
    machine(tmp_path, monkeypatch, proc__meminfo=FREE)
    assert available_memory() == 4_000_000 * 1024


def test_a_container_may_take_less_than_is_free(tmp_path, monkeypatch):
    machine(tmp_path, monkeypatch, proc__meminfo=FREE)
    for limit, left in (("3000000000", 2e9), ("max", 4_000_000 * 1024), ("500000000", 0.0)):
        machine(tmp_path, monkeypatch, **{"group__memory.max": limit + "\n", "group__memory.current": "1000000000\n"})
        assert available_memory() == left


def test_a_process_may_be_limited_itself(tmp_path, monkeypatch):
    machine(tmp_path, monkeypatch, limit=2_048_000, proc__meminfo=FREE, proc__self__status="VmSize:\t   1000 kB\n")
    assert available_memory() == 1_024_000


def test_this_machine_says():
    amount = available_memory()
    assert amount is None or amount > 1e8


GIVES_BACK = """
import re
from pathlib import Path
from sora_jax.core.host_memory import give_back

def held():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

blocks = [bytearray(b"1") * 100_000 for _ in range(3000)]
last = blocks[-1]  # so that the freed ones are not at the end, where glibc gives them back by itself
del blocks
before = held()
give_back()
print(before - held())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone keeps what is freed, and says how to ask for it")
def test_what_was_freed_is_given_back():
    done = subprocess.run([sys.executable, "-c", GIVES_BACK], capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) > 200  # MB of 300


def test_other_systems_have_nothing_to_give_back(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda _: pytest.fail("there is no glibc"))
    host_memory.give_back()
