"""Whether two runs came to the same end."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from sora_jax.benchmarks.drills.bench import STAGE, STEPS, losses, saved_steps


def arrays(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Returns every leaf of a checkpoint of the last stage by its path: weights, moments, averages, counters."""
    folder = epath.Path(workdir / "checkpoints" / STAGE / str(step) / "state")
    handler = ocp.PyTreeCheckpointHandler()
    plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(folder).tree)
    tree = handler.restore(folder, args=ocp.args.PyTreeRestore(restore_args=plain))
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def difference(expected: Path, got: Path, *, losses_too: bool = True) -> str:
    """Returns in which leaf, file or loss the ends of two runs differ first, bit for bit; "" where they do not.

    Without `losses_too` the states alone are compared, not what was told on the way.
    """
    if saved_steps(got)[-1:] != [STEPS]:
        return f"its checkpoints are {saved_steps(got)}, none of step {STEPS}"
    first, second = arrays(expected, STEPS), arrays(got, STEPS)
    if first.keys() != second.keys():
        return f"leaves differ: {sorted(first.keys() ^ second.keys())[:3]}"
    for name in first:
        if not same_bits(first[name], second[name]):
            return f"{name} differs"
    if not losses_too:
        return ""
    data = [workdir / "checkpoints" / STAGE / str(STEPS) / "data" / "metadata" for workdir in (expected, got)]
    if data[0].read_bytes() != data[1].read_bytes():
        return "the data position differs"
    return loss_difference(losses(expected), losses(got))


def same_bits(first: Any, second: Any) -> bool:
    """Whether two arrays are the same in shape, dtype and every bit."""
    a, b = np.asarray(first), np.asarray(second)
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def loss_difference(expected: dict[int, float], got: dict[int, float]) -> str:
    """Returns at which step losses differ first; "" where they do not."""
    if list(got) != list(expected):
        return f"losses of {len(got)} steps are told, not of {len(expected)}, each once and in order"
    wrong = [step for step in expected if expected[step] != got[step]]
    return f"the loss of step {wrong[0]} is {got[wrong[0]]!r}, not {expected[wrong[0]]!r}" if wrong else ""


def relative_difference(expected: dict[int, float], got: dict[int, float]) -> float:
    """Returns the largest relative difference of losses; infinite where the steps differ."""
    if list(got) != list(expected):
        return float("inf")
    return max(abs(got[step] - expected[step]) / abs(expected[step]) for step in expected)
