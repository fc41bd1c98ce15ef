"""Checkpoints: state, data position and config as one unit, trusted only when every byte is as written.

Orbax writes and commits; what it lacks is added here. It believes bare directory names, casts dtypes in
silence, follows symbolic links and does not checksum array data: one flipped bit restores without a word.
So arrays are opened again, and a manifest with the SHA-256 of every file is written into each step, before the rename
that commits it; a step without one was never committed by us, and a step whose files differ from it is not used.

`orbax.CheckpointManager` is not used: it counts what to keep by directory name, so a damaged step would take
the place of a good one.
"""

import os
import time
from collections.abc import Mapping
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from absl import flags, logging
from etils import epath
from orbax.checkpoint import future

from sora_jax.checkpoints import leaves, manifest
from sora_jax.checkpoints.disk_space import check_room
from sora_jax.checkpoints.reading import Restored, newest_trusted, read_step, saved_leaves
from sora_jax.checkpoints.retention import (
    RECORD,
    CheckpointConfig,
    Record,
    Retention,
    find_steps,
    read_record,
    remove_step,
)
from sora_jax.core.distributed import from_first, is_first, wait_for_all
from sora_jax.core.errors import StorageError
from sora_jax.core.tree import PyTree
from sora_jax.core.versions import changes, versions

# Pauses before a failed save is tried again, seconds: at once for what passes by itself, then long enough for a file
# system that stumbled, or for somebody who makes room.
_PAUSES = (0.0, 2.0, 10.0)
# Characters of what a library says of an array that it does not find, which lists all options that it tried.
_MOST_SAID = 200
# Else orbax lets processes meet through their devices, where those of CPUs wait for each other for 30 s only.
flags.FLAGS.set_default("experimental_orbax_use_distributed_barrier", True)


class _DigestingHandler(ocp.CompositeCheckpointHandler):
    """Has every process digest the arrays that it wrote, as soon as it has: process 0 digests what joins them."""

    async def async_save(self, directory: epath.Path, args: "_Items") -> list[future.Future]:
        futures = await super().async_save(directory, args)
        folder = f"ocdbt.process_{jax.process_index()}"
        return [future.ChainedFuture(futures or [], lambda: manifest.write_part(directory, folder))]


@ocp.args.register_with_handler(_DigestingHandler, for_save=True, for_restore=True)
class _Items(ocp.args.Composite):
    """What one step holds; orbax finds its handler by this type."""


