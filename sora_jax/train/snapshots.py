"""Averages of the weights that a stage keeps on the way, of which those of other widths are made afterwards.

    STAGE/averages/400/   one more checkpoint, with a manifest of its own: {"ema": {track: {name: value}}}
                          its data have {"updates": 400}, the clock of the averages

They stay when the checkpoints of their steps go.
"""

import dataclasses
import json
import os
from collections.abc import Collection, Mapping
from typing import Any

from etils import epath

from sora_jax.checkpoints.checkpoint import Checkpointer
from sora_jax.checkpoints.disk_space import check_room
from sora_jax.checkpoints.retention import CheckpointConfig, find_steps, remove_step
from sora_jax.core.distributed import from_first, to_host
from sora_jax.train.state import TrainState

# The folder beside the steps, and the key in the data of a snapshot.
AVERAGES = "averages"
_UPDATES = "updates"
# All stay, also those of other moments: how many a stage keeps may change while it goes on.
_POLICY = CheckpointConfig(
    every_steps=1, every_minutes=None, keep=1, keep_best=0, keep_every_steps=1, keep_every_hours=None
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Averages that were kept.

    Attributes:
      folder: Of the checkpoint.
      updates: Of the weights that they are over.
    """

    folder: epath.Path
    updates: int


class Snapshots:
    """Keeps the averages of the stage whose checkpoints are in `directory`, at the steps `moments`."""

    def __init__(self, directory: str | os.PathLike[str], moments: Collection[int]):
        self._folder, self.moments = epath.Path(directory).absolute() / AVERAGES, moments

    def check_room(self, abstract: TrainState) -> None:
        """Raises StorageError where those that are not there yet have no room, as `disk_space.check_room`."""
        if missing := len(set(self.moments) - set(find_steps(self._folder))):
            check_room(self._folder.parent, abstract.ema, copies=missing)

    def save(self, step: int, state: TrainState, config: Mapping[str, Any]) -> None:
        """Keeps the averages of `state` and returns when they are written; nothing at other steps, or what is there.

        Every process must call it, when no other save is under way. Raises as `Checkpointer.save`.
        """
        there = step in self.moments and from_first(f"averages of step {step}", lambda: step in self._steps())
        if step in self.moments and not there:
            with Checkpointer(self._folder, _POLICY) as saver:
                saver.save(step, {"ema": state.ema}, {_UPDATES: int(to_host(state.updates))}, config, settle=True)

    def forget_after(self, step: int) -> None:
        """Removes those of later steps, to which training will come again, or which it leaves out."""

        def remove() -> None:
            for later in self._steps():
                if later > step:
                    remove_step(self._folder, later)

        from_first(f"averages after step {step}", remove)

    def _steps(self) -> list[int]:
        return find_steps(self._folder)


def find_snapshots(directory: str | os.PathLike[str]) -> list[Snapshot]:
    """Returns the averages that the stage with checkpoints in `directory` has kept, by their clock."""
    folder = epath.Path(directory).absolute() / AVERAGES
    found = []
    for step in find_steps(folder):
        data = json.loads((folder / str(step) / "data" / "metadata").read_text())
        found.append(Snapshot(folder=folder / str(step), updates=data[_UPDATES]))
    return sorted(found, key=lambda one: one.updates)
