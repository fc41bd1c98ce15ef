"""Programs compiled for a machine, which may find them too large, and how long that takes."""

import re
import time
from collections.abc import Callable
from typing import Any

import jax

from sora_jax.experiment.programs import Program
from sora_jax.train.progress import about

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# "... required for HLO temporaries (17.00G) exceeds available HBM (15.75G)", "Used 29.03G of 15.75G hbm".
_TOO_MUCH = (
    re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)"),
    re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm"),
)
# What two cores took for an operation of train steps, for CPUs and TPUs: the quickest and the slowest, seconds.
_SECONDS_OF_OPERATION = (1.2e-3, 4.5e-3)


class Pace:
    """How long compilers take for a program, by its operations: between the quickest and the slowest so far."""

    def __init__(self) -> None:
        self._quickest, self._slowest = _SECONDS_OF_OPERATION

    def in_words(self, operations: int) -> str:
        """Returns how long so many operations are likely to take."""
        quick, slow = about(operations * self._quickest), about(operations * self._slowest)
        return f"about {quick}" if quick == slow else f"{quick} to {slow}"

    def took(self, operations: int, seconds: float) -> None:
        """Takes in how long so many took."""
        self._quickest = min(self._quickest, seconds / operations)
        self._slowest = max(self._slowest, seconds / operations)


def compile_program(program: Program, pace: Pace, say: Callable[[str], None]) -> tuple[Any, float, float | None, float]:
    """Returns (compiled or None, bytes needed, bytes available if the compiler says them, seconds)."""
    began = time.perf_counter()
    lowered = program.lower()
    operations = lowered.as_text().count("\n")  # a line each
    say(f"compiling {operations:,} operations, {pace.in_words(operations)}")
    traced = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed, available = too_much(str(error))
        return None, needed, available, time.perf_counter() - began
    finally:
        pace.took(operations, time.perf_counter() - traced)
    seconds = time.perf_counter() - began
    return compiled, float(compiled.memory_analysis().peak_memory_in_bytes), None, seconds


def too_much(message: str) -> tuple[float, float]:
    """Returns (bytes needed, bytes available) as the compiler complains; raises RuntimeError for other messages."""
    for pattern in _TOO_MUCH if "RESOURCE_EXHAUSTED" in message else ():
        found = pattern.search(message)
        if found:
            return float(found[1]) * _UNITS[found[2]], float(found[3]) * _UNITS[found[4]]
    raise RuntimeError(message)
