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
import numpy as np

from sora_jax.benchmarks.drills.bench import SMALL, STAGE
from sora_jax.checkpoints import manifest
from sora_jax.data.packing.packs import HostPack
from sora_jax.data.packing.pipeline import RowDataset
from sora_jax.experiment.kinds import recipe


def kill_in_save(step: int, moment: str) -> None:
    """SIGKILL while the checkpoint of `step` is saved: "before" or "after" its manifest is written, never committed."""
    write = manifest.write_manifest

    def killed(directory: Any, *, name: str) -> None:
        if name != str(step):
            write(directory, name=name)
            return
        if moment == "after":
            write(directory, name=name)
        os.kill(os.getpid(), signal.SIGKILL)

    manifest.write_manifest = killed


def nan_batch(first: int, count: int = 1) -> None:
    """Makes every number of `count` batches not finite, from that of step `first` on."""
    in_step(first, count, batch=lambda value: value * jnp.nan if jnp.issubdtype(value.dtype, jnp.floating) else value)


def leave_out(first: int, count: int = 1) -> None:
    """Counts the steps, and computes nothing in them."""
    in_step(first, count, skip=True)


def in_step(
    first: int,
    count: int,
    *,
    batch: Callable[[jax.Array], jax.Array] | None = None,
    weights: Callable[[Any], Any] | None = None,
    skip: bool = False,
) -> None:
    """Changes what the steps `first` to `first + count - 1` of the stage see, once each, or leaves them out."""
    make = recipe.make_step

    def disturbed(objective: Any, structure: Any, optimizer: Any, config: Any) -> Callable[..., Any]:
        step = make(objective, structure, optimizer, config)
        if config.name != STAGE:
            return step
        seen: dict[str, Any] = {}
        left = set(range(first, first + count))

        def one(state: Any, values: Any, course: Any) -> Any:
            number = int(state.step) + 1
            chosen = number in left
            left.discard(number)
            if chosen and skip:
                state = dataclasses.replace(state, step=state.step + 1, skipped=state.skipped + 1)
                return state, seen["metrics"]
            state = weights(state) if chosen and weights else state
            state, seen["metrics"] = step(state, jax.tree.map(batch, values) if chosen and batch else values, course)
            return state, seen["metrics"]

        return one

    recipe.make_step = disturbed


def wild_batch(wanted: int) -> None:
    """Makes the batch of that number a hundred times as large, whenever it is read: a spike."""
    read, rows = RowDataset.__getitem__, SMALL["packing.rows"]

    def wild(self: RowDataset, number: int) -> HostPack:
        values = read(self, number)
        if number // rows != wanted:
            return values
        return {n: 100 * value if np.issubdtype(value.dtype, np.floating) else value for n, value in values.items()}

    RowDataset.__getitem__ = wild


def wrong_element(step: int, seed: int) -> None:
    """Flips one bit of one weight as `step` begins, as a device might that computes wrongly."""
    random = np.random.default_rng(seed)

    def flip(state: Any) -> Any:
        name = str(random.choice(sorted(state.params)))
        value = np.array(state.params[name])
        words = value.reshape(-1).view(np.uint32)
        words[random.integers(words.size)] ^= np.uint32(1 << random.integers(23))  # it stays finite
        changed = jax.device_put(value, state.params[name].sharding)
        return dataclasses.replace(state, params={**state.params, name: changed})

    in_step(step, 1, weights=flip)


DISTURBANCES: dict[str, Callable[..., None]] = {
    function.__name__: function for function in (kill_in_save, nan_batch, leave_out, wild_batch, wrong_element)
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
