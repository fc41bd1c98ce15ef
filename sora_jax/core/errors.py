"""The ways a command may end, as exceptions with exit codes, and what is to be done about each.

The codes are a contract with launchers: 0 done, 2 configuration, 3 does not fit (plan), 65 numerics, 66 data,
70 internal, 74 storage, 75 peer lost, 85 preempted and saved.
"""

import logging as standard_logging
import os
import signal
import sys
import threading
import traceback

from sora_jax.core.printable import printable

# Name of a thread that Python cannot end, as it compiles a program.
BUSY = "busy"


class CommandError(Exception):
    """Ends the command with one sentence for the user and `exit_code`; never shown as a traceback."""

    exit_code = 70
    what_to_do = "Report this fault of the program with its traceback; the same command goes on from the checkpoint."


class UserError(CommandError, ValueError):
    """A mistake in the config, a flag or a path. The message states the numbers and the remedy."""

    exit_code = 2
    what_to_do = "Correct what the cause names, and give the command again."


class DoesNotFit(CommandError):
    """What was planned needs more memory than the machine has."""

    exit_code = 3
    what_to_do = "Plan a smaller model or batch, or a larger machine, as the printed advice says."


class NumericsError(CommandError):
    """Training produced non-finite values too often to go on."""

    exit_code = 65
    what_to_do = "Look at the batches and the learning rate around this step before you go on from the last checkpoint."


class DataError(CommandError):
    """The data is bad beyond the configured limit."""

    exit_code = 66
    what_to_do = "Repair or remove what the cause names, or raise data.max_bad_share, and give the same command."


class StorageError(CommandError):
    """A checkpoint or shard cannot be written, or none that was written can be trusted."""

    exit_code = 74
    what_to_do = "Free or repair the disk, or put back a copy of what is damaged, and give the same command."


class PeerLost(CommandError):
    """Another process of the run did not come, or has gone; the same command, given to all, continues it."""

    exit_code = 75
    what_to_do = "Give the same command to all processes again: the run goes on from the last checkpoint."


class Preempted(CommandError):
    """The run was asked to stop and saved its state; the same command continues it."""

    exit_code = 85
    what_to_do = "Give the same command again: the run goes on from where it was saved."


_KINDS = (CommandError, UserError, DoesNotFit, NumericsError, DataError, StorageError, PeerLost, Preempted)


def exit_code(error: BaseException) -> int:
    """Returns the code of a command that ends with an error; 130, as a shell has it, of an interrupt."""
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    return error.exit_code if isinstance(error, CommandError) else CommandError.exit_code


def what_to_do(code: int) -> str:
    """Returns one sentence about how to go on after a code that is not 0."""
    return next((kind.what_to_do for kind in _KINDS if kind.exit_code == code), Preempted.what_to_do)


def report(error: Exception) -> int:
    """Returns the exit code of an error after telling it: in one line where it is for the user, else in full."""
    if isinstance(error, CommandError):
        print(f"{type(error).__name__}: {printable(' '.join(str(error).split()))}", file=sys.stderr)
    else:
        traceback.print_exception(error)
    return exit_code(error)


def leave_if_busy(code: int) -> None:
    """Ends the process with a code where a thread called `BUSY` lives, in which Python cannot end by itself."""
    if any(thread.name == BUSY for thread in threading.enumerate()):
        standard_logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
