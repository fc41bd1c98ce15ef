"""Every command that the documentation shows is understood: its flags exist, and keys of configs take their values."""

import pytest

from tests.documented import arguments_of, commands


def test_a_line_of_a_shell_is_cut_into_arguments():
    line = "--a='b c' --d=\"(1, 2)\" --do=print > commands.sh"
    assert arguments_of(line) == ["--a=b c", "--d=(1, 2)", "--do=print"]
    assert arguments_of("--a=1   # there") == ["--a=1"]


def test_commands_are_found_everywhere():
    assert len(commands()) > 150
    assert {path.split("/")[0] for path in commands().values()} == {"README.md", "docs", "configs", "sora_jax"}


def test_every_documented_command_is_understood(python):
    done = python("-m", "tests.documented")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("wrong", ["--no_such=1", "--config.no_such=1", "--config.seed=red", "--until", "word"])
def test_a_wrong_flag_is_found(python, wrong):
    done = python("-m", "tests.documented", "sora_jax.main", "--config=configs/base.py", wrong)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("given: sora_jax.main")
