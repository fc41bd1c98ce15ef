"""Runs of a study: one config with other values of some keys, each in its own folder, as its own process of `main`.

What a run leaves in its folder is all that a study reads of it, so the same runs may also be made elsewhere, by the
commands that `Study.command` returns.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from ml_collections import ConfigDict

from sora_jax.core.config import to_json
from sora_jax.core.config_files import load_config
from sora_jax.core.errors import CommandError, PeerLost, Preempted, UserError
from sora_jax.experiment.kinds import names_until
from sora_jax.experiment.kinds.prepare import prepare_names
from sora_jax.experiment.schema import Settings
from sora_jax.experiment.settings import read_settings
from sora_jax.train import changes
from sora_jax.train.workdir import Workdir


class ChildFailed(CommandError):
    """A run of a study ended with an error, whose exit code is the study's as well."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.exit_code = code


@dataclasses.dataclass(frozen=True, kw_only=True)
class Child:
    """A run of a study.

    Attributes:
      name: Of its folder.
      changes: Values, by full names of keys, that are not the study's.
      until: The last kind of stage that it runs; None: all, and it is evaluated.
    """

    name: str
    changes: Mapping[str, Any]
    until: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """What the runs of a study have in common.

    Attributes:
      folder: Holds the folder of each, and beside it what the run said, NAME.log.
      file: Of the config.
      given: Values, by full names of keys, that the study was told otherwise than in that file.
    """

    folder: Path
    file: str
    given: Mapping[str, Any]

    def config(self, child: Child | None = None) -> ConfigDict:
        """Returns the config of a run, or what all have in common; raises UserError for a key or value that is none."""
        config = load_config(self.file)
        changed = self._changed(child)
        try:
            config.update_from_flattened_dict(changed)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.file} has no such key or value: {error}") from error
        return config

    def settings(self, child: Child | None = None) -> Settings:
        """Returns the same, read; raises UserError as `read_settings`."""
        return read_settings(self.config(child))

    def workdir(self, child: Child) -> Workdir:
        """Returns where a run writes."""
        return Workdir(self.folder / child.name)

    def command(self, child: Child) -> list[str]:
        """Returns the words of the command that makes a run, or goes on with it."""
        words = ["python", "-m", "sora_jax.main", f"--config={self.file}", f"--workdir={self.folder / child.name}"]
        words += [f"--config.{key}={value}" for key, value in self._changed(child).items()]
        return words if child.until is None else [*words, f"--until={child.until}"]

    def is_done(self, child: Child) -> bool:
        """Returns whether a run is made; raises UserError where what lies in its folder is of another config."""
        workdir, settings = self.workdir(child), self.settings(child)
        facts = workdir.facts()
        if child.until is None and not facts.get("evaluated", False):
            return False
        if any(name not in facts["stages"] for name in names_until(settings, child.until)):
            return False
        saved, wanted = workdir.config(), changes.completed(json.loads(to_json(self.config(child))))
        if lines := changes.bound(saved, wanted, begun=saved["run"]):
            raise UserError(
                f"{workdir.path} was made with another config ({'; '.join(lines[:3])}): give the study another "
                "--workdir, or the old values"
            )
        return True

    def _changed(self, child: Child | None) -> dict[str, Any]:
        return {**self.given, **(child.changes if child else {})}


def shared_child(study: Study) -> tuple[Child, dict[str, Any]]:
    """Returns (the run that makes what all others share, the changes by which they take it).

    That is the autoencoder, unless public weights are given, and the clips, which must then be the same for all: it is
    done first.
    """
    settings = study.settings()
    name = _prepares(study, settings)
    child, folder = _shared(study, settings, name)
    taken = {} if settings.autoencoder_weights is not None else {"autoencoder.start_from": folder}
    return child, {**taken, f"stages.{name}.start_from": folder}


def shared_autoencoder(study: Study) -> tuple[list[Child], dict[str, Any]]:
    """Returns the same of runs that share their autoencoder alone, as their clips differ; no run where it is given."""
    settings = study.settings()
    before = settings.run[: settings.run.index(_prepares(study, settings))]
    if not before:
        return [], {}
    child, folder = _shared(study, settings, before[-1])
    return [child], {"autoencoder.start_from": folder}


def _prepares(study: Study, settings: Settings) -> str:
    """Returns the stage that prepares clips; UserError where there is none."""
    names = prepare_names(settings)
    if not names:
        raise UserError(f"the run {', '.join(settings.run)} of {study.file} prepares no clips: a study needs videos")
    return names[0]


def _shared(study: Study, settings: Settings, last: str) -> tuple[Child, str]:
    """Returns the run up to a stage that others go on from, and its folder."""
    child = Child(name="shared", changes={}, until=settings.stages[last].kind)
    return child, str(study.folder / child.name)


def run_children(
    study: Study,
    children: Sequence[Child],
    *,
    done: Callable[[Child, float | None], None] = lambda child, seconds: None,
) -> None:
    """Makes the runs one after the other, and goes on with one that was interrupted; those that are made are left.

    `done` is called after each with the seconds that it took now, None for one that was made before.

    Raises:
      Preempted: A signal came; the run under way has saved its state.
      ChildFailed: A run failed, with its exit code.
    """
    study.folder.mkdir(parents=True, exist_ok=True)
    for number, child in enumerate(children, start=1):
        seconds = None
        if not study.is_done(child):
            log = study.folder / f"{child.name}.log"
            print(f"{number} of {len(children)}: {child.name}, which tells its progress in {log}", flush=True)
            began = time.monotonic()
            _make(study, child, log)
            seconds = time.monotonic() - began
        done(child, seconds)


def _make(study: Study, child: Child, log: Path) -> None:
    """Runs the command of a child to its end."""
    status, stopped = _run([sys.executable, *study.command(child)[1:]], log)
    if stopped is not None and status != 0:
        raise Preempted(f"stopped by {stopped} during {child.name}: the same command goes on from there")
    if status != 0:
        # The runtime and the kernel's memory killer send signals: the same command continues.
        code = status if status > 0 else PeerLost.exit_code
        raise ChildFailed(f"the run {child.name} ended with code {status}: {_last_line(log)} (all of it: {log})", code)


def _run(words: Sequence[str], log: Path) -> tuple[int, str | None]:
    """Returns (how a command ended, the name of the signal that was passed on to it, if any)."""
    stopped: list[signal.Signals] = []
    running: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        stopped.append(signal.Signals(number))
        for process in running:
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with log.open("ab") as said:
            # In a group of its own: Ctrl-C comes from here alone, once.
            environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
            process = subprocess.Popen(words, stdout=said, stderr=said, process_group=0, env=environment)
        running.append(process)
        for number in tuple(stopped):  # came before there was a process to pass it on to
            process.send_signal(number)
        return process.wait(), stopped[0].name if stopped else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "it said nothing")
