"""Flags that take a config file, and the configs that come with the package: they are found from any folder."""

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

# The flags that are defined here belong to the command that asks for them, in its --help too.
flags.disclaim_key_flags()
# The folder that holds `configs`: within an installed package, beside one in a checkout.
_PLACES = (Path(__file__).parents[1] / "shipped", Path(__file__).parents[2])


def define_config(name: str, default: str, help_: str) -> Any:
    """Returns the flag `--name` of a config file, whose keys are flags as well, for `core.commands`.

    A relative name such as configs/base.py that is not in the working folder is that of the package, on the command
    line too; `from configs import base` works within any config.
    """
    _make_importable()
    sys.argv[1:] = found_in(sys.argv[1:], flag=name)
    return config_flags.DEFINE_config_file(name, find_config(default), help_)


def find_config(name: str, places: Sequence[Path] = _PLACES) -> str:
    """Returns where a config is: as it is named, or in the first of `places` that has it, or as it is named."""
    path = name.partition(":")[0]  # what follows is for the config itself
    if os.path.isabs(path) or os.path.exists(path):
        return name
    return next((f"{place / path}{name[len(path) :]}" for place in places if (place / path).is_file()), name)


def load_config(name: str) -> Any:
    """Returns the config of a file, found as `find_config` says, as it is before the command line changes it."""
    _make_importable()
    path, colon, word = find_config(name).partition(":")
    spec = importlib.util.spec_from_file_location("config", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(word) if colon else module.get_config()


def given_config(name: str) -> tuple[str, dict[str, Any]]:
    """Returns (the file of the flag `--name`, found as `find_config` says; what the command line changes, by key)."""
    flag = flags.FLAGS[name]
    return config_flags.get_config_filename(flag), dict(config_flags.get_override_values(flag))


def found_in(arguments: Sequence[str], *, flag: str, places: Sequence[Path] = _PLACES) -> list[str]:
    """Returns the arguments of a command, every value of the flag as `find_config` says."""
    result: list[str] = []
    for argument in arguments:
        written, equals, value = argument.partition("=")
        if equals and written.lstrip("-") == flag and written.startswith("-"):
            argument = f"{written}={find_config(value, places)}"
        elif result and result[-1] in (f"-{flag}", f"--{flag}"):
            argument = find_config(argument, places)
        result.append(argument)
    return result


def _make_importable() -> None:
    """Lets configs import those of the package, where `configs` is no package already."""
    spec = importlib.util.find_spec("configs")
    if spec is None or spec.origin is None:  # none, or only a folder of that name
        sys.path += [str(place) for place in _PLACES if (place / "configs" / "base.py").is_file()]