class Checkpointer:
    """Saves and restores the checkpoints of one run; use it as a context manager.

    `directory` is made absolute and created; what an interrupted save or removal left there is removed. Committed
    steps stay as `policy` says, and with `rewind_steps` those that `rewind` may be asked for, as
    `retention.steps_to_keep` says: others go only after a newer one is committed. With several processes every process
    makes every call; process 0 alone cleans and prunes, and what is read to verify is shared out.

    A save that fails is told, what it wrote is removed, and the next step that asks `due` is to save again: at once,
    after 2 s, after 10 s; then StorageError. Where there are several processes the first failure of one ends it with
    StorageError, as the others, who may have written their part, cannot be told without waiting for them each step.
    """

    def __init__(
        self, directory: str | os.PathLike[str], policy: CheckpointConfig, rewind_steps: int | None = None
    ) -> None:
        self._directory = epath.Path(directory).absolute()
        self._policy, self._for_rewinds = policy, 0 if rewind_steps is None else 2
        self._retention = Retention(self._directory, policy, rewind_steps)
        self._pending: int | None = None
        self._saved: int | None = None
        self._saved_at = time.monotonic()
        self._failures = 0
        self._wanted: dict[str, jax.ShapeDtypeStruct] = {}
        self._failed: StorageError | None = None
        self._retry_at = 0.0
        if is_first():
            _create_and_clean(self._directory)
        wait_for_all(f"checkpoints in {self._directory}")
        options = ocp.options.AsyncOptions(post_finalization_callback=self._finish)
        handler = _DigestingHandler("state", "data", "config", RECORD)
        self._orbax = ocp.AsyncCheckpointer(handler, async_options=options)

    def check_room(self, abstract_state: PyTree) -> None:
        """Raises StorageError where checkpoints of such a state cannot be written here, or have no room.

        What counts is what will be there at once: those that stay, and the next, before an old one goes.
        """
        wanted = self._policy.keep + self._policy.keep_best + self._for_rewinds + 1
        check_room(self._directory, abstract_state, copies=max(1, wanted - len(find_steps(self._directory))))

    @property
    def newest(self) -> int:
        """The step last saved or restored, or that is being saved; 0 before any."""
        return self._pending or self._saved or 0

    def due(self, step: int) -> bool:
        """Whether to save after this step: the same answer on every process, which must all ask."""
        if self._failed is not None:
            return time.monotonic() >= self._retry_at
        if step % self._policy.every_steps == 0:
            return True
        minutes = self._policy.every_minutes
        if minutes is None:
            return False
        return from_first("is a save due", lambda: time.monotonic() - self._saved_at >= 60 * minutes)

    def save(
        self,
        step: int,
        state: PyTree,
        data: Mapping[str, Any],
        config: Mapping[str, Any],
        *,
        loss: float | None = None,
        settle: bool = False,
    ) -> None:
        """Starts a save and returns once `state` is copied, so its buffers may be donated to the next step.

        `state` is any tree of global jax arrays, `data` and `config` are JSON; `loss` is the mean since the save
        before. A step that this object has just saved or restored is not written again. With `settle` the save is
        waited for, and tried again here: as before a run ends.

        Raises:
          NumericsError: a leaf of `state` is not finite; nothing is written.
          StorageError: this save, or the one before, failed and is not tried again.
        """
        self._settle()
        if step == self._saved:
            return
        leaves.refuse_non_finite(state, what=f"the state after step {step}")
        # What must be found there before the commit; not the arrays, which are donated.
        self._wanted = {n: jax.ShapeDtypeStruct(v.shape, v.dtype) for n, v in leaves.by_name(state).items()}
        record = Record(step=step, loss=loss, time=time.time(), versions=versions())
        items = _Items(
            state=ocp.args.StandardSave(leaves.nested(state)),
            data=ocp.args.JsonSave(dict(data)),
            config=ocp.args.JsonSave(dict(config)),
            **{RECORD: ocp.args.JsonSave(record.facts())},
        )
        self._begin(step, items)
        if not settle:
            return
        self._settle()
        while self._failed is not None:
            time.sleep(max(0.0, self._retry_at - time.monotonic()))
            self._begin(step, items)
            self._settle()

    def poll(self) -> None:
        """Returns at once, after telling of a save that failed in the background. Call it every step.

        Raises StorageError if that is not tried again.
        """
        try:
            self._orbax.check_for_errors()
        except Exception as error:  # the background thread may fail in any way: tensorstore, disk, barrier
            self._note(error)
        if self._pending is not None and (self._directory / str(self._pending) / manifest.MANIFEST).exists():
            self._committed()

    def wait(self) -> None:
        """Returns when no save is under way; raises `StorageError` if the last one failed."""
        self._settle()
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed

    def close(self) -> None:
        """Returns when the last save is committed; raises `StorageError` if it failed."""
        try:
            self.wait()
        finally:
            self._retention.close()
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
        cannot be trusted are passed over with a warning; so are versions other than those that saved it.

        Raises:
          StorageError: there are steps and none can be trusted. Starting afresh is then the user's decision.
          UserError: leaves are missing, extra, or of another shape or dtype than `abstract_state`.
        """
        self.wait()
        step, bad = newest_trusted(self._directory, wanted=None)
        self._retention.bad |= bad
        if step is None:
            return None
        restored = read_step(self._directory / str(step), abstract_state, whole=True)
        self._retention.good.add(step)
        self._saved = step
        record = read_record(self._directory / str(step)) if is_first() else None
        if record is not None and (changed := changes(record.versions, versions())):
            logging.warning("the checkpoint of step %d may not be continued bit for bit: %s", step, changed)
        return restored

    def rewind(self, abstract_state: PyTree, *, at_most: int) -> Restored | None:
        """Returns the newest step up to `at_most` as `restore` does, and removes all later ones; None if there is none.

        They were trusted, but training goes another way from here.
        """
        self.wait()

        def remove() -> None:
            self._retention.wait()  # or it could remove the one that is gone back to
            for step in find_steps(self._directory):
                if step > at_most:
                    remove_step(self._directory, step)

        from_first(f"checkpoints after step {at_most}", remove)
        self._saved = None
        return self.restore(abstract_state)

    def _begin(self, step: int, items: _Items) -> None:
        self._pending, self._failed = step, None
        try:
            self._orbax.save(self._directory / str(step), args=items, force=True)
        except (OSError, ValueError) as error:
            self._note(error)

    def _settle(self) -> None:
        """Returns when no save is under way, after telling of one that failed."""
        try:
            self._orbax.wait_until_finished()
        except Exception as error:
            self._note(error)
        if self._pending is not None:
            self._committed()
        if self._saved is not None and is_first():  # orbax has ended: it writes its notes last
            manifest.remove_notes(self._directory / str(self._saved))

    def _committed(self) -> None:
        assert self._pending is not None
        logging.info("saved the checkpoint of step %d", self._pending)
        self._saved, self._pending = self._pending, None
        self._saved_at, self._failures = time.monotonic(), 0
        if is_first():
            self._retention.prune(self._saved)

    def _note(self, error: BaseException) -> None:
        """Tells of a failed save and frees what it took of the disk; raises StorageError if it was the last try."""
        step, self._pending = self._pending, None
        reason = " ".join(str(error).split())
        if step is None:  # only bookkeeping of orbax comes after the commit
            logging.warning("after the checkpoint of step %s was saved: %s", self._saved, reason)
            return
        said = f"the checkpoint of step {step} was not saved in {self._directory}: {reason}"
        if jax.process_count() > 1:
            raise StorageError(said) from error
        try:
            (self._directory / f"{step}{ocp.utils.TMP_DIR_SUFFIX}").rmtree(missing_ok=True)
        except OSError as stays:
            logging.warning("what was written of it stays: %s", stays)
        if self._failures == len(_PAUSES):
            raise StorageError(f"{said}; that was try {self._failures + 1} in a row") from error
        self._failed, self._retry_at = StorageError(said), time.monotonic() + _PAUSES[self._failures]
        self._failures += 1
        logging.warning("%s; it is tried again", said)

    def _finish(self) -> None:
        """Runs in orbax's thread on process 0, when all files are written and before the commit.

        Digests tell that files stay as they are, not that they are a checkpoint: every array is opened as a restore
        does, from the file that joins what each process wrote. Raises StorageError where one is not found.
        """
        committed = self._directory / str(self._pending)
        unfinished = self._directory / f"{self._pending}{ocp.utils.TMP_DIR_SUFFIX}"
        # Object stores have no rename: there orbax writes at the final place.
        directory = unfinished if unfinished.exists() else committed
        try:
            lines = leaves.leaf_differences(saved_leaves(directory), self._wanted, whole=True)
        except (OSError, ValueError, KeyError) as error:
            lines = [str(error)[:_MOST_SAID]]
        if lines:
            raise StorageError(f"it cannot be read back: {leaves.first_lines(lines)}")
        manifest.write_manifest(directory, name=str(self._pending))


def _create_and_clean(directory: epath.Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path in directory.iterdir():
            if ocp.utils.TMP_DIR_SUFFIX in path.name and path.is_dir() and not os.path.islink(path):
                path.rmtree()
                logging.warning("removed %s: a save, or a removal of an old one, that was never finished", path)
    except OSError as error:
        raise StorageError(f"checkpoints cannot be written in {directory}: {error}") from error
