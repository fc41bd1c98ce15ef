"""A command of the package in which something goes wrong at a place that no signal from outside could hit.

  python -m sora_jax.benchmarks.drills.disturbed nan_batch:50 sora_jax.main --config=configs/base.py --workdir=runs/x

The command runs as it is; one function of it is replaced. Batches are counted over the stage that `STAGE` names.
"""

import dataclasses
import os
import runpy
import signal
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sora_jax.benchmarks.drills.bench import STAGE
from sora_jax.train import loop, manifest


def kill_in_save(step: int, moment: str) -> None:
    """SIGKILL while the checkpoint of `step` is saved: "before" or "after" its manifest is written, never committed."""
    write = manifest.write

    def killed(directory: Any, *, name: str) -> None:
        if name != str(step):
            write(directory, name=name)
            return
        if moment == "after":
            write(directory, name=name)
        os.kill(os.getpid(), signal.SIGKILL)

    manifest.write = killed


def nan_batch(first: int, count: int = 1) -> None:
    """Makes every number of `count` batches not finite, from that of step `first` on."""
    in_step(first, count, batch=lambda value: value * jnp.nan if jnp.issubdtype(value.dtype, jnp.floating) else value)


def leave_out(first: int, count: int = 1) -> None:
    """Counts the steps, and computes nothing in them."""
    in_step(first, count, skip=True)


def in_step(first: int, count: int, *, batch: Callable[[jax.Array], jax.Array] | None = None, skip: bool = False):
    """Changes what the steps `first` to `first + count - 1` of the stage see, or leaves them out."""
    make = loop.make_step

    def disturbed(objective: Any, structure: Any, optimizer: Any, config: Any) -> Callable[..., Any]:
        step = make(objective, structure, optimizer, config)
        if config.name != STAGE:
            return step
        seen: dict[str, Any] = {}

        def one(state: Any, values: Any) -> Any:
            number = int(state.step) + 1
            chosen = first <= number < first + count
            if chosen and skip:
                state = dataclasses.replace(state, step=state.step + 1, skipped=state.skipped + 1)
                return state, seen["metrics"]
            state, seen["metrics"] = step(state, jax.tree.map(batch, values) if chosen and batch else values)
            return state, seen["metrics"]

        return one

    loop.make_step = disturbed


DISTURBANCES: dict[str, Callable[..., None]] = {
    function.__name__: function for function in (kill_in_save, nan_batch, leave_out)
}


def main() -> None:
    """Applies the disturbance NAME:ARGUMENT:... and runs the module that follows it with the rest of the arguments."""
    name, *arguments = sys.argv[1].split(":")
    DISTURBANCES[name](*(int(text) if text.isdecimal() else text for text in arguments))
    module = sys.argv[2]
    sys.argv = sys.argv[2:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
