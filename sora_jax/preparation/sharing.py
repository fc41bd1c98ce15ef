"""Shards that one run prepared, in the folder of another: nothing is encoded twice."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

from sora_jax.core.errors import StorageError, UserError
from sora_jax.core.paths import beside
from sora_jax.data.shards.catalogue import CATALOGUE_FILE, read_catalogue
from sora_jax.data.shards.files import check_same, read_header

_RECORDS = ".arrayrecord"


def take_prepared(source: Path, target: Path, made_with: Mapping[str, Any]) -> int:
    """Returns how many files of the shards in `source` were put into `target`, which had not all of them.

    `made_with` is the header of the shards that `target` is to hold (`preparation.encode.header`). Records, which are
    never written again, are shared where the file system can, and copied where it cannot. An interrupted call is done
    again: what a shard is known by comes last.

    Raises:
      UserError: The clips of `source` are not prepared to the end, or were prepared with something else.
      StorageError: The files cannot be written.
    """
    if not source.is_dir() or read_catalogue(source) is None:
        raise UserError(
            f"stages.prepare.start_from: {source} holds no clips that were prepared to the end: name a run that has "
            "done so, or None"
        )
    remedy = "leave stages.prepare.start_from out, and all clips are encoded, or go back to what it was prepared with"
    check_same(source, read_header(source), made_with, remedy=remedy)
    files = sorted((path for path in source.iterdir() if path.is_file()), key=lambda path: path.suffix != _RECORDS)
    # The catalogue is of the clips there, which may be fewer: the stage writes its own.
    missing = [path for path in files if path.name != CATALOGUE_FILE and not (target / path.name).exists()]
    try:
        target.mkdir(parents=True, exist_ok=True)
        for path in missing:
            _put(path, target / path.name)
    except OSError as error:
        raise StorageError(f"{source} cannot be taken over to {target}: {error}") from error
    if missing:
        logging.info("the prepared clips of %s are taken over, %d files", source, len(missing))
    return len(missing)


def _put(path: Path, target: Path) -> None:
    """Gives a file another name, or a copy of it where that name is on another file system or may be written to."""
    temporary = beside(target, ".tmp")
    temporary.unlink(missing_ok=True)
    try:
        if path.suffix != _RECORDS:
            raise OSError
        os.link(path, temporary)
    except OSError:
        shutil.copyfile(path, temporary)
    os.replace(temporary, target)
