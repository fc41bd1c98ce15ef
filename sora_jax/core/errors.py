"""The ways a command may end, as exceptions with exit codes.

The codes are a contract with launchers: 0 done, 2 configuration, 65 numerics, 66 data, 70 internal,
74 storage, 75 peer lost, 85 preempted and saved.
"""

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags


class CommandError(Exception):
    """Ends the command with one sentence for the user and `exit_code`; never shown as a traceback."""

    exit_code = 70


class UserError(CommandError, ValueError):
    """A mistake in the config, a flag or a path. The message states the numbers and the remedy."""

    exit_code = 2


class NumericsError(CommandError):
    """Training produced non-finite values too often to go on."""

    exit_code = 65


class DataError(CommandError):
    """The data is bad beyond the configured limit."""

    exit_code = 66


class StorageError(CommandError):
    """A checkpoint or shard cannot be written, or none that was written can be trusted."""

    exit_code = 74


class Preempted(CommandError):
    """The run was asked to stop and saved its state; the same command continues it."""

    exit_code = 85


def run_command(main: Callable[[Sequence[str]], None]) -> NoReturn:
    """Runs an absl command; a `CommandError` or a bad flag becomes one line on stderr and an exit code."""

    def guarded(argv: Sequence[str]) -> int:
        try:
            if len(argv) > 1:
                raise UserError(f"unknown argument {argv[1]!r}: flags start with --, see --help")
            main(argv)
        except CommandError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return error.exit_code
        return 0

    app.run(guarded, flags_parser=_parse_flags)
    raise AssertionError("app.run always exits")


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """Like absl's own parser, with config overrides that fail ending in a sentence and exit code 2."""
    try:
        return flags.FLAGS(list(argv))
    except (flags.Error, AttributeError, TypeError, KeyError, FileNotFoundError, ImportError) as error:
        message = " ".join(str(error).split())
        print(f"UserError: {message}; see --help", file=sys.stderr)
        sys.exit(UserError.exit_code)
