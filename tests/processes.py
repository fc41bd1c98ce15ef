"""Several processes of one run on this machine, as tests start them."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
DEVICES = 4  # of each process


def free_port() -> int:
    """Returns a port at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def environment(devices: int = DEVICES) -> dict[str, str]:
    """Returns that of a process with so many simulated devices."""
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    flags.append(f"--xla_force_host_platform_device_count={devices}")
    return {**os.environ, "XLA_FLAGS": " ".join(flags)}


def start(*arguments: object, count: int = 2, only: Sequence[int] | None = None) -> list[subprocess.Popen]:
    """Returns `sora_jax.main` started with the arguments as each of `count` processes, or as those in `only`."""
    port = free_port()
    return [
        start_python(
            "-m",
            "sora_jax.main",
            *arguments,
            f"--coordinator=127.0.0.1:{port}",
            f"--process_count={count}",
            f"--process_index={number}",
        )
        for number in (range(count) if only is None else only)
    ]


def start_python(*arguments: object) -> subprocess.Popen:
    """Returns python started from the repository, its output kept."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment()
    )


def start_shell(line: str) -> subprocess.Popen:
    """Returns bash started with a line from the repository, its output kept."""
    return subprocess.Popen(
        ["bash", "-c", line], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment()
    )


def wait(processes: Sequence[subprocess.Popen], *, seconds: float) -> list[tuple[int, str, str]]:
    """Returns (exit code, stdout, stderr) of each; one that does not end in time is killed, and fails the test."""
    try:
        said = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    ends = [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]
    for end in ends:
        print(*end, sep="\n")  # pytest shows it where a test fails
    return ends
