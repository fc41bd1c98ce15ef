"""Data sets in buckets, such as gs://bucket/clips: paths, listings, and files that are read in pieces.

Paths are those of `etils.epath`. What it lacks, one listing with sizes and files of which a little is read at a time,
comes from fsspec, which it stands on. Addresses are what a run's config says: names in a data set are only names.
"""

import contextlib
import os
import re
import stat
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

import fsspec
from etils import epath

from sora_jax.core.errors import UserError

AnyPath = Path | epath.Path

# Of an address, also of a proxy in the error of a library.
_CREDENTIALS = re.compile(r"://[^/\s]*@")
# What is written before :// and the package that reads from there.
_PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}


def is_remote(path: str | os.PathLike) -> bool:
    """Returns whether a path, as it is written in a config, is one of another machine."""
    return "://" in os.fspath(path)


def place(path: str | os.PathLike, *, schemes: Collection[str] = _PACKAGES) -> AnyPath:
    """Returns the path, here or in a bucket of one of `schemes`; raises `UserError` where nothing reads from there."""
    written = os.fspath(path)
    if not is_remote(written):
        return Path(written)
    if _CREDENTIALS.search(written):
        raise UserError(
            "an address of data holds a user name or a password before its @, which would stand in config.json, logs "
            "and reports: leave it out; gs:// reads GOOGLE_APPLICATION_CREDENTIALS, s3:// reads AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        )
    scheme = written.partition("://")[0]
    if scheme not in schemes:
        known = " or ".join(f"{name}://" for name in schemes)
        raise UserError(
            f"{written} cannot be read: this source reads from this machine and {known}: copy the data there"
        )
    try:
        fsspec.filesystem(scheme)
    except ImportError as error:
        package = _PACKAGES[scheme]
        raise UserError(f"{written} needs {package} ({error}): pip install {package}, or copy the data here") from error
    return epath.Path(written)


def is_folder(path: AnyPath) -> bool:
    """Returns whether a path leads to a folder."""
    # Unlike that of `Path`, `isdir` takes names of any length.
    return path.is_dir() if is_remote(path) else os.path.isdir(path)


def is_there(path: AnyPath) -> bool:
    """Returns whether a path leads to anything."""
    if not is_remote(path):
        return os.path.exists(path)
    try:
        path.stat()  # `exists` of fsspec says no also where it cannot know
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def reaching(path: str | os.PathLike) -> Iterator[None]:
    """Raises `UserError` for whatever goes wrong inside with a `path` in a bucket, for `OSError` with one here."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the libraries of buckets have types of their own
        if not is_remote(path):
            if isinstance(error, OSError):
                raise _unreadable(path, error) from error
            raise
        said = f"{type(error).__name__}: {_first_line(error)}"
        raise UserError(f"{path} cannot be read ({said}): check the address, the network and your sign-in") from error


class Listing(NamedTuple):
    """The bytes of the files under a folder by name, and the folders behind links, which are passed over."""

    sizes: dict[str, int | None]
    linked: list[str]


def list_folder(root: AnyPath) -> Listing:
    """Returns all files under a folder that are not hidden, by relative name, in sorted order.

    Names have forward slashes. What is no regular file has None, and so has a link that leads nowhere, or out of the
    folder: a data set may name only what is in it. Links to folders are not followed. Raises `UserError` for a folder
    here that cannot be listed.
    """
    if is_remote(root):
        system, top = fsspec.url_to_fs(os.fspath(root))
        found = system.find(top, detail=True)
        sizes = {name.removeprefix(top).lstrip("/"): entry["size"] for name, entry in found.items()}
        hidden = {name for name in sizes if any(part.startswith(".") for part in name.split("/"))}
        return Listing({name: sizes[name] for name in sorted(sizes.keys() - hidden)}, [])

    def refuse(error: OSError) -> NoReturn:
        raise _unreadable(root, error) from error

    sizes, linked, top = {}, [], os.path.realpath(root)
    for folder, subfolders, names in os.walk(root, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        paths = [Path(folder, name) for name in names if not name.startswith(".")]
        sizes |= {path.relative_to(root).as_posix(): _size(path, top) for path in paths}
        links = (Path(folder, name) for name in subfolders if Path(folder, name).is_symlink())
        linked += [path.relative_to(root).as_posix() for path in links]
    return Listing(dict(sorted(sizes.items())), sorted(linked))


def passed_over(linked: Sequence[str]) -> str:
    """Returns what to add to a sentence about what a folder lacks, where folders behind links were passed over."""
    return f" ({len(linked)} folders behind links are passed over, such as {linked[0]})" if linked else ""


def list_files(root: AnyPath) -> dict[str, int | None]:
    """Returns the bytes of the files that `list_folder` lists, by name."""
    return list_folder(root).sizes


def find_matches(pattern: str) -> list[AnyPath]:
    """Returns the paths in a bucket that match a pattern of `*`, `?` and `[...]`."""
    system, plain = fsspec.url_to_fs(pattern)
    return [epath.Path(system.unstrip_protocol(name)) for name in system.glob(plain)]


@contextlib.contextmanager
def open_file(path: AnyPath, *, ahead: int = 0) -> Iterator[tuple[BinaryIO, int]]:
    """Yields a file opened for reading, and its bytes; raises `OSError`.

    One that is a pipe is not waited for. From a bucket `ahead` bytes more than are asked for are fetched, and kept.
    """
    if not is_remote(path):
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            yield file, os.fstat(file.fileno()).st_size
        return
    with _os_errors():
        system, plain = fsspec.url_to_fs(os.fspath(path))
        file = system.open(plain, "rb", block_size=ahead, cache_type="readahead" if ahead else "none")
    with file:
        yield file, file.size


def read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    """Returns `size` bytes of a file from `offset` on, fewer at its end; raises `OSError`."""
    with _os_errors():
        file.seek(offset)
        return file.read(size)


def read_whole(path: AnyPath) -> bytes:
    """Returns a whole file; raises `OSError`."""
    with _os_errors():
        if not is_remote(path):
            return path.read_bytes()
        system, plain = fsspec.url_to_fs(os.fspath(path))
        return system.cat_file(plain)


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Raises `OSError` for whatever the library of a bucket raises."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return _CREDENTIALS.sub("://", (str(error).strip().splitlines() or [""])[0])[:120]


def _unreadable(path: str | os.PathLike, error: OSError) -> UserError:
    """Returns what says why a path here, or what lies in it, cannot be read."""
    named, reason = path if error.filename is None else error.filename, error.strerror or error
    return UserError(f"{named} cannot be read ({reason}): make it readable for the user of this run, or move it away")


def _size(path: Path, top: str) -> int | None:
    try:
        if path.is_symlink() and not path.resolve(strict=True).is_relative_to(top):
            return None
        found = path.stat()
        # A pipe would be waited for.
        return found.st_size if stat.S_ISREG(found.st_mode) else None
    except OSError:
        return None
