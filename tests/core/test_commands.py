"""How commands begin and end: flags of their own; one line and a code for what the user can mend."""

import functools
import subprocess
import sys

import pytest
from absl import flags

from sora_jax.core.commands import Flags
from sora_jax.core.errors import StorageError

SCRIPT = """
import logging as standard
import threading
import time
from absl import logging
from sora_jax.core import commands, errors

FLAGS = commands.Flags()
KIND = FLAGS.string("kind", None, "Which error.")
COUNT = FLAGS.integer("count", 0, "A number.")
FLAGS.rename("number", "count")
FLAGS.figures()

def main(_):
    if KIND.value == "log":
        logging.info("told by a library")
        logging.warning("warned by a library")
        return
    if COUNT.value == 99:
        threading.Thread(target=time.sleep, args=[300], name=errors.BUSY).start()
    if KIND.value == "interrupt":
        raise KeyboardInterrupt
    if KIND.value:
        raise getattr(errors, KIND.value, RuntimeError)("it broke:\\n  in two lines")
    print("done", COUNT.value)

commands.run_command(main, FLAGS)
"""


def run(*arguments):
    command = [sys.executable, "-c", SCRIPT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_done_is_zero():
    done = run("--count=3")
    assert (done.returncode, done.stdout) == (0, "done 3\n")


@pytest.mark.parametrize(
    ("kind", "code"),
    [("UserError", 2), ("NumericsError", 65), ("DataError", 66), ("StorageError", 74), ("Preempted", 85)],
)
def test_what_has_a_code_ends_in_one_line(kind, code):
    done = run(f"--kind={kind}")
    assert (done.returncode, done.stderr, done.stdout) == (code, f"{kind}: it broke: in two lines\n", "")


@pytest.mark.parametrize(
    ("kind", "code", "said"), [("Preempted", 85, "Preempted: it broke: in two lines\n"), ("interrupt", 130, "")]
)
def test_a_command_that_still_compiles_ends_at_once(kind, code, said):
    done = run(f"--kind={kind}", "--count=99")
    assert (done.returncode, done.stderr, done.stdout) == (code, said, "")


def test_what_has_none_is_ours_and_shows_where():
    done = run("--kind=nothing")
    assert done.returncode == 70
    assert "Traceback" in done.stderr
    assert "RuntimeError" in done.stderr


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--cuont=3", "Unknown command line flag 'cuont'"),
        ("--count=three", "flag --count=three"),
        ("word", "unknown argument 'word'"),
        ("--number=3", "--number is now --count: pass that"),
        ("--number.of=3", "--number is now --count: pass that"),
    ],
)
def test_a_bad_flag_is_the_users(argument, said):
    done = run(argument)
    assert done.returncode == 2
    assert done.stderr.startswith("UserError: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_figures_that_cannot_be_written_are_told_before_the_work(tmp_path):
    done = run(f"--json={tmp_path}")
    assert (done.returncode, done.stdout) == (74, "")
    assert done.stderr == f"StorageError: cannot write {tmp_path}: Is a directory\n"


def test_help_is_no_failure():
    done = run("--help")
    assert done.returncode == 0
    assert "--kind: Which error." in done.stdout


def test_libraries_are_heard_when_they_warn():
    done = run("--kind=log")
    assert "warned by a library" in done.stderr
    assert "told by a library" not in done.stderr


@pytest.fixture
def parse(monkeypatch):
    """Returns a function that defines the flags of a command, and no others, and reads them from a command line."""

    def parsed(own, *arguments):
        values = flags.FlagValues()
        monkeypatch.setattr(flags, "FLAGS", values)
        for name in ("DEFINE", "DEFINE_multi", "DEFINE_string", "DEFINE_integer", "DEFINE_flag"):
            define = getattr(flags, name)
            monkeypatch.setattr(flags, name, functools.partial(define, flag_values=values))
        own.define()
        values(["x", *arguments])

    return parsed


def test_paths_are_expanded(parse, monkeypatch):
    monkeypatch.setenv("HOME", "/homes/me")
    own = Flags()
    one, none, several = own.workdir(), own.path("none", None, ""), own.paths("several", "")
    parse(own, "--workdir=~/a", "--several=~/b", "--several=c")
    assert (one.value, none.value, several.value) == ("/homes/me/a", None, ["/homes/me/b", "c"])
    with pytest.raises(flags.IllegalFlagValueError, match="names no home"):
        parse(own, "--workdir=~nobody-here/a")


def test_figures_go_to_where_a_file_can_be_written(parse, tmp_path):
    own = Flags()
    flag = own.figures()
    parse(own)
    assert flag.value is None
    parse(own, f"--json={tmp_path}/new/a.json")
    assert (flag.value, list(tmp_path.iterdir())) == (f"{tmp_path}/new/a.json", [])
    with pytest.raises(StorageError, match=f"cannot write {tmp_path}: Is a directory"):
        parse(own, f"--json={tmp_path}")


@pytest.mark.parametrize(
    ("given", "value"),
    [([], None), (["--own"], "me"), (["--own=you"], "you"), (["--noown"], None), (["--own=no"], "no")],
)
def test_a_text_may_be_left_out(parse, given, value):
    own = Flags()
    flag = own.bare_or_text("own", "me", "")
    parse(own, *given)
    assert flag.value == value


def test_commands_have_flags_of_the_same_names(parse):
    """Both are loaded; the one that is run has its own."""
    first, second = Flags(), Flags()
    count, word = first.integer("count", 1, ""), second.string("count", "one", "")
    parse(second)
    assert word.value == "one"
    parse(first, "--count=2")
    assert count.value == 2
