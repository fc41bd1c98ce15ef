"""Checkpoints: state, data position and config as one unit, trusted only when every byte is as written.

Orbax writes and commits; what it lacks is added here. It believes bare directory names, casts dtypes in
silence, follows symbolic links and does not checksum array data: one flipped bit restores without a word.
So a manifest with the SHA-256 of every file is written into each step before the rename that commits it; a
step without one was never committed by us, and a step whose files differ from it is not used.

`orbax.CheckpointManager` is not used: it counts what to keep by directory name, so a damaged step would take
the place of a good one.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from sora_jax.core.distributed import from_first, is_first, wait_for_all
from sora_jax.core.errors import StorageError, UserError
from sora_jax.train import manifest

PyTree = Any


@dataclass(frozen=True, kw_only=True)
class Restored:
    """One checkpoint: `state` on the devices, the step it was saved at, the data position and the config."""

    step: int
    state: PyTree
    data: dict[str, Any]
    config: dict[str, Any]


class Checkpointer:
    """Saves and restores the checkpoints of one run; use it as a context manager.

    `directory` is made absolute and created; what an interrupted save left there is removed. `keep` (1 or
    more) is the number of committed steps that stay: older ones go only after a newer one is committed. With
    several processes every process makes every call; process 0 alone cleans, prunes and verifies.
    """

    def __init__(self, directory: str | os.PathLike[str], *, keep: int) -> None:
        if keep < 1:
            raise UserError(f"checkpoints to keep is {keep}; at least 1 is needed to resume")
        self._directory = epath.Path(directory).absolute()
        self._keep = keep
        self._pending: int | None = None
        self._saved: int | None = None
        self._bad: set[int] = set()
        if is_first():
            _create_and_clean(self._directory)
        wait_for_all(f"checkpoints in {self._directory}")
        options = ocp.options.AsyncOptions(post_finalization_callback=self._write_manifest)
        handler = ocp.CompositeCheckpointHandler("state", "data", "config")
        self._orbax = ocp.AsyncCheckpointer(handler, async_options=options)

    def save(self, step: int, state: PyTree, data: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Starts a save and returns once `state` is copied, so its buffers may be donated to the next step.

        `state` is any tree of global jax arrays, `data` and `config` are JSON. A step that this object has
        just saved or restored is not written again. Raises `StorageError` if this or the last save failed.
        """
        self.wait()
        if step == self._saved:
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_nested(state)),
            data=ocp.args.JsonSave(dict(data)),
            config=ocp.args.JsonSave(dict(config)),
        )
        self._pending = step
        try:
            self._orbax.save(self._directory / str(step), args=items, force=True)
        except (OSError, ValueError) as error:
            raise self._failed(error) from error

    def poll(self) -> None:
        """Returns at once; raises `StorageError` if a save failed in the background. Call it every step."""
        try:
            self._orbax.check_for_errors()
        except Exception as error:  # the background thread may fail in any way: tensorstore, disk, barrier
            raise self._failed(error) from error
        if self._pending is not None and (self._directory / str(self._pending) / manifest.NAME).exists():
            self._committed()

    def wait(self) -> None:
        """Returns when no save is under way; raises `StorageError` if the last one failed."""
        try:
            self._orbax.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error
        if self._pending is not None:
            self._committed()

    def close(self) -> None:
        """Returns when the last save is committed; raises `StorageError` if it failed."""
        try:
            self.wait()
        finally:
            self._orbax.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except StorageError as error:
            if kind is None:
                raise
            logging.error("%s", error)  # the exception already under way says more

    def restore(self, abstract_state: PyTree) -> Restored | None:
        """The newest step whose files are all as written, or None if nothing was ever saved here.

        `abstract_state` has a `jax.ShapeDtypeStruct` with a sharding at each leaf, over any mesh. Steps that
        cannot be trusted are passed over with a warning.

        Raises:
          StorageError: there are steps and none can be trusted. Starting afresh is then the user's decision.
          UserError: leaves are missing, extra, or of another shape or dtype than `abstract_state`.
        """
        self.wait()
        step, bad = _newest_trusted(self._directory, wanted=None)
        self._bad |= bad
        if step is None:
            return None
        restored = _read(self._directory / str(step), step=step, abstract=abstract_state, whole=True)
        self._saved = step
        return restored

    def rewind(self, abstract_state: PyTree, *, at_most: int) -> Restored | None:
        """Returns the newest step up to `at_most` as `restore` does, and removes all later ones; None if there is none.

        They were trusted, but training goes another way from here.
        """
        self.wait()

        def remove() -> None:
            for step in _steps(self._directory):
                if step > at_most:
                    (self._directory / str(step)).rmtree(missing_ok=True)

        from_first(f"checkpoints after step {at_most}", remove)
        self._saved = None
        return self.restore(abstract_state)

    def _committed(self) -> None:
        assert self._pending is not None
        logging.info("saved the checkpoint of step %d", self._pending)
        self._saved, self._pending = self._pending, None
        self._bad.discard(self._saved)
        if is_first():
            self._prune(self._saved)

    def _failed(self, error: BaseException) -> StorageError:
        step, self._pending = self._pending, None
        reason = " ".join(str(error).split())
        return StorageError(f"the checkpoint of step {step} was not saved in {self._directory}: {reason}")

    def _write_manifest(self) -> None:
        """Runs in orbax's thread on process 0, when all files are written and before the commit."""
        committed = self._directory / str(self._pending)
        unfinished = self._directory / f"{self._pending}{ocp.utils.TMP_DIR_SUFFIX}"
        # Object stores have no rename: there orbax writes at the final place.
        directory = unfinished if unfinished.exists() else committed
        manifest.write(directory, name=str(self._pending))

    def _prune(self, newest: int) -> None:
        steps = [step for step in _steps(self._directory) if step <= newest and step not in self._bad]
        for step in sorted(steps)[: -self._keep]:
            try:
                (self._directory / str(step)).rmtree(missing_ok=True)
            except OSError as error:
                logging.warning("the old checkpoint of step %d was not removed: %s", step, error)


