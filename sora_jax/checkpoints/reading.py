"""Reading checkpoints: of several the newest that can be trusted, whole or in part."""

import os
from dataclasses import dataclass
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from sora_jax.checkpoints import leaves, manifest
from sora_jax.checkpoints.retention import find_steps
from sora_jax.core.distributed import from_first, gather, is_first
from sora_jax.core.errors import StorageError, UserError
from sora_jax.core.tree import PyTree


@dataclass(frozen=True, kw_only=True)
class Restored:
    """One checkpoint: `state` on the devices, the step it was saved at, the data position and the config."""

    step: int
    state: PyTree
    data: dict[str, Any]
    config: dict[str, Any]


def load_tree(directory: str | os.PathLike[str], abstract_subset: PyTree, *, step: int | None = None) -> Restored:
    """A part of a checkpoint, such as `{"ema": ...}`: only the leaves of `abstract_subset` are read.

    `step` None takes the newest step that can be trusted. Nothing in `directory` is changed, so a run may be
    writing there. Raises `UserError` if there is no such step or a leaf differs, `StorageError` as `restore`.
    """
    return read_step(trusted_step(directory, step=step), abstract_subset, whole=False)


def trusted_step(directory: str | os.PathLike[str], *, step: int | None = None) -> epath.Path:
    """Returns the folder of a step that can be trusted, the newest for None; raises as `load_tree`."""
    path = epath.Path(directory).absolute()
    found, _ = newest_trusted(path, wanted=step)
    if found is None:
        what = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise UserError(f"there is {what} in {path}; steps found: {sorted(find_steps(path)) or 'none'}")
    return path / str(found)


def newest_trusted(directory: epath.Path, *, wanted: int | None) -> tuple[int | None, set[int]]:
    """The newest trusted step (of all, or of `wanted` alone) and those refused; the same on every process.

    Each process reads its part of the files.
    """
    steps = from_first(f"steps in {directory}", lambda: sorted(find_steps(directory), reverse=True))
    part, bad, found = (jax.process_index(), jax.process_count()), [], None
    for step in steps if wanted is None else [step for step in steps if step == wanted]:
        said = gather(f"step {step} of {directory}", manifest.distrust(directory / str(step), part=part))
        reason = next((one for one in said if one is not None), None)
        if reason is None:
            found = step
            break
        if is_first():
            logging.warning("checkpoint of step %d in %s is not used: %s", step, directory, reason)
        bad.append(step)
    if found is None and bad:
        raise StorageError(
            f"none of the {len(bad)} checkpoints in {directory} can be trusted, the log says why; "
            "put back a copy, or move the directory away to start afresh"
        )
    return found, set(bad)


def read_step(directory: epath.Path, abstract: PyTree, *, whole: bool) -> Restored:
    """Returns the checkpoint in `directory`, which somebody else must have found to be as it was written.

    Only the leaves of `abstract` are read; with `whole` there must be no others. Raises as `Checkpointer.restore`.
    """
    wanted = leaves.by_name(abstract)
    assert all(leaf.sharding is not None for leaf in wanted.values()), "a leaf has no sharding"
    if lines := leaves.leaf_differences(saved_leaves(directory), wanted, whole=whole):
        raise UserError(f"the checkpoint {directory} was made by another config: {leaves.first_lines(lines)}")
    nested = leaves.nested(abstract)
    arguments = ocp.checkpoint_utils.construct_restore_args(nested)
    items = ocp.args.Composite(
        state=ocp.args.PyTreeRestore(nested, restore_args=arguments, partial_restore=not whole),
        data=ocp.args.JsonRestore(),
        config=ocp.args.JsonRestore(),
    )
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler("state", "data", "config")) as orbax:
            restored = orbax.restore(directory, args=items)
    except (OSError, ValueError) as error:
        raise StorageError(f"the checkpoint {directory} cannot be restored: {error}") from error
    found = leaves.by_name(restored.state)
    state = jax.tree.unflatten(jax.tree.structure(abstract), [found[name] for name in wanted])
    return Restored(step=int(directory.name), state=state, data=restored.data, config=restored.config)


def saved_leaves(directory: epath.Path) -> dict[str, Any]:
    """Returns what stands for the leaves of the checkpoint in `directory`, with dtype and shape, by name.

    Orbax itself would cast dtypes in silence.
    """
    return leaves.by_name(ocp.StandardCheckpointHandler().metadata(directory / "state").tree)
