"""Configs are found from any folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sora_jax.core.config_files import find_config, found_in, load_config
from sora_jax.core.errors import UserError
from tests.conftest import ROOT


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Two places for configs, of which the first has a, both have b; and the working folder, which has c."""
    for name in ("first/configs/a.py", "first/configs/b.py", "second/configs/b.py", "here/configs/c.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "first", tmp_path / "second"


def test_a_config_is_that_of_the_working_folder_or_of_the_package(places):
    first, second = places
    assert find_config("configs/c.py", places) == "configs/c.py"
    assert find_config("configs/a.py", places) == str(first / "configs" / "a.py")
    assert find_config("configs/b.py", places) == str(first / "configs" / "b.py")
    assert find_config("configs/b.py:large", (second,)) == f"{second}/configs/b.py:large"
    assert find_config("configs/none.py", places) == "configs/none.py"
    assert find_config("/configs/a.py", places) == "/configs/a.py"
    (Path("configs") / "a.py").touch()
    assert find_config("configs/a.py", places) == "configs/a.py"


def test_a_config_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"there is no config nothing\.py: give a file such as configs/base\.py"):
        load_config("nothing.py:small")


def test_only_the_value_of_the_flag_is_looked_for(places):
    a = str(places[0] / "configs" / "a.py")
    asked = ["--config=configs/a.py", "--config.data.path=configs/a.py", "--config", "configs/a.py", "configs/a.py"]
    assert found_in(asked, flag="config", places=places) == [f"--config={a}", asked[1], "--config", a, "configs/a.py"]
    assert found_in(["--step_config=configs/a.py"], flag="config", places=places) == ["--step_config=configs/a.py"]


def test_commands_find_their_configs_from_another_folder(tmp_path):
    """As from a package that was installed: `configs` is beside it, and nowhere else."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "mine.py").write_text(
        "from configs import base\n\ndef get_config():\n    c = base.get_config()\n    c.seed = 9\n    return c\n"
    )
    script = (
        "import sys; sys.argv = ['x', *sys.argv[1:]]\n"
        "from sora_jax.core.commands import Flags, run_command\nflags = Flags()\n"
        "config = flags.config('config', 'configs/folder.py', '')\n"
        "run_command(lambda _: print(config.value.seed, config.value.data.source, config.value.data.path), flags)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for arguments, said in (
        (["--config.data.path=x"], "0 folder x"),
        (["--config=mine.py", "--config.data.path=y"], "9 shapes y"),
        (["--config", "configs/shapes.py"], "0 shapes None"),
    ):
        command = [sys.executable, "-c", script, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        assert done.stdout.strip() == said, done.stderr


def test_the_command_line_says_none_of_keys_of_any_type(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from configs import base\n\ndef get_config():\n    c = base.get_config()\n"
        "    c.data.update(path='x', fps=8.0)\n    c.shapes.seed = 3\n    return c\n"
    )
    script = (
        "import sys; sys.argv = ['x', *sys.argv[1:]]\n"
        "from sora_jax.core.commands import Flags, run_command\nflags = Flags()\n"
        "flag = flags.config('config', 'configs/base.py', '')\n"
        "run_command(lambda _: print([flag.value.data.path, flag.value.data.fps, flag.value.shapes.seed, "
        "flag.value.shapes.caption_faults], [*flag.given.values()]), flags)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    keys = ("data.path", "data.fps", "shapes.seed", "shapes.caption_faults")
    for word, said in (
        ("None", "[None, None, None, None] [None, None, None, None]"),
        ("7", "['7', 7.0, 7, (7,)] ['7', 7.0, 7, (7,)]"),
    ):
        command = [sys.executable, "-c", script, "--config=mine.py", *(f"--config.{key}={word}" for key in keys)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        assert done.stdout.strip() == said, done.stderr