def load_tree(directory: str | os.PathLike[str], abstract_subset: PyTree, *, step: int | None = None) -> Restored:
    """A part of a checkpoint, such as `{"ema": ...}`: only the leaves of `abstract_subset` are read.

    `step` None takes the newest step that can be trusted. Nothing in `directory` is changed, so a run may be
    writing there. Raises `UserError` if there is no such step or a leaf differs, `StorageError` as `restore`.
    """
    path = epath.Path(directory).absolute()
    found, _ = _newest_trusted(path, wanted=step)
    if found is None:
        what = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise UserError(f"there is {what} in {path}; steps found: {sorted(_steps(path)) or 'none'}")
    return _read(path / str(found), step=found, abstract=abstract_subset, whole=False)


def _create_and_clean(directory: epath.Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path in directory.iterdir():
            if ocp.utils.TMP_DIR_SUFFIX in path.name and path.is_dir() and not os.path.islink(path):
                path.rmtree()
                logging.warning("removed %s: a save that was never finished", path)
    except OSError as error:
        raise StorageError(f"checkpoints cannot be written in {directory}: {error}") from error


def _steps(directory: epath.Path) -> list[int]:
    """Steps by directory name, in no order; every other name is somebody else's."""
    if not directory.exists():
        return []
    names = [path.name for path in directory.iterdir() if path.is_dir()]
    return [int(name) for name in names if name.isdecimal() and str(int(name)) == name]


def _newest_trusted(directory: epath.Path, *, wanted: int | None) -> tuple[int | None, set[int]]:
    """The newest trusted step (of all, or of `wanted` alone) and those refused; the same on every process."""

    def look() -> tuple[int | None, list[int]]:
        bad = []
        for step in sorted(_steps(directory), reverse=True):
            if wanted not in (None, step):
                continue
            reason = manifest.distrust(directory / str(step))
            if reason is None:
                return step, bad
            logging.warning("checkpoint of step %d in %s is not used: %s", step, directory, reason)
            bad.append(step)
        return None, bad

    found, bad = from_first(f"steps in {directory}", look)
    if found is None and bad:
        raise StorageError(
            f"none of the {len(bad)} checkpoints in {directory} can be trusted, the log says why; "
            "put back a copy, or move the directory away to start afresh"
        )
    return found, set(bad)


def _read(directory: epath.Path, *, step: int, abstract: PyTree, whole: bool) -> Restored:
    _check_leaves(directory, abstract, whole=whole)
    wanted = _nested(abstract)
    arguments = ocp.checkpoint_utils.construct_restore_args(wanted)
    items = ocp.args.Composite(
        state=ocp.args.PyTreeRestore(wanted, restore_args=arguments, partial_restore=not whole),
        data=ocp.args.JsonRestore(),
        config=ocp.args.JsonRestore(),
    )
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler("state", "data", "config")) as orbax:
            restored = orbax.restore(directory, args=items)
    except (OSError, ValueError) as error:
        raise StorageError(f"the checkpoint {directory} cannot be restored: {error}") from error
    leaves = _leaves(restored.state)
    state = jax.tree.unflatten(jax.tree.structure(abstract), [leaves[name] for name in _leaves(abstract)])
    return Restored(step=step, state=state, data=restored.data, config=restored.config)


def _check_leaves(directory: epath.Path, abstract: PyTree, *, whole: bool) -> None:
    """Raises `UserError` naming the leaves that differ: orbax would cast dtypes in silence."""
    saved = _leaves(ocp.StandardCheckpointHandler().metadata(directory / "state").tree)
    wanted = _leaves(abstract)
    assert all(leaf.sharding is not None for leaf in wanted.values()), "a leaf has no sharding"
    lines = [f"{name} is not in the checkpoint" for name in wanted.keys() - saved.keys()]
    if whole:
        lines += [f"{name} is not in this config's state" for name in saved.keys() - wanted.keys()]
    for name in wanted.keys() & saved.keys():
        old, new = (f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}" for leaf in (saved[name], wanted[name]))
        if old != new:
            lines.append(f"{name} is {old} in the checkpoint and {new} in this config")
    if lines:
        shown = "; ".join(sorted(lines)[:8]) + (f"; and {len(lines) - 8} more" if len(lines) > 8 else "")
        raise UserError(f"the checkpoint {directory} was made by another config: {shown}")


def _leaves(tree: PyTree) -> dict[str, Any]:
    return {"/".join(names): leaf for names, leaf in _paths(tree)}


def _nested(tree: PyTree) -> dict[str, Any]:
    """The same leaves in plain dicts, so that what is on disk depends on names and not on Python classes."""
    nested: dict[str, Any] = {}
    for names, leaf in _paths(tree):
        node = nested
        for name in names[:-1]:
            node = node.setdefault(name, {})
        node[names[-1]] = leaf
    return nested


def _paths(tree: PyTree) -> list[tuple[list[str], Any]]:
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return [([jax.tree_util.keystr((key,), simple=True) for key in path], leaf) for path, leaf in paths]
