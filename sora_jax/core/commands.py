"""How a command begins and ends: flags that are its own, one line and an exit code for what goes wrong.

The flags of a command are noted where its module is loaded and become flags of absl when it is run, so that modules of
several commands can be imported side by side, and each calls its own what the others do.
"""

import logging as standard_logging
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from absl import app, flags, logging

from sora_jax.core.config_files import define_config, given_config, settle_none
from sora_jax.core.errors import StorageError, UserError, leave_if_busy, report
from sora_jax.core.paths import check_writable, expanded
from sora_jax.core.platforms import leave_out_tpu

# The flags that are defined here belong to the command that runs, in its --help too.
flags.disclaim_key_flags()
_PACKAGE = str(Path(__file__).parents[1])

T = TypeVar("T")
# With None for a flag that need not be given.
Text = TypeVar("Text", str, None)
Whole = TypeVar("Whole", int, None)
Number = TypeVar("Number", float, None)
Switch = TypeVar("Switch", bool, None)


class Flag(Generic[T]):
    """What the command line says under a name, once `run_command` has read it."""

    def __init__(self, name: str):
        self.name = name

    @property
    def value(self) -> T:
        """What was given, or else the default."""
        value: Any = flags.FLAGS[self.name].value
        return value

    @property
    def was_given(self) -> bool:
        """Whether the command line says it."""
        return bool(flags.FLAGS[self.name].present)


class ConfigFlag(Flag[Any]):
    """The config that the command line says, once `run_command` has read it."""

    @property
    def file(self) -> str:
        """Where it was read, as another command is told it."""
        return given_config(self.name)[0]

    @property
    def given(self) -> dict[str, Any]:
        """The keys that the command line changes, by full name, with their values."""
        return given_config(self.name)[1]


class Flags:
    """The flags of one command. Each method notes one and returns it; `help_` is for --help."""

    def __init__(self):
        self._definitions: list[Callable[[], Any]] = []
        self.renamed: dict[str, str] = {}

    def string(self, name: str, default: Text, help_: str) -> Flag[str | Text]:
        """Returns a flag of a text."""
        return self._noted(name, lambda: flags.DEFINE_string(name, default, help_))

    def integer(self, name: str, default: Whole, help_: str, *, least: int | None = None) -> Flag[int | Whole]:
        """Returns a flag of a whole number, `least` or more."""
        return self._noted(name, lambda: flags.DEFINE_integer(name, default, help_, lower_bound=least))

    def number(self, name: str, default: Number, help_: str, *, least: float | None = None) -> Flag[float | Number]:
        """Returns a flag of a number, `least` or more."""
        return self._noted(name, lambda: flags.DEFINE_float(name, default, help_, lower_bound=least))

    def numbers(self, name: str, help_: str) -> Flag[list[float]]:
        """Returns a flag of numbers that may be given several times."""
        return self._noted(name, lambda: flags.DEFINE_multi_float(name, [], help_))

    def switch(self, name: str, default: Switch, help_: str) -> Flag[bool | Switch]:
        """Returns a flag that is --name or --noname."""
        return self._noted(name, lambda: flags.DEFINE_bool(name, default, help_))

    def bare_or_text(self, name: str, bare: str, help_: str) -> Flag[str | None]:
        """Returns a flag that is --name, which means `bare`, or --name=TEXT; None where it is not given."""
        return self._noted(name, lambda: flags.DEFINE_flag(_BareOrText(name, bare, help_)))

    def choice(self, name: str, default: str | None, options: Sequence[str], help_: str) -> Flag[Any]:
        """Returns a flag that is one of the options."""
        return self._noted(name, lambda: flags.DEFINE_enum(name, default, list(options), help_))

    def strings(self, name: str, help_: str) -> Flag[list[str]]:
        """Returns a flag of texts that may be given several times."""
        return self._noted(name, lambda: flags.DEFINE_multi_string(name, [], help_))

    def integers(self, name: str, default: Sequence[int], help_: str, *, least: int | None = None) -> Flag[list[int]]:
        """Returns a flag of whole numbers that may be given several times."""
        return self._noted(name, lambda: flags.DEFINE_multi_integer(name, list(default), help_, lower_bound=least))

    def words(self, name: str, help_: str) -> Flag[list[str]]:
        """Returns a flag of words that commas part."""
        return self._noted(name, lambda: flags.DEFINE_list(name, [], help_))

    def path(self, name: str, default: Text, help_: str) -> Flag[str | Text]:
        """Returns a flag of a path, in which ~ is a home."""
        how = flags.ArgumentSerializer()
        return self._noted(name, lambda: flags.DEFINE(_PathParser(), name, default, help_, serializer=how))

    def paths(self, name: str, help_: str) -> Flag[list[str]]:
        """Returns a flag of paths that may be given several times."""
        how = flags.ArgumentSerializer()
        return self._noted(name, lambda: flags.DEFINE_multi(_PathParser(), how, name, [], help_))

    def figures(self, help_: str = "Where to write the figures.") -> Flag[str | None]:
        """Returns the flag --json of every command that measures: a file, which must be one that can be written."""
        how = flags.ArgumentSerializer()
        return self._noted("json", lambda: flags.DEFINE(_OutputParser(), "json", None, help_, serializer=how))

    def config(self, name: str, default: str, help_: str) -> ConfigFlag:
        """Returns a flag of a config file, whose keys are flags as well; see `core.config_files`."""
        self._definitions.append(lambda: define_config(name, default, help_))
        return ConfigFlag(name)

    def workdir(self, help_: str = "The folder of the run.") -> Flag[str]:
        """Returns the flag of every command that writes or reads a run."""
        return self.path("workdir", "runs/base", help_)

    def checkpoint(self, help_: str) -> Flag[str]:
        """Returns the flag of every command that reads one checkpoint; its text is a step, or latest."""
        return self.string("checkpoint", "latest", help_)

    def rename(self, old: str, new: str) -> None:
        """Notes that a flag had another name: who gives that one is told."""
        self.renamed[old] = new

    def define(self) -> None:
        """Makes all that were noted flags of absl."""
        for define in self._definitions:
            define()

    def _noted(self, name: str, define: Callable[[], Any]) -> Flag[Any]:
        self._definitions.append(define)
        return Flag(name)


