"""Runs a command, and restarts it while its exit code allows a restart and it makes progress.

python -m sora_jax.supervise python -m sora_jax.main --config=configs/base.py --workdir=runs/base
python -m sora_jax.supervise --patience=3 launch/local.sh 2 configs/base.py --workdir=runs/rehearsal

After 75 (another process was lost), after a signal that the runtime or the kernel's memory killer sends (SIGABRT,
SIGSEGV, SIGBUS, SIGKILL), which counts as 75, and after 85 (stopped and saved) the command is started again, at first
after 5 s, then after longer and longer pauses, up to 5 min, until it makes progress. SIGTERM and Ctrl-C are passed on
to it, and then it is not started again. It ends with the code of the command; each decision is a line on stderr. Give
the command's workdir as --workdir=DIR, so that its progress can be seen; that of recaption is its table's.
"""

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from sora_jax.core.commands import Flags, run_command
from sora_jax.core.errors import PeerLost, Preempted, UserError
from sora_jax.core.paths import expanded

_FLAGS = Flags()
_RESTARTS = _FLAGS.integer("restarts", None, "Most restarts in all; default: as many as needed.", least=0)
_PATIENCE = _FLAGS.integer(
    "patience", 5, "Restarts in a row without a newer checkpoint, shard or row of captions; then it gives up.", least=0
)

# Between an end and the next start, while there is no progress: seconds, doubled each time.
_FIRST_PAUSE, _LONGEST_PAUSE = 5.0, 300.0
_OF_THE_RUNTIME = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGKILL)
# Nothing had begun that these could have lost.
_OF_A_STOP = (signal.SIGTERM, signal.SIGINT)


class Supervisor:
    """Starts a command again and again; `restarts` and `patience` as the flags say, None is without limit."""

    def __init__(self, command: Sequence[str], *, restarts: int | None, patience: int):
        self._command = list(command)
        self._workdir, self._table = workdir_of(command), table_of(command)
        self._restarts, self._patience = restarts, patience
        self._stop: int | None = None
        self._stopped = threading.Event()
        self._child: subprocess.Popen | None = None

    def run(self) -> int:
        """Returns the code of the last start, after passing on every signal that came meanwhile."""
        for number in _OF_A_STOP:
            signal.signal(number, self._pass_on)
        restarts = in_vain = 0
        reached = progress(self._workdir, self._table)
        while True:
            ended, code = self._start()
            before, reached = reached, progress(self._workdir, self._table)
            in_vain = 0 if got_on(before, reached) else in_vain
            if self._stop is not None:
                return _say(f"{ended} after {signal.Signals(self._stop).name}: not started again", code)
            if code not in (PeerLost.exit_code, Preempted.exit_code):
                return _say(f"{ended}: not started again", code)
            if self._restarts is not None and restarts >= self._restarts:
                return _say(f"{ended} after {restarts} restarts, the most that --restarts allows: given up", code)
            if in_vain >= self._patience:
                return _say(f"{ended}, and {in_vain} restarts in a row brought nothing new: given up", code)
            pause = min(_FIRST_PAUSE * 2**in_vain, _LONGEST_PAUSE)
            restarts, in_vain = restarts + 1, in_vain + 1
            _say(f"{ended}: restart {restarts} in {pause:g} s", code)
            if self._stopped.wait(pause):
                return _say("stopped before the next start", Preempted.exit_code)

    def _start(self) -> tuple[str, int]:
        """Returns how the command ended, in words and as a code."""
        try:
            # In a group of its own: Ctrl-C comes from here alone, once.
            self._child = subprocess.Popen(self._command, process_group=0)
        except OSError as error:
            raise UserError(f"{self._command[0]} cannot be started: {error.strerror}") from error
        if self._stop is not None:  # it came just before
            self._child.send_signal(self._stop)
        return meaning(self._child.wait())

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        self._stop = number
        self._stopped.set()
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)


def meaning(status: int) -> tuple[str, int]:
    """Returns how a command ended, in words, and the code of errors.py that this is.

    `status` is its code, or the negative number of the signal that killed it; a shell adds 128 to that number instead.
    """
    number = -status if status < 0 else status - 128
    try:
        killer = signal.Signals(number)
    except ValueError:
        return f"ended with code {status}", status
    hint = " (out of memory?)" if killer == signal.SIGKILL else ""
    code = 128 + number
    if killer in _OF_THE_RUNTIME:
        code = PeerLost.exit_code
    elif killer in _OF_A_STOP:
        code = Preempted.exit_code
    return f"killed by {killer.name}{hint}, which counts as {code}", code


def workdir_of(command: Sequence[str]) -> Path | None:
    """Returns the last --workdir among the words of a command, as the command reads it; None if there is none."""
    return _path_of(command, "workdir")


def table_of(command: Sequence[str]) -> Path | None:
    """Returns the table that a command of recaption writes; None of another command."""
    if "sora_jax.recaption" not in command:
        return None
    return _path_of(command, "output") or Path("captions.jsonl")  # the default there


def _path_of(command: Sequence[str], flag: str) -> Path | None:
    found = re.findall(rf"^--?{flag}[=\n](.+)$", "\n".join(command), re.MULTILINE)
    return Path(expanded(found[-1])) if found else None


def progress(workdir: Path | None, table: Path | None) -> dict[str, int]:
    """Returns what a command has on the disk, also of the runs of a study.

    These are the newest committed step of each stage, how many shards there are, and rows of captions and of failures.
    """
    reached: dict[str, int] = {}
    if table is not None:
        reached["rows"] = sum(map(_lines, (table, table.with_suffix(".failed.jsonl"))))
    if workdir is not None:
        runs = (workdir, *workdir.glob("*/"))
        reached["shards"] = sum(1 for run in runs for _ in run.glob("prepared/**/*.arrayrecord"))
        for manifest in (one for run in runs for one in run.glob("checkpoints/*/*/manifest.json")):
            step, stage = manifest.parent.name, str(manifest.parents[1].relative_to(workdir))
            if step.isdecimal():
                reached[stage] = max(reached.get(stage, 0), int(step))
    return reached


def _lines(path: Path) -> int:
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        return sum(1 for _ in file)


def got_on(before: dict[str, int], now: dict[str, int]) -> bool:
    """Whether anything is more than it was."""
    return any(value > before.get(name, 0) for name, value in now.items())


def _say(what: str, code: int) -> int:
    print(f"supervise: {what}", file=sys.stderr, flush=True)
    return code


def main(words: Sequence[str]) -> None:
    """Supervises the command that the words after the flags are."""
    if len(words) < 2:
        raise UserError("there is no command to run: give one after the flags, such as python -m sora_jax.main")
    sys.exit(Supervisor(words[1:], restarts=_RESTARTS.value, patience=_PATIENCE.value).run())


if __name__ == "__main__":
    run_command(main, _FLAGS, takes_words=True)
