"""Paths as users write them."""

import os
from typing import Any

from absl import flags

from sora_jax.core.errors import UserError


def expanded(path: str) -> str:
    """Returns a path, a ~ at its beginning being a home, as no shell makes it of --flag=~/x.

    Raises UserError where there is no such home.
    """
    found = os.path.expanduser(path)
    if found.startswith("~"):
        raise UserError(f"{path} names no home of this machine: write the whole path, or ./{path} for a file called so")
    return found


class _PathParser(flags.ArgumentParser[str]):
    """Paths on the command line."""

    syntactic_help = "a path"

    def parse(self, argument: str) -> str:
        """Returns the path, raises UserError as `expanded`."""
        return expanded(argument)

    def flag_type(self) -> str:
        """Returns what the flag takes, as in helps of absl."""
        return "path"


def define_path(name: str, default: str | None, help_: str) -> Any:
    """Returns the flag `--name` of a path, or None."""
    return flags.DEFINE(_PathParser(), name, default, help_, serializer=flags.ArgumentSerializer())


def define_paths(name: str, help_: str) -> Any:
    """Returns the flag `--name` of a path, which may be given several times: a list."""
    return flags.DEFINE_multi(_PathParser(), flags.ArgumentSerializer(), name, [], help_)
