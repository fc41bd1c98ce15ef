"""What is written about the clips of a source and about windows of them, by name.

A window is called `FILE#FIRST-LAST`, as curation names it: frames from 0, both included.
"""

import dataclasses
import os
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import TypeVar

from sora_jax.core.errors import UserError
from sora_jax.data.clips import FrameRange
from sora_jax.data.sources.caption_tables import TABLE_SUFFIXES, Written, read_table
from sora_jax.data.sources.remote import AnyPath, is_there, place, reaching
from sora_jax.data.tokens import Captions, clean_captions

Name = TypeVar("Name")
Read = TypeVar("Read")

_WINDOW = re.compile(r"(.+)#(\d{1,9})-(\d{1,9})", re.DOTALL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Told:
    """Captions by the names of clips, each with at least one, and those of windows of them; `missing` name no clip."""

    captions: dict[str, Captions] = dataclasses.field(default_factory=dict)
    windows: dict[str, dict[FrameRange, Captions]] = dataclasses.field(default_factory=dict)
    missing: list[str] = dataclasses.field(default_factory=list)

    @property
    def clips(self) -> int:
        """How many clips are named, themselves or windows of them."""
        return len(self.captions.keys() | self.windows.keys())


def window_named(name: str) -> tuple[str, FrameRange] | None:
    """Returns the file and the window of a name like `FILE#FIRST-LAST`, None of another one."""
    found = _WINDOW.fullmatch(name)
    return found and (found[1], (int(found[2]), int(found[3])))


class Names:
    """Names that are there, and how others write them.

    In another Unicode form, with the slashes of Windows, with white space around them; where none of these is there,
    with other `./` and `//`, and with an ending in other letters (`a.MP4`).
    """

    def __init__(self, names: Iterable[str]):
        self._exact = dict.fromkeys(names)
        self._composed: dict[str, str] = {}
        self._plain: dict[str, str] = {}
        for name in self._exact:
            composed = unicodedata.normalize("NFC", name)
            self._composed.setdefault(composed, name)
            if (plain := _plain(composed)) != composed:
                self._plain.setdefault(plain, name)

    def find(self, name: str, folder: str | None = None) -> str | None:
        """Returns the name that is there for one that is written, None where there is none.

        It is relative to `folder`, where that is given.
        """
        slashes = name.replace("\\", "/")
        ways = [name, slashes, name.strip(), slashes.strip()]
        if folder is not None:
            ways = [within(folder, way) for way in ways]
        if ways[0] in self._exact:
            return ways[0]
        ways = [unicodedata.normalize("NFC", way) for way in ways]
        there = [found for way in ways if (found := self._composed.get(way)) is not None]
        for way in () if there else map(_plain, ways):
            there += [found[way] for found in (self._composed, self._plain) if way in found]
        return there[0] if there else None


def within(folder: str, name: str) -> str:
    """Returns the name, of which those in `folder` are a part, of what is called `name` there."""
    return posixpath.normpath(posixpath.join(folder, name))


def _plain(name: str) -> str:
    """Returns a name without what says nothing in a path, its ending in small letters."""
    if "//" in name or "./" in name:
        name = PurePosixPath(name).as_posix()
    stem, dot, ending = name.rpartition(".")
    return name if "/" in ending else f"{stem}{dot}{ending.lower()}"


def look_up(table: Mapping[str, list[Written]], names: Names, folder: str | None = None) -> Told:
    """Returns the captions of a table by the names that it means; they are relative to `folder`, where it is given."""
    clips: dict[str, list[Written]] = {}
    windows: dict[str, dict[FrameRange, list[Written]]] = {}
    missing = []
    for name, texts in table.items():
        window = window_named(name.rstrip())
        if (clip := names.find(name, folder)) is not None:
            clips.setdefault(clip, []).extend(texts)
        elif window is not None and (clip := names.find(window[0], folder)) is not None:
            windows.setdefault(clip, {}).setdefault(window[1], []).extend(texts)
        else:
            missing.append(name)
    return Told(
        captions=_cleaned(clips),
        windows={name: cleaned for name, found in windows.items() if (cleaned := _cleaned(found))},
        missing=missing,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settled:
    """What became of the clips of a source, in their order.

    `captions` has those of each clip, none where nothing is written, and `retold` is how many clips the table names,
    themselves or windows of them; `kept` are the numbers of the clips that stay, all unless captions are `required`.
    `windows` has captions of windows by clip. `uncaptioned` are names of clips of
    which neither is there, `missing` names in a table that are of no clip.
    """

    captions: list[Captions]
    retold: int
    kept: list[int]
    windows: dict[str, dict[FrameRange, Captions]]
    uncaptioned: list[str]
    missing: list[str]
    required: bool


def settle_captions(
    names: Sequence[str],
    own: Sequence[Captions],
    windows: Mapping[str, dict[FrameRange, Captions]],
    *,
    table: str | os.PathLike | None,
    required: bool | None,
) -> Settled:
    """Returns what the clips of these names are left with: their `own` captions, or those that a table has for them.

    The same holds for those of windows. Captions that are `required` are so of every clip; None: if any has some.
    """
    told = Told() if table is None else look_up(read_named(table), Names(names))
    captions = [told.captions.get(name, one) for name, one in zip(names, own, strict=True)]
    merged = {name: windows.get(name, {}) | told.windows.get(name, {}) for name in (*windows, *told.windows)}
    is_told = [bool(one[0]) or name in merged for name, one in zip(names, captions, strict=True)]
    required = any(is_told) if required is None else required
    return Settled(
        captions=captions,
        retold=told.clips,
        kept=[number for number, is_one in enumerate(is_told) if is_one or not required],
        windows=merged,
        uncaptioned=[name for name, is_one in zip(names, is_told, strict=True) if not is_one],
        missing=told.missing,
        required=required,
    )


def read_named(captions: str | os.PathLike, folder: AnyPath | None = None) -> dict[str, list[Written]]:
    """Returns what the table that a config names says: a path, or a name in `folder`.

    Raises `UserError` where there is none, or it cannot be understood.
    """
    return from_named(read_table, captions, folder)


def from_named(read: Callable[[AnyPath], Read], captions: str | os.PathLike, folder: AnyPath | None) -> Read:
    """Returns what `read` has of the table that a config names, as `read_named`."""
    with reaching(captions):
        path, where = place(captions), "does not exist"
        if folder is not None and not is_there(path):
            path, where = folder / os.fspath(captions), f"does not exist, neither here nor in {folder}"
        if not path.is_file():
            raise UserError(f"the caption file {captions} {where}")
        if path.suffix.lower() not in TABLE_SUFFIXES:
            raise UserError(f"the caption file {path} must end in {' or '.join(TABLE_SUFFIXES)}")
        return read(path)


def _cleaned(written: Mapping[Name, list[Written]]) -> dict[Name, Captions]:
    """Returns the cleaned captions of what has some."""
    cleaned = {name: clean_captions(texts) for name, texts in written.items()}
    return {name: captions for name, captions in cleaned.items() if captions[0]}
