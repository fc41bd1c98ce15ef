"""Rows of captions as they are written: appended batch by batch, so that what is on the disk is whole at any moment.

  captions.jsonl         {"file": "dogs/a.mp4", "captions": [...], "weights": [...], "fields": {...}, "by": {...}}
  captions.failed.jsonl  {"file": "dogs/b.mp4", "reason": "...", "by": {...}}

The first is a table as `data.sources.caption_tables` reads it. `by` is what wrote the captions: what it has written, or
failed at, is not written again.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

from sora_jax.core.errors import StorageError, UserError
from sora_jax.core.files import write_atomically
from sora_jax.data.sources.caption_tables import parse_json

# In `by`: a digest of how captions are chosen and weighted. In one file it is one for all of the same writer.
CHOICE = "choice"

# As each line begins.
_BEGINNING = b'{"file": "'

CaptionRow = dict[str, Any]


class CaptionRows:
    """The file of captions at `output`, and that of failures beside it; holds a lock between enter and exit.

    A file that was made and got no row is removed on exit.

    What writes them may be known later than that they are written: `begin` says who it is, before all else.

    Raises UserError where `output` is no .jsonl, and on enter where another process is writing it; StorageError where
    the disk refuses.

    Attributes:
      done: Names of the clips that `by` has written captions of.
      failed: Names of the clips that `by` failed at, with the reason.
    """

    def __init__(self, output: Path):
        if output.suffix != ".jsonl":
            raise UserError(f"--output={output} must end in .jsonl, not {output.suffix!r}")
        self.path, self.failures = output, output.with_suffix(".failed.jsonl")
        self.done: set[str] = set()
        self.failed: dict[str, str] = {}
        self._files = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as opened, _storage(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._made = not self.path.exists()
            self._rows = opened.enter_context(self.path.open("a+b"))
            _lock(self._rows, self.path)
            self._files = opened.pop_all()
        return self

    def begin(self, by: Mapping[str, str]) -> None:
        """Reads what is there, and notes `by` with each row from now on.

        Raises UserError where the file has lines that are not of its kind, or captions of the same writer that were
        chosen in another way.
        """
        self._by = dict(by)
        with _storage(self.path):
            self._failures = self._files.enter_context(self.failures.open("a+b"))
            for row in _whole_rows(self._rows, self.path):
                if self._is_own(row):
                    self.done.add(str(row["file"]))
            for row in _whole_rows(self._failures, self.failures):
                if row.get("by") == self._by and row.get("file") not in self.done:
                    self.failed[str(row["file"])] = str(row.get("reason"))
            _sync_folder(self.path.parent)

    def __exit__(self, *_: object) -> None:
        with self._files, _storage(self.path):
            if self._made and not os.fstat(self._rows.fileno()).st_size:
                self.path.unlink(missing_ok=True)

    def forget_failed(self) -> None:
        """Takes what `by` failed at off the list, so that it is tried again."""
        with _storage(self.failures):
            kept = [row for row in _whole_rows(self._failures, self.failures) if row.get("by") != self._by]
            write_atomically(self.failures, b"".join(map(_line, kept)).decode())
            self._failures.close()
            self._failures = self._files.enter_context(self.failures.open("a+b"))
        self.failed = {}

    def append(self, rows: Sequence[CaptionRow], failures: Mapping[str, str]) -> None:
        """Writes and syncs rows, which lack `by` alone, and why other clips have none."""
        with _storage(self.path):
            _append(self._rows, [{**row, "by": self._by} for row in rows])
            _append(self._failures, [{"file": name, "reason": why, "by": self._by} for name, why in failures.items()])
        self.done.update(str(row["file"]) for row in rows)
        self.failed.update(failures)

    def _is_own(self, row: CaptionRow) -> bool:
        """Returns whether `by` wrote a row; raises UserError for one beside which it must not write."""
        by = row.get("by")
        if not isinstance(by, dict) or "file" not in row:
            raise UserError(f"{self.path} has lines that recaption did not write: give another --output")
        if by == self._by:
            return True
        if {**by, CHOICE: ""} == {**self._by, CHOICE: ""}:
            raise UserError(
                f"{self.path} was begun with other keys of config.recaption: give the same ones, or another --output"
            )
        return False


def _whole_rows(file: BinaryIO, path: Path) -> Iterator[CaptionRow]:
    """Yields what the lines say, and cuts half a line off the end, which is all that a kill can leave.

    What begins as no row of ours does, or lacks nothing but the end of the line, is no half of one.
    """
    file.seek(0)
    end = 0
    for number, line in enumerate(file, start=1):
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        # A crash of the machine may leave zeros for what was not synced.
        began = _BEGINNING.startswith(line[: len(_BEGINNING)].rstrip(b"\0"))
        if row is None and began and not line.endswith(b"\n"):
            file.truncate(end)
            return
        end += len(line)
        if not isinstance(row, dict):
            raise UserError(
                f"line {number} of {path} is no row of captions: mend or remove it, or give another --output"
            )
        yield row
        if not line.endswith(b"\n"):
            file.write(b"\n")


def _append(file: BinaryIO, rows: Sequence[CaptionRow]) -> None:
    if rows:
        file.write(b"".join(map(_line, rows)))
        file.flush()
        os.fsync(file.fileno())


def _line(row: CaptionRow) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # a name of bytes that are no text
        return json.dumps(row).encode() + b"\n"


def _lock(file: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.fstat(file.fileno()).st_nlink:
            raise BlockingIOError("it was removed by the process that made it")
    except BlockingIOError as error:
        raise UserError(f"another process is writing {path}: wait for it, or give another --output") from error


def _sync_folder(folder: Path) -> None:
    """Makes sure that names of new files outlast a crash of the machine."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _storage(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
