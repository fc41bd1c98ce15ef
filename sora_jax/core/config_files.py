"""Flags that take a config file, and the configs that come with the package: they are found from any folder."""

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from sora_jax.core.errors import UserError

# The flags that are defined here belong to the command that asks for them, in its --help too.
flags.disclaim_key_flags()
# The folder that holds `configs`: within an installed package, beside one in a checkout.
_PLACES = (Path(__file__).parents[1] / "shipped", Path(__file__).parents[2])


class _OrNone(flags.ArgumentParser[Any]):
    """What another parser reads; `None` is None, which configs say for what is off."""

    def __init__(self, parser: flags.ArgumentParser[Any]):
        self._parser = parser

    def parse(self, argument: Any) -> Any:
        """Returns the value; raises as the other parser."""
        return None if argument == "None" else self._parser.parse(argument)

    def flag_type(self) -> str:
        """Returns what the flag takes, as in helps of absl."""
        return self._parser.flag_type()


# How a key of one value is read. A key of several is read by ml_collections; see `settle_none`.
_OR_NONE = {
    int: _OrNone(flags.IntegerParser()),
    float: _OrNone(flags.FloatParser()),
    str: _OrNone(flags.ArgumentParser[str]()),
}


def define_config(name: str, default: str, help_: str) -> Any:
    """Returns the flag `--name` of a config file, whose keys are flags as well, for `core.commands`.

    A relative name such as configs/base.py that is not in the working folder is that of the package, on the command
    line too; `from configs import base` works within any config.
    """
    _make_importable()
    sys.argv[1:] = found_in(sys.argv[1:], flag=name)
    for kind, parser in _OR_NONE.items():
        config_flags.register_flag_parser_for_type(kind, parser)
    return config_flags.DEFINE_config_file(name, find_config(default), help_)


def settle_none(name: str) -> None:
    """Sets keys to None whose value on the command line is `None`, of the flag `--name` of a config file.

    Those of one value are read so; those of several come as a tuple of one.
    """
    config: Any = flags.FLAGS[name].value
    overrides = config_flags.get_override_values(flags.FLAGS[name])
    for key in [key for key, value in overrides.items() if value == (None,)]:
        overrides[key] = None
        config.update_from_flattened_dict({key: None})


def find_config(name: str, places: Sequence[Path] = _PLACES) -> str:
    """Returns where a config is: as it is named, or in the first of `places` that has it, or as it is named."""
    path = name.partition(":")[0]  # what follows is for the config itself
    if os.path.isabs(path) or os.path.exists(path):
        return name
    return next((f"{place / path}{name[len(path) :]}" for place in places if (place / path).is_file()), name)


def load_config(name: str) -> Any:
    """Returns the config of a file, found as `find_config` says, as it is before the command line changes it.

    UserError where there is no such file.
    """
    _make_importable()
    path, colon, word = find_config(name).partition(":")
    if not os.path.isfile(path):
        raise UserError(f"there is no config {path}: give a file such as configs/base.py")
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
