"""Which tar files a path, a folder or a pattern stands for."""

import glob
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from sora_jax.core.errors import UserError
from sora_jax.data.sources import remote
from sora_jax.data.sources.remote import AnyPath, is_remote

# Tars on network disks take a round trip for every header.
THREADS = 8

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")
_WILD = re.compile(r"[*?\[{]")
# How files of gzip, bzip2, xz and zstd begin; a tar begins with the name of its first member.
_COMPRESSED = re.compile(rb"\x1f\x8b\x08|BZh[1-9]1AY&SY|\xfd7zXZ\0|\x28\xb5\x2f\xfd")


class Tars(NamedTuple):
    """Tar files, sorted, their names within what the path stands for, and the folders behind links, not looked into.

    A name depends on the path and on the place of its file alone, so that it stays what it is when others are added.
    """

    paths: list[AnyPath]
    labels: list[str]
    linked: list[str]


def find_tars(path: str | os.PathLike) -> Tars:
    """Returns the tar files that `path` stands for; raises `UserError` when there are none.

    A `.tar` file; a folder, with its subfolders; or a pattern: `*`, `?`, `[...]` as of a shell, `{a,b}` and
    `{000..123}`, of which every number and choice must exist. A folder of the very name that is written is that folder.
    """
    written, root, linked = os.fspath(path), remote.place(path), list[str]()
    if remote.is_folder(root):
        sizes, linked = remote.list_folder(root)
        found = [root / name for name in sizes if name.lower().endswith(".tar")]
        if not found:
            passed = remote.passed_over(linked)
            raise UserError(
                f"the folder {written} holds no .tar file{passed}: data.source 'folder' reads clips that lie open"
            )
    elif remote.is_there(root):
        root, found = root.parent, [root]
    else:
        root, found = _matching(written)
    found = sorted(set(found))
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(_check_tar, found))
    top = _without_scheme(root)
    return Tars(found, [_without_scheme(tar).relative_to(top).as_posix() for tar in found], linked)


def _matching(written: str) -> tuple[AnyPath, list[AnyPath]]:
    """Returns (the folder in which a pattern begins, the paths that match it); raises `UserError`."""
    there, pattern = _split(written)
    names = list(_expand(pattern))
    matches = {name: _matches(there, name) for name in names}
    absent = [name for name, several in matches.items() if not several]
    if len(absent) == len(names):
        raise UserError(f"no tar file matches {written}: pass --config.data.path=FILE.tar, a folder or a pattern")
    if absent:
        raise UserError(
            f"{len(absent)} of the {len(names)} names that {written} stands for do not exist, such as "
            f"{there}{absent[0]}: restore the files or shorten the pattern"
        )
    found = [match for several in matches.values() for match in several]
    if is_remote(written):
        scheme, _, place = written.partition("://")
        return remote.place(f"{scheme}://{_WILD.split(place)[0].rpartition('/')[0]}"), found
    if any(os.path.isabs(name) for name in names):
        # Choices of whole paths, {/one/disk,/another}/*.tar: the folder that holds the beginnings of all.
        return Path(os.path.commonpath([os.path.abspath(_split(name)[0]) for name in names])), found
    return Path(there), found


def _without_scheme(path: AnyPath) -> Path:
    written = os.fspath(path)
    return Path(written.partition("://")[2].lstrip("/")) if is_remote(path) else Path(written).absolute()


def _split(pattern: str) -> tuple[str, str]:
    """Returns (the folder in which a pattern begins, the pattern from there on).

    What exists by the very name that is written is no pattern, whatever characters are in it.
    """
    there, parts = "", [] if is_remote(pattern) else pattern.split("/")
    while parts and os.path.isdir(f"{there}{parts[0]}/"):
        there += f"{parts.pop(0)}/"
    return there, pattern[len(there) :]


def _matches(there: str, pattern: str) -> list[AnyPath]:
    if is_remote(pattern):
        return remote.find_matches(pattern)
    return [Path(name) for name in glob.glob(glob.escape(there) + pattern, recursive=True)]


def _check_tar(tar: AnyPath) -> None:
    if not is_remote(tar) and not tar.is_file():
        raise UserError(f"{tar} is not a file: a pattern must match tar files only")
    with remote.open_file(tar) as (file, _):
        if _COMPRESSED.match(remote.read_at(file, 0, 16)):
            raise UserError(f"{tar} is compressed, which allows no random access: decompress it to a plain .tar")


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
