"""Everything one run writes, in one folder: its layout, its config, its lock, its finished stages."""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from sora_jax.checkpoints.disk_space import check_folder_names
from sora_jax.core.config import differences, to_json
from sora_jax.core.distributed import is_first
from sora_jax.core.errors import StorageError, UserError
from sora_jax.core.files import write_atomically
from sora_jax.data.sources.remote import is_remote
from sora_jax.train import changes

# The name of the collection `data` beside those of `more_data`.
MAIN = "main"


class Workdir:
    """The folder of a run. As a context manager it holds the lock: one writer at a time.

    Processes that each prepare a part of the clips, named by `part`, write at the same time, but one for each part. Of
    the processes of one run the first alone holds the lock and writes what this class writes.

    Layout:
      config.json                    the config, of which little may change (`train/changes.py`)
      clips.json                     fingerprints of the clips, by collection, when the run was last started
      run.json                       facts of finished stages and of the run
      metrics.jsonl, tensorboard/    curves
      checkpoints/STAGE/STEP/        state of a stage; STAGE/frozen/ has what it does not train
      profile/STAGE/                 traces of the steps that `log.profile_steps` names
      failed/STAGE/                  what reproduces a step at which the run gave up
      latents.json                   mean and scale of the autoencoder's latents
      curation/                      what was measured of raw videos, and what was dropped
      prepared/                      shards, catalogue, skipped.jsonl
      prepared/NAME/                 the same of each further collection; so for curation
      heldout/, heldout/NAME/        shards of clips that training never sees
      samples/STAGE/STEP/NAME.gif    the same prompts, or clips, as training proceeds
      generated/KEY/                 clips that an evaluation had made, by weights and solver
      evaluation.json, report.html   the result
    """

    def __init__(self, path: str | os.PathLike[str], *, part: str = ""):
        if is_remote(path):
            raise UserError(
                f"--workdir={os.fspath(path)} must be a folder of this machine: only data are read from buckets"
            )
        self.path = Path(path).absolute()
        check_folder_names(self.path)
        self._part = part
        self._locks = contextlib.ExitStack()

    def __enter__(self) -> "Workdir":
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self._part:
                self._take(".lock", fcntl.LOCK_SH)
                self._take(f".lock-{self._part}", fcntl.LOCK_EX)
            elif is_first():
                self._take(".lock", fcntl.LOCK_EX)
        except BlockingIOError as error:
            raise UserError(f"another run is writing to {self.path}: wait for it, or give another --workdir") from error
        except OSError as error:
            raise StorageError(f"cannot write to {self.path}: {error.strerror}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._locks.close()

    def _take(self, name: str, kind: int) -> None:
        file = self._locks.enter_context((self.path / name).open("w"))
        fcntl.flock(file, kind | fcntl.LOCK_NB)

    def claim(
        self, config: ConfigDict, *, clips: Callable[[], Mapping[str, str]] = dict, fresh_data: bool = False
    ) -> None:
        """Writes the config, or what may change of the one that is here (`train/changes.py`).

        `clips` returns the fingerprint of each collection that can be read. Where clips lie may change if they are the
        same, or with `fresh_data`. Raises UserError naming what else differs.
        """
        path = self.path / "config.json"
        known = self.config() if path.exists() else {}
        new = changes.completed(json.loads(to_json(config)))
        found = clips()
        if known:
            self._check(known, new, found, fresh_data=fresh_data)
        if not is_first():
            return
        if known != new:
            for line in differences(known, new) if known else ():
                logging.info("the config of %s changes: %s", self.path, line)
            write_atomically(path, to_json(config))
        if found and not self._part and dict(found) != self._clips():
            self.write_json("clips.json", dict(found))

    def _check(
        self, known: Mapping[str, Any], new: Mapping[str, Any], found: Mapping[str, str], *, fresh_data: bool
    ) -> None:
        """Raises UserError where a config does not go on with the one that is known, or its clips are others."""
        begun = [name for name in known.get("run", ()) if self._has_begun(name)]
        if not begun and not any((self.path / name).exists() for name in ("prepared", "latents.json")):
            return  # a start that failed before it made anything
        if lines := changes.bound(known, new, begun=begun):
            raise UserError(changes.refusal(self.path, lines, saved=known, config=new, begun=begun))
        if fresh_data:
            return
        before = self._clips()
        for name, line in changes.moved(differences(known, new), main=MAIN).items():
            if name not in found or found[name] != before.get(name):
                raise UserError(
                    f"{line}: these are not the clips with which {self.path} was begun, by their names, sizes and "
                    "captions: restore the old place, give another --workdir, or pass --fresh_data to keep the weights "
                    "and go on with them"
                )

    def _clips(self) -> dict[str, Any]:
        """Returns the fingerprint of each collection, as of the last start that could read it."""
        return self.read_json("clips.json") if (self.path / "clips.json").exists() else {}

    def _has_begun(self, stage: str) -> bool:
        """Whether anything was made in a stage."""
        return stage in self.facts()["stages"] or self.checkpoints(stage).exists()

    def config(self) -> dict[str, Any]:
        """Returns the config of the run here; raises UserError if there is none."""
        if not (self.path / "config.json").exists():
            raise UserError(f"{self.path} holds no run (config.json is missing): train one, or correct --workdir")
        return changes.completed(self.read_json("config.json"))

    def checkpoints(self, stage: str) -> Path:
        """Returns the folder of a stage's checkpoints."""
        return self.path / "checkpoints" / stage

    def failed(self, stage: str) -> Path:
        """Returns the folder of what reproduces the step at which a stage gave up."""
        return self.path / "failed" / stage

    def profile(self, stage: str) -> Path:
        """Returns the folder of the traces of a stage."""
        return self.path / "profile" / stage

    def curation(self, collection: str = MAIN) -> Path:
        """Returns the folder of what was measured of a collection's raw videos."""
        return self.path / "curation" / ("" if collection == MAIN else collection)

    def prepared(self, collection: str = MAIN) -> Path:
        """Returns the folder of a collection's shards."""
        return self.path / "prepared" / ("" if collection == MAIN else collection)

    def reworded(self) -> dict[str, str]:
        """Returns the fingerprints of prepared sets before and after captions alone changed, as `note_reworded` has."""
        return self.read_json("reworded.json") if (self.path / "reworded.json").exists() else {}

    def note_reworded(self, prepared: str, clips: str) -> None:
        """Notes that a set (`PreparedSet.fingerprint`) is, or will be, one of several of equal clips.

        `clips` is their `clips_fingerprint`.
        """
        self.write_json("reworded.json", {**self.reworded(), prepared: clips})

    def heldout(self, collection: str = MAIN) -> Path:
        """Returns the folder of the shards of a collection's held-out clips."""
        return self.path / "heldout" / ("" if collection == MAIN else collection)

    def samples(self, stage: str, step: int) -> Path:
        """Returns the folder of what a stage shows at a step."""
        return self.path / "samples" / stage / f"{step:06d}"

    def generated(self, key: str) -> Path:
        """Returns the folder of the clips that an evaluation had made."""
        return self.path / "generated" / key

    def facts(self) -> dict[str, Any]:
        """Returns run.json: {"stages": {name: facts}, ...}; empty before the first stage ends."""
        return self.read_json("run.json") if (self.path / "run.json").exists() else {"stages": {}}

    def finish_stage(self, name: str, facts: dict[str, Any]) -> None:
        """Records that a stage is done; it will not run again."""
        if not is_first():
            return
        known = self.facts()
        known["stages"][name] = facts
        self.write_json("run.json", known)

    def read_json(self, name: str, *keys: str) -> dict[str, Any]:
        """Returns the object in a JSON file of the workdir; StorageError if it is damaged or lacks one of `keys`."""
        try:
            found = json.loads((self.path / name).read_text())
            if not isinstance(found, dict):
                raise ValueError("it is no object")
            if missing := [key for key in keys if key not in found]:
                raise ValueError(f"{', '.join(missing)} missing")
            return found
        except (ValueError, RecursionError) as error:
            raise StorageError(f"{self.path / name} is damaged ({error}): restore or remove it") from error

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Writes a JSON file of the workdir as a whole or not at all."""
        if is_first():
            write_atomically(self.path / name, json.dumps(value, indent=2))
