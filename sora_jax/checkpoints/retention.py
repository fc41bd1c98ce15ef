"""When checkpoints are written and which of them stay."""

import dataclasses
import functools
import json
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from sora_jax.checkpoints import manifest
from sora_jax.core.config import at_least_one
from sora_jax.core.errors import UserError

# The item of a checkpoint that holds its `Record`.
RECORD = "record"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are written and which stay; see `configs/base.py`.

    Attributes:
      every_steps: Steps between saves.
      every_minutes: Save also when so many have passed since the last save; None: never for that.
      keep: The newest ones that stay.
      keep_best: How many with the lowest loss stay.
      keep_every_steps: Those of multiples of it stay for ever; None: none.
      keep_every_hours: The first one of each such span of time stays for ever; None: none.
    """

    every_steps: int
    every_minutes: float | None
    keep: int
    keep_best: int
    keep_every_steps: int | None
    keep_every_hours: float | None

    def __post_init__(self):
        at_least_one(self, "every_steps", "keep")
        if self.keep_best < 0:
            raise UserError(f"keep_best {self.keep_best} is negative; 0 keeps none for its loss")
        if self.keep_every_steps is not None and (
            self.keep_every_steps < 1 or self.keep_every_steps % self.every_steps
        ):
            raise UserError(
                f"keep_every_steps {self.keep_every_steps} must be a multiple of every_steps {self.every_steps}, "
                "or no such step is saved; None keeps none for that"
            )
        for name, value in (("every_minutes", self.every_minutes), ("keep_every_hours", self.keep_every_hours)):
            if value is not None and value <= 0:
                raise UserError(f"{name} {value:g} must be more than 0, or None")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """What is noted of a checkpoint.

    Attributes:
      step: Of the stage.
      loss: Mean training loss since the save before; None where no step had a finite one.
      time: When it was saved, seconds since 1970.
      versions: Of the libraries that saved it, by name.
    """

    step: int
    loss: float | None
    time: float
    versions: dict[str, str] = dataclasses.field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """Returns it as JSON."""
        return dataclasses.asdict(self)


def read_record(directory: epath.Path) -> Record | None:
    """Returns the record of the checkpoint in `directory`; None if it cannot be read, or is not one of ours."""
    try:
        if not (directory / manifest.MANIFEST).exists():
            return None
        return Record(**json.loads((directory / RECORD / "metadata").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def steps_to_keep(records: Collection[Record], config: CheckpointConfig, rewind_steps: int | None = None) -> set[int]:
    """Returns the steps that stay. What stays for ever, for its loss or for rewinds is not counted among the newest.

    With `rewind_steps`, the most recent one that a rewind by so many from the next step may go to stays, and the one
    after it, which takes its place later: were that one removed, the other would be gone back to for ever.
    """
    newest = sorted(records, key=lambda record: record.step, reverse=True)
    stay = {record.step for record in newest[: config.keep]}
    # Of equal ones the newest: it was trained longer.
    ranked = sorted((record.loss, -record.step) for record in records if record.loss is not None)
    stay |= {-step for _, step in ranked[: config.keep_best]}
    if config.keep_every_steps is not None:
        stay |= {record.step for record in records if record.step % config.keep_every_steps == 0}
    if config.keep_every_hours is not None:
        spans: dict[int, Record] = {}
        for record in sorted(records, key=lambda record: (record.time, record.step)):
            spans.setdefault(int(record.time // (3600 * config.keep_every_hours)), record)
        stay |= {record.step for record in spans.values()}
    if rewind_steps is not None and newest:
        latest = newest[0].step + 1 - rewind_steps
        stay |= set([record.step for record in newest if record.step <= latest][:1])
        stay |= set([record.step for record in newest if record.step > latest][-1:])
    return stay


class Retention:
    """Removes the checkpoints in `directory` that need not stay, in a thread of its own.

    `good` are steps known to be as they were written, `bad` those known not to be: these are never counted, nor
    removed. A step that this process neither saved nor restored is read once, before another goes because of it.
    `rewind_steps` is as in `steps_to_keep`.
    """

    def __init__(self, directory: epath.Path, config: CheckpointConfig, rewind_steps: int | None = None) -> None:
        self._directory = directory
        self._stay = functools.partial(steps_to_keep, config=config, rewind_steps=rewind_steps)
        self.good: set[int] = set()
        self.bad: set[int] = set()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="retention")
        self._last: Future[None] | None = None

    def prune(self, newest: int) -> None:
        """Starts to remove what need not stay now that `newest` is saved; the last removal must have gone well."""
        self.wait()
        self.good.add(newest)
        self.bad.discard(newest)
        self._last = self._pool.submit(self._prune, newest)

    def wait(self) -> None:
        """Returns when nothing is being removed."""
        if self._last is not None:
            last, self._last = self._last, None
            last.result()

    def close(self) -> None:
        """Ends the thread, after what it is doing."""
        self._pool.shutdown()
        self.wait()

    def _prune(self, newest: int) -> None:
        found = (read_record(self._directory / str(step)) for step in find_steps(self._directory) if step <= newest)
        records = {record.step: record for record in found if record is not None and record.step not in self.bad}
        stay = self._stay(records.values())
        while doubtful := [step for step in stay - self.good if self._in_the_way(step, records, stay)]:
            reason = manifest.distrust(self._directory / str(doubtful[0]))
            if reason is None:
                self.good.add(doubtful[0])
                continue
            logging.warning("checkpoint of step %d in %s is damaged: %s", doubtful[0], self._directory, reason)
            self.bad.add(doubtful[0])
            del records[doubtful[0]]
            stay = self._stay(records.values())
        for step in sorted(records.keys() - stay):
            try:
                remove_step(self._directory, step)
            except OSError as error:
                logging.warning("the old checkpoint of step %d was not removed: %s", step, error)

    def _in_the_way(self, step: int, records: dict[int, Record], stay: set[int]) -> bool:
        """Whether another would stay if `step` were not there."""
        others = [record for record in records.values() if record.step != step]
        return self._stay(others) != stay - {step}


def find_steps(directory: epath.Path) -> list[int]:
    """Returns steps by directory name, in no order; every other name is somebody else's."""
    if not directory.exists():
        return []
    names = [path.name for path in directory.iterdir() if path.is_dir()]
    return [int(name) for name in names if name.isdecimal() and str(int(name)) == name]


def remove_step(directory: epath.Path, step: int) -> None:
    """Removes a checkpoint, if it is there: its name first, so that what a kill leaves of it goes at the next start."""
    gone = directory / f"{step}{ocp.utils.TMP_DIR_SUFFIX}-removed"
    try:
        (directory / str(step)).rename(gone)
    except FileNotFoundError:
        return
    gone.rmtree()
