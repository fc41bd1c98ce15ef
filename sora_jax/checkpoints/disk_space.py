"""Whether checkpoints can be written, asked before anything is compiled."""

import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from sora_jax.core.distributed import from_first
from sora_jax.core.errors import StorageError, UserError
from sora_jax.core.printable import printable

_PROBE = ".write-probe"
# What the libraries of checkpoints take for a pattern, another separator or the address of a bucket in the name of a
# folder: parts of a checkpoint are then not found, or those of a neighbour are taken for them.
_MISREAD = re.compile(r"[*?\[\\\ud800-\udfff]|:$")


def check_folder_names(path: Path) -> None:
    """Raises UserError where a folder on an absolute path has a name with which no checkpoint can be read again."""
    for name in path.parts:
        if _MISREAD.search(name):
            raise UserError(
                f"checkpoints cannot be kept under {printable(str(path))}: of {printable(name)!r} the characters "
                "* ? [ \\, a : at the end and bytes that are no UTF-8 are read as something else: rename that folder, "
                "or give another --workdir, such as a link to it without them"
            )


def check_room(directory: epath.Path, abstract_state: Any, *, copies: int) -> None:
    """Raises StorageError where `copies` more checkpoints of a state cannot be written to `directory`.

    A file is written there, brought to the disk and removed; the bytes of the state are compared with what is free.
    Process 0 looks for all, whose parts of a checkpoint lie in the one folder; all raise alike.
    """
    problem = from_first(f"room in {directory}", lambda: _problem(directory, state_bytes(abstract_state), copies))
    if problem is not None:
        raise StorageError(problem)


def state_bytes(abstract_state: Any) -> int:
    """Returns the bytes of a state of arrays or shapes; what compression saves of them is little."""
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(abstract_state))


def _problem(directory: epath.Path, one: int, copies: int) -> str | None:
    probe = os.path.join(directory, _PROBE)
    try:
        with open(probe, "wb") as file:
            file.write(b"sora_jax")
            file.flush()
            os.fsync(file.fileno())
        os.remove(probe)
        free = shutil.disk_usage(directory).free
    except OSError as error:
        cause = error.strerror
        return f"checkpoints cannot be written in {directory}: {cause}; make it writable, or give another --workdir"
    if free >= copies * one:
        return None
    what = f"{copies} more checkpoints of {_size(one)}"
    return (
        f"{directory} has {_size(free)} free, and {what} need {_size(copies * one)}: "
        "free so much, keep fewer (checkpoint.keep, checkpoint.keep_best), or give another --workdir"
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