class _BareOrText(flags.Flag[str]):
    """A flag whose text may be left out."""

    def __init__(self, name: str, bare: str, help_: str):
        super().__init__(flags.ArgumentParser[str](), flags.ArgumentSerializer(), name, None, help_, boolean=True)
        self._bare = bare

    def parse(self, argument: str | None) -> None:
        """Takes what stands behind the name: "true" where that is nothing, "false" of --noname."""
        self.value = {"true": self._bare, "false": None}.get(argument or "", argument)
        self.present += 1


class _PathParser(flags.ArgumentParser[str]):
    """Paths on the command line."""

    def parse(self, argument: str) -> str:
        """Returns the path, raises UserError as `expanded`."""
        return expanded(argument)

    def flag_type(self) -> str:
        """Returns what the flag takes, as in helps of absl."""
        return "path"


class _OutputParser(_PathParser):
    """Paths of files that are written after long work."""

    def parse(self, argument: str) -> str:
        """Returns the path; raises UserError as `expanded`, and StorageError before the work."""
        path = super().parse(argument)
        check_writable(path)
        return path


def run_command(main: Callable[[Sequence[str]], None], own: Flags, *, takes_words: bool = False) -> NoReturn:
    """Runs a command with its own flags; a `CommandError` or a bad flag becomes one line on stderr and an exit code.

    What else goes wrong is a fault of ours: a traceback and code 70. Words after the flags are a mistake, unless `main`
    `takes_words`; then the first of them ends the flags.
    """

    def guarded(argv: Sequence[str]) -> int:
        _quiet_libraries()
        try:
            if len(argv) > 1 and not takes_words:
                raise UserError(f"unknown argument {argv[1]!r}: flags start with --, see --help")
            leave_out_tpu()
            main(argv)
        except Exception as error:
            code = report(error)
            leave_if_busy(code)
            return code
        except KeyboardInterrupt:
            leave_if_busy(128 + signal.SIGINT)
            raise
        return 0

    try:
        own.define()  # which reads the config that is the default, and keys on the command line with it
    except Exception as error:
        _end_with(error)
    flags.FLAGS.set_gnu_getopt(not takes_words)
    app.run(guarded, flags_parser=lambda argv: _parse_flags(argv, own.renamed))
    raise AssertionError("app.run always exits")


def _quiet_libraries() -> None:
    """Keeps what libraries tell about their work out of the log, unless they warn; our own lines stay."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.INFO)

    def wanted(record: standard_logging.LogRecord) -> bool:
        return record.levelno >= standard_logging.WARNING or record.pathname.startswith(_PACKAGE)

    logging.get_absl_handler().addFilter(wanted)


def _parse_flags(argv: Sequence[str], renamed: dict[str, str]) -> list[str]:
    """Like absl's own parser, but a mistake, also one inside a config file, is a sentence and exit code 2."""
    try:
        for name in (re.split("[=.]", one.lstrip("-"))[0] for one in argv[1:] if one.startswith("-")):
            if name in renamed:
                raise UserError(f"--{name} is now --{renamed[name]}: pass that")
        rest = flags.FLAGS(list(argv))
        # A file that cannot be read says so only when it is looked into.
        if "config" in flags.FLAGS and "run" in (flags.FLAGS["config"].value or ()):
            settle_none("config")
        return rest
    except SystemExit:  # after --help, which absl ends as if it had failed
        sys.exit(0)
    except Exception as error:
        _end_with(error)


def _end_with(error: Exception) -> NoReturn:
    """Ends the command with a mistake on its command line, or in its config, in a sentence."""
    if isinstance(error, StorageError):
        sys.exit(report(error))
    print(f"{UserError.__name__}: {_sentence(error)}; see --help", file=sys.stderr)
    sys.exit(UserError.exit_code)


def _sentence(error: Exception) -> str:
    """Returns the first sentence and the last line of a message, which holds the suggestion if there is one."""
    text = str(error)
    while isinstance(error, AttributeError | KeyError) and text[:1] in ("'", '"') and text[:1] == text[-1]:
        # ml_collections quotes the messages of the errors that it passes on.
        text = text[1:-1].replace("\\n", "\n").replace("\\'", "'")
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    first = lines[0].split(". ")[0]
    name = first.strip("'\"")
    return "; ".join([f"the config has no key {name}" if name.isidentifier() else first, *lines[1:][-1:]])
