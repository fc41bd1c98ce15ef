"""Runs steps of a run again and compares: whether they come out as they did, and what was wrong with one.

A run is a function of its config, its data and its seed, and every line of its metrics has a digest of the weights. So
what a replay gets otherwise came from elsewhere: hardware that computed wrongly, other versions, other data.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from sora_jax.checkpoints.reading import load_tree
from sora_jax.core import rng
from sora_jax.core.compiling import run_often
from sora_jax.core.errors import UserError
from sora_jax.core.tree import Batch, Params, abstract_model
from sora_jax.experiment.kinds.base import Run
from sora_jax.experiment.recipes import recipe_of, train_kind
from sora_jax.train import dump
from sora_jax.train.loop import position_of, to_device
from sora_jax.train.metrics import read_metrics
from sora_jax.train.state import with_frozen
from sora_jax.train.step import mean_gradient


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replayed:
    """A step that was run again.

    Attributes:
      done: Its number, 1-based.
      loss: As it is now; so the next two.
      gradient_norm: Of the whole gradient.
      digest: Of the weights after it.
      digest_then: As the run wrote it; None where it wrote no line of metrics.
    """

    done: int
    loss: float
    gradient_norm: float
    digest: int
    digest_then: int | None

    @property
    def differs(self) -> bool:
        """Whether the weights are not those of the run."""
        return self.digest_then not in (None, self.digest)


def replay(run: Run, name: str, *, step: int | None, steps: int) -> Iterator[Replayed]:
    """Yields up to `steps` steps of a stage, run again from its checkpoint of `step`; None: from the newest.

    Nothing is written. Raises UserError where there is no such stage or checkpoint, or no step after it.
    """
    recipe = recipe_of(run.settings, name, run.mesh)
    then = {line["step"]: line for line in read_metrics(run.workdir.path) if line["stage"] == name and "digest" in line}
    mesh = recipe.maker.mesh
    with jax.set_mesh(mesh):
        folder = run.workdir.checkpoints(name)
        restored = load_tree(folder, recipe.maker.abstract().saved, step=step)
        state, position = with_frozen(recipe.maker, restored, folder), position_of(restored.data)
        stream = train_kind(run.settings, name).stream(run, name)
        last = min(position.step + steps, recipe.step.steps)
        if last == position.step:
            raise UserError(f"step {last} is the last of {name}: pass --checkpoint of an earlier one")
        with contextlib.closing(stream.batches(position.step + position.left_out)) as batches:
            for done in range(position.step + 1, last + 1):
                state, metrics = recipe.program(state, to_device(next(batches), mesh), recipe.step.scalars)
                wrote = then.get(done, {}).get("digest")
                yield Replayed(
                    done=done,
                    loss=float(metrics["loss"]),
                    gradient_norm=float(metrics["gradient_norm"]),
                    digest=int(metrics["digest"]),
                    digest_then=None if wrote is None else int(wrote),
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What is wrong with a step at which a run gave up.

    Attributes:
      done: Its number, 1-based.
      names: What its batch is of.
      loss: Its loss.
      gradient_norm: The norm of its gradient.
      bad: (where, numbers that are not finite, numbers) of arrays of the batch, weights and gradients.
    """

    done: int
    names: list[str]
    loss: float
    gradient_norm: float
    bad: list[tuple[str, int, int]]


def diagnose(run: Run, name: str) -> Diagnosis:
    """Returns what comes out of the step at which a stage gave up, run again from what it left; UserError without."""
    recipe, folder = recipe_of(run.settings, name, run.mesh), run.workdir.failed(name)
    structure, _, _ = abstract_model(recipe.maker.build)
    with jax.set_mesh(recipe.maker.mesh):
        restored = load_tree(folder, recipe.maker.abstract().saved)
        state = with_frozen(recipe.maker, restored, run.workdir.checkpoints(name))
        batch = dump.read_batch(folder, restored.step)
        key = rng.key(recipe.step.seed, name, state.step)

        def compute(params: Params, batch: Batch) -> tuple[Params, jax.Array, Any]:
            return mean_gradient(
                recipe.objective, structure, params, batch, key, recipe.step.accumulate, frozen=state.frozen
            )

        gradient, loss, _ = jax.jit(compute, compiler_options=run_often())(
            state.params, to_device(batch, recipe.maker.mesh)
        )
    parts = {"batch": batch, "weights": {**state.frozen, **state.params}, "gradient": gradient}
    return Diagnosis(
        done=restored.step + 1,
        names=list(restored.data["names"]),
        loss=float(loss),
        gradient_norm=float(np.sqrt(sum(np.sum(np.square(np.asarray(g, np.float64))) for g in gradient.values()))),
        bad=[found for part, arrays in parts.items() for found in _not_finite(part, arrays)],
    )


def _not_finite(part: str, arrays: dict[str, Any]) -> list[tuple[str, int, int]]:
    counts = {name: int(np.count_nonzero(~np.isfinite(np.asarray(value)))) for name, value in arrays.items()}
    return [(f"{part} {name}", count, int(arrays[name].size)) for name, count in counts.items() if count]
