"""Python that has imported the package's libraries: every command asked for runs in a fork of it, at once.

A command is a process of its own with a main module of its own, as one that a user starts is; all that it is spared
are the seconds of the imports. A line on stdin asks for one, with paths for what it says; its exit code is the answer.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import sys
from collections.abc import Sequence

# Not the commands themselves: those come anew in every fork.
LIBRARIES = (
    "sora_jax.generate.scheduler",
    "sora_jax.data.survey",
    "sora_jax.planning.plans",
    "sora_jax.experiment.run",
)
PATIENCE = 600  # seconds; then the command is killed


def next_command() -> Sequence[str]:
    """Returns the arguments of python, in each fork; the process that forks ends when nothing more is asked for."""
    for line in sys.stdin:
        arguments, *said = json.loads(line)
        child = os.fork()
        if child == 0:
            for number, path in enumerate((os.devnull, *said)):
                os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
            signal.alarm(PATIENCE)
            return arguments
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    sys.exit()


def run(arguments: Sequence[str]) -> None:
    """Runs `-m MODULE ...` or `SCRIPT ...` as the main module of this process."""
    is_module = arguments[0] == "-m"
    sys.argv = list(arguments[is_module:])
    sys.orig_argv = [sys.executable, *arguments]
    if is_module:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    gc.set_threshold(50_000, 20, 20)  # as in tests/conftest.py
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # or each fork would walk through, and so copy, all of it when it ends
    run(next_command())
