"""Digests of a directory of files, so that a changed, missing or added file is found before it is read.

    DIRECTORY/manifest.json    {"name": "200", "sha256": {"state/d/0f3a...": "9c1e...", ...}}

A digest finds accidents. It does not say who wrote the files: whoever can change a file can change the
manifest.
"""

import contextlib
import hashlib
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor

from etils import epath

MANIFEST = "manifest.json"
# Notes of orbax about a save, written after the manifest; nothing that is restored depends on them.
_NOTES = ("_CHECKPOINT_METADATA", "commit_success.txt")
_NOT_COVERED = frozenset({MANIFEST, *_NOTES})
_BLOCK_BYTES = 1 << 22
_PART = "digests."  # begins the names of files that hold those of one process until the manifest is written


def write_part(directory: epath.Path, folder: str) -> None:
    """Digests the files in each `folder` below an item of `directory`, which one process wrote, for `write_manifest`.

    Items may still have other names than in the end: digests are kept by names from `folder` on.
    """
    paths = {
        path.relative_to(item).as_posix(): path
        for item in directory.iterdir()
        if item.is_dir() and (item / folder).is_dir()
        for path in _files(item / folder)
    }
    (directory / f"{_PART}{folder}").write_text(json.dumps(_digests(paths)))


def write_manifest(directory: epath.Path, *, name: str) -> None:
    """Writes the manifest of `directory`, which is or will be called `name`, and removes what `write_part` wrote.

    Raises ValueError if there is a link or a special file in it, OSError as the file system does.
    """
    parts = [path for path in directory.iterdir() if path.name.startswith(_PART)]
    known = {file: digest for part in parts for file, digest in json.loads(part.read_text()).items()}
    for part in parts:
        part.unlink()
    paths = _covered(directory)
    inside = {path: path.partition("/")[2] for path in paths}  # names from the folder of a process on
    rest = {path: paths[path] for path in paths if inside[path] not in known}
    digests = {path: known[inside[path]] for path in paths if path not in rest} | _digests(rest)
    (directory / MANIFEST).write_text(json.dumps({"name": name, "sha256": digests}, indent=1))


def remove_notes(directory: epath.Path) -> None:
    """Removes from a committed directory what the manifest does not cover, so that no file in it can change unseen."""
    for name in _NOTES:
        with contextlib.suppress(OSError):  # one that stays does no harm
            (directory / name).unlink(missing_ok=True)


def distrust(directory: epath.Path, *, part: tuple[int, int] = (0, 1)) -> str | None:
    """Why the files are not those that were written, naming one; None if every byte is the same.

    With `part` (index, count) only every so many-th file is read: as many calls, one for each index, read all.
    """
    return next(iter(faults(directory, part=part)), None)


def faults(directory: epath.Path, *, part: tuple[int, int] = (0, 1)) -> list[str]:
    """All that is not as it was written, by file name, of a part of the files as `distrust` has it."""
    try:
        _refuse_link(directory / MANIFEST)
        content = json.loads((directory / MANIFEST).read_text())
        expected = dict(content["sha256"])
        if content["name"] != directory.name:
            return [f"its manifest belongs to {content['name']}"]
        paths = _covered(directory)
        names = sorted(expected.keys() | paths.keys())[part[0] :: part[1]]
        actual = _digests({name: paths[name] for name in names if name in paths})
    except FileNotFoundError:
        return ["it has no manifest, so this program did not finish writing it"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"it cannot be read: {error}"]
    found = []
    for name in names:
        if name not in actual:
            found.append(f"{name} is missing")
        elif name not in expected:
            found.append(f"{name} was not part of it")
        elif actual[name] != expected[name]:
            found.append(f"{name} has changed since it was written")
    return found


def _covered(directory: epath.Path) -> dict[str, epath.Path]:
    """The files that a manifest covers, by path relative to `directory`."""
    paths = {path.relative_to(directory).as_posix(): path for path in _files(directory)}
    return {name: path for name, path in paths.items() if name not in _NOT_COVERED}


def _digests(paths: dict[str, epath.Path]) -> dict[str, str]:
    """SHA-256 in hexadecimal by name."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        return dict(zip(paths, pool.map(_digest, paths.values()), strict=True))


def _files(directory: epath.Path) -> list[epath.Path]:
    """All files below `directory`, never through a link, which could bring in any file of the host."""
    _refuse_link(directory)
    found = []
    for path in directory.iterdir():
        _refuse_link(path)
        found += _files(path) if path.is_dir() else [path]
    return found


def _refuse_link(path: epath.Path) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return  # an object store, which has neither links nor pipes
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ValueError(f"{path.name} is a link or a special file")


def _digest(path: epath.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
