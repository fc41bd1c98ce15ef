"""Which tar files a path, a folder or a pattern stands for."""

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

from sora_jax.core.errors import UserError

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")
# How files of gzip, bzip2, xz and zstd begin; a tar begins with the name of its first member.
_COMPRESSED = re.compile(rb"\x1f\x8b\x08|BZh[1-9]1AY&SY|\xfd7zXZ\0|\x28\xb5\x2f\xfd")


def find_tars(path: str | os.PathLike) -> list[Path]:
    """Returns the tar files that `path` stands for, sorted; raises `UserError` when there are none.

    A `.tar` file; a folder, with its subfolders; or a pattern: `*`, `?`, `[...]` as of a shell, `{a,b}` and
    `{000..123}`, of which every number and choice must exist.
    """
    written = os.fspath(path)
    if os.path.isdir(written):
        relative = [tar.relative_to(written) for tar in Path(written).rglob("*.tar")]
        found = [Path(written, tar) for tar in relative if not any(part.startswith(".") for part in tar.parts)]
        if not found:
            raise UserError(f"the folder {written} holds no .tar file: data.source 'folder' reads clips that lie open")
    elif os.path.exists(written):
        found = [Path(written)]
    else:
        names = list(_expand(written))
        matches = {name: glob.glob(name, recursive=True) for name in names}
        found = [Path(match) for several in matches.values() for match in several]
        absent = [name for name, several in matches.items() if not several]
        if not found:
            raise UserError(f"no tar file matches {written}: pass --config.data.path=FILE.tar, a folder or a pattern")
        if absent:
            raise UserError(
                f"{len(absent)} of the {len(names)} names that {written} stands for do not exist, such as "
                f"{absent[0]}: restore the files or shorten the pattern"
            )
    for tar in found:
        if not tar.is_file():
            raise UserError(f"{tar} is not a file: a pattern must match tar files only")
        with tar.open("rb") as file:
            if _COMPRESSED.match(file.read(16)):
                raise UserError(f"{tar} is compressed, which allows no random access: decompress it to a plain .tar")
    return sorted(set(found))


def _expand(pattern: str) -> Iterator[str]:
    """Yields the names that the braces of a pattern stand for."""
    numbers, choice = _RANGE.search(pattern), _CHOICE.search(pattern)
    if numbers:
        first, last = numbers.groups()
        options = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    else:
        options = choice.group(1).split(",") if choice else []
    match = numbers or choice
    if match is None:
        yield pattern
        return
    for option in options:
        yield from _expand(pattern[: match.start()] + option + pattern[match.end() :])


def labels_of(paths: list[Path]) -> list[str]:
    """Returns the names of the tars relative to the folder that holds them all."""
    root = os.path.commonpath([path.absolute().parent for path in paths])
    return [path.absolute().relative_to(root).as_posix() for path in paths]
