"""Everything one run writes, in one folder: its layout, its config, its lock, its finished stages."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from sora_jax.core.config import differences, to_json
from sora_jax.core.errors import StorageError, UserError

# Differences listed in the message about a workdir of another config; a typical mistake changes one or two keys.
_MOST_LISTED = 5


class Workdir:
    """The folder of a run. As a context manager it holds the lock: one writer at a time.

    Layout:
      config.json                    the config, which never changes
      run.json                       facts of finished stages and of the run
      metrics.jsonl, tensorboard/    curves
      checkpoints/STAGE/STEP/        state of a stage
      latents.json                   mean and scale of the autoencoder's latents
      curation/                      what was measured of raw videos, and what was dropped
      prepared/                      shards, index, skipped.jsonl
      samples/STAGE/STEP/NAME.gif    the same prompts, or clips, as training proceeds
      evaluation.json, report.html   the result
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path).absolute()
        self._lock: Any = None

    def __enter__(self) -> "Workdir":
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                self._lock = (self.path / ".lock").open("w")
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another run is writing to {self.path}: wait for it, or give another --workdir") from error
        except OSError as error:
            raise StorageError(f"cannot write to {self.path}: {error.strerror}") from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()

    def claim(self, config: ConfigDict) -> None:
        """Writes the config, or checks that the one already here is the same; raises UserError naming what differs."""
        text = to_json(config)
        path = self.path / "config.json"
        if not path.exists():
            write_atomically(path, text)
            return
        changed = differences(self.read_json("config.json"), json.loads(text))
        if changed:
            listed = "; ".join(changed[:_MOST_LISTED])
            more = f" and {len(changed) - _MOST_LISTED} more" if len(changed) > _MOST_LISTED else ""
            raise UserError(
                f"{self.path} belongs to another config ({listed}{more}): "
                "restore the old values, or give another --workdir"
            )

    def config(self) -> dict[str, Any]:
        """Returns the config of the run here; raises UserError if there is none."""
        if not (self.path / "config.json").exists():
            raise UserError(f"{self.path} holds no run (config.json is missing): train one, or correct --workdir")
        return self.read_json("config.json")

    def checkpoints(self, stage: str) -> Path:
        """Returns the folder of a stage's checkpoints."""
        return self.path / "checkpoints" / stage

    def curation(self) -> Path:
        """Returns the folder of what was measured of raw videos."""
        return self.path / "curation"

    def prepared(self) -> Path:
        """Returns the folder of the shards."""
        return self.path / "prepared"

    def samples(self, stage: str, step: int) -> Path:
        """Returns the folder of what a stage shows at a step."""
        return self.path / "samples" / stage / f"{step:06d}"

    def facts(self) -> dict[str, Any]:
        """Returns run.json: {"stages": {name: facts}, ...}; empty before the first stage ends."""
        return self.read_json("run.json") if (self.path / "run.json").exists() else {"stages": {}}

    def finish_stage(self, name: str, facts: dict[str, Any]) -> None:
        """Records that a stage is done; it will not run again."""
        known = self.facts()
        known["stages"][name] = facts
        self.write_json("run.json", known)

    def read_json(self, name: str) -> dict[str, Any]:
        """Returns the object in a JSON file of the workdir; raises StorageError if it is damaged."""
        try:
            return json.loads((self.path / name).read_text())
        except ValueError as error:
            raise StorageError(f"{self.path / name} is damaged ({error}): restore or remove it") from error

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Writes a JSON file of the workdir as a whole or not at all."""
        write_atomically(self.path / name, json.dumps(value, indent=2))


def write_atomically(path: Path, text: str) -> None:
    """Writes `text` so that a reader, or a crash, never meets half a file."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
