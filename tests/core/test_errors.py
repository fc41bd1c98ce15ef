"""How commands end: one line and a code for what the user can mend, a traceback for what only we can."""

import subprocess
import sys

import pytest

SCRIPT = """
import logging as standard
from absl import flags, logging
from sora_jax.core import errors

KIND = flags.DEFINE_string("kind", None, "Which error.")
COUNT = flags.DEFINE_integer("count", 0, "A number.")

def main(_):
    if KIND.value == "log":
        logging.info("told by a library")
        logging.warning("warned by a library")
        return
    if KIND.value:
        raise getattr(errors, KIND.value, RuntimeError)("it broke:\\n  in two lines")
    print("done", COUNT.value)

errors.run_command(main)
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
    ],
)
def test_a_bad_flag_is_the_users(argument, said):
    done = run(argument)
    assert done.returncode == 2
    assert done.stderr.startswith("UserError: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_is_no_failure():
    done = run("--help")
    assert done.returncode == 0
    assert "--kind: Which error." in done.stdout


def test_libraries_are_heard_when_they_warn():
    done = run("--kind=log")
    assert "warned by a library" in done.stderr
    assert "told by a library" not in done.stderr
