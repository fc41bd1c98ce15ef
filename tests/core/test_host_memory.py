"""Huge pages are asked for once, where the kernel leaves the choice, and never against the user's."""

import subprocess
import sys
from pathlib import Path

import pytest

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
