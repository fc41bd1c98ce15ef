"""What a run that fails leaves in its folder: failure.json, or failure-N.json of process N.

    {"code": 65, "kind": "NumericsError", "cause": "...", "stage": "videos", "step": 812, "process": 0,
     "time": "2026-01-31T12:00:00Z", "what_to_do": "...", "versions": {"jax": "0.10.2", ...}}

With code 70, a fault of this program, `traceback` has its lines. Nothing of the environment is in it. The step is that
which was under way; null where nothing is counted.
"""

import contextlib
import json
import os
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import logging

from sora_jax.core.errors import PeerLost, exit_code, what_to_do
from sora_jax.core.versions import versions

# Stands in what is prepared for when it will be written: as long as what `_now` returns.
_LATER = "0000-00-00T00:00:00Z"


class _Keeper:
    """Where the run of this process is, and where its record goes: nowhere as long as it holds no folder."""

    def __init__(self) -> None:
        self.stage: str | None = None
        self.step: int | None = None
        self.process = 0
        self.path: Path | None = None
        self.versions: dict[str, str] = {}
        self.prepared = b""
        self.writing = threading.Lock()

    def facts(self, *, code: int, kind: str, cause: str, lines: list[str] | None, at: str) -> dict[str, Any]:
        """Returns the record."""
        return {
            "code": code,
            "kind": kind,
            "cause": cause,
            **({} if lines is None else {"traceback": lines}),
            "stage": self.stage,
            "step": self.step,
            "process": self.process,
            "time": at,
            "what_to_do": what_to_do(code),
            "versions": self.versions,
        }


_keeper = _Keeper()


def at(*, stage: str | None = None, step: int | None = None) -> None:
    """Notes where the run is: a `stage`, which begins without a step, or a `step` of it. Costs microseconds."""
    if stage is not None:
        _keeper.stage, _keeper.step = stage, step
    else:
        _keeper.step = step
    if _keeper.path is not None:
        _prepare()


def stage() -> str:
    """Returns the stage that was noted last, in words that can follow "during"."""
    return _keeper.stage or "the start"


@contextlib.contextmanager
def recorded(folder: Path, *, process: int, processes: int) -> Iterator[None]:
    """Writes a record into `folder` when what is within fails, and removes an older one when it does not.

    The run must hold the folder. Of `processes` each has a file of its own; process 0 removes those of processes that
    there are no longer.
    """
    name = "failure.json" if process == 0 else f"failure-{process}.json"
    _keeper.process, _keeper.path = process, folder / name
    _keeper.stage, _keeper.step = None, None
    _keeper.versions = versions()
    _prepare()
    try:
        yield
        _keeper.path.unlink(missing_ok=True)
        if process == 0:
            for path in folder.glob("failure-*.json"):
                number = path.stem.removeprefix("failure-")
                if number.isdecimal() and int(number) >= processes:
                    path.unlink(missing_ok=True)
    except BaseException as error:
        record(error)
        raise
    finally:
        _keeper.path = None


def record(error: BaseException) -> None:
    """Writes why the run ends, as a whole or not at all; does nothing where no folder is held."""
    path, code = _keeper.path, exit_code(error)
    if path is None:
        return
    words = " ".join(str(error).split())
    ours = code == exit_code(RuntimeError())
    cause = f"{type(error).__name__}: {words}" if ours else words or type(error).__name__
    lines = "".join(traceback.format_exception(error)).splitlines() if ours else None
    facts = _keeper.facts(code=code, kind=type(error).__name__, cause=cause, lines=lines, at=_now())
    with _keeper.writing:
        _write(path, json.dumps(facts, indent=2).encode())


def record_abort() -> None:
    """Writes what was prepared for an end without an exception: it may run in the handler of a signal."""
    path = _keeper.path
    if path is not None:
        _write(path, _keeper.prepared.replace(_LATER.encode(), _now().encode()))


def _prepare() -> None:
    cause = f"process {_keeper.process} was aborted by its runtime, most often because another process was lost"
    facts = _keeper.facts(code=PeerLost.exit_code, kind=PeerLost.__name__, cause=cause, lines=None, at=_LATER)
    _keeper.prepared = json.dumps(facts, indent=2).encode()


def _write(path: Path, content: bytes) -> None:
    """Writes a file by calls of the system alone; that the disk is full must not hide why the run ends."""
    temporary = f"{path}.tmp"
    try:
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            written = os.write(file, content)
        finally:
            os.close(file)
        if written == len(content):
            os.replace(temporary, path)
        else:
            os.unlink(temporary)
    except OSError as error:
        logging.warning("%s cannot be written: %s", path, error.strerror)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
