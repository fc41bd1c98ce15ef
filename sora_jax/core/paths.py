"""Paths as users write them."""

import errno
import hashlib
import os
import tempfile
from pathlib import Path

from sora_jax.core.errors import StorageError, UserError

# Bytes of a name in a folder, of every usual file system.
LONGEST_NAME = 255


def expanded(path: str) -> str:
    """Returns a path, a ~ at its beginning being a home, as no shell makes it of --flag=~/x.

    Raises UserError where there is no such home.
    """
    found = os.path.expanduser(path)
    if found.startswith("~"):
        raise UserError(f"{path} names no home of this machine: write the whole path, or ./{path} for a file called so")
    return found


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raises StorageError where no file could be written at `path`, before the work that makes it; leaves nothing.

    Folders that are missing would be made.
    """
    path = Path(path).absolute()
    folder = next(one for one in path.parents if os.path.lexists(one))
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        for name in path.parts[1:]:
            if len(os.fsencode(name)) > LONGEST_NAME:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def beside(path: Path, ending: str) -> Path:
    """Returns where a file lies until it is whole: beside `path`, with `ending`, its name replaced where it is long."""
    name = path.name
    if len(os.fsencode(name)) + len(ending) > LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return path.with_name(name + ending)
