"""The media files of a folder and what is written about them, in a table or beside each of them.

Nothing that lies in the folder is passed over without a word: what is no clip is listed under the reason.
"""

import collections
import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from absl import logging

from sora_jax.core.errors import UserError
from sora_jax.core.printable import printable
from sora_jax.data.clips import FrameRange
from sora_jax.data.media.file_kinds import HEIC_REMEDY, MEDIA_SUFFIXES, suffix_of
from sora_jax.data.sources.account import account
from sora_jax.data.sources.beside import find_beside, names_beside, place_named
from sora_jax.data.sources.caption_lookup import Names, from_named, look_up, read_named, window_named, within
from sora_jax.data.sources.caption_tables import (
    MOST_CAPTION_BYTES,
    NAMES_FILE,
    TABLE_NAMES,
    TEXTS_FILES,
    Written,
    read_beside,
    read_files_beside,
    read_lines,
    read_table,
)
from sora_jax.data.sources.pairing import TEXT_SUFFIXES, FolderFiles, Paired, by_key, heic_of, pair, windows_beside
from sora_jax.data.sources.remote import (
    AnyPath,
    Listing,
    is_folder,
    list_folder,
    passed_over,
    place,
    read_whole,
)
from sora_jax.data.tokens import Captions

# Files in buckets and on network disks take a round trip each.
_THREADS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderCaptions:
    """The media files of a folder and what is written about them; names are relative, with forward slashes.

    `by_file` maps each captioned file to its cleaned captions, in sorted order of names. `weights` has those files
    whose captions are not drawn alike: a number above 0 for each caption. `sizes` has the bytes of each media file,
    None as in `remote.list_folder`. `beside` has the files beside media files, by kind.

    The others are sorted names of what is left out: `uncaptioned` media files about which nothing is written,
    `previews` pictures of videos that are there, `sharing` media files whose caption another clip has, `unread` files
    with captions whose ending is not read, `heic` pictures of that kind, captioned or not, `missing` names with
    captions but no file, `linked` folders behind links.
    `account` is a line about all files that are there.

    `windows` has the captions of windows of files, by file, first and last frame, where a table names
    "FILE#FIRST-LAST". `retold` is how many files the table that was given names, themselves or windows of them.
    """

    by_file: dict[str, tuple[str, ...]]
    weights: dict[str, tuple[float, ...]]
    windows: dict[str, dict[FrameRange, Captions]]
    retold: int
    sizes: dict[str, int | None]
    beside: dict[str, dict[str, str]]
    uncaptioned: tuple[str, ...]
    previews: tuple[str, ...]
    sharing: tuple[str, ...]
    unread: tuple[str, ...]
    heic: tuple[str, ...]
    missing: tuple[str, ...]
    linked: tuple[str, ...]
    account: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Found:
    """Captions by media file, and what is left out as `FolderCaptions` has it."""

    captions: dict[str, Captions]
    windows: dict[str, dict[FrameRange, Captions]] = dataclasses.field(default_factory=dict)
    previews: list[str] = dataclasses.field(default_factory=list)
    sharing: list[str] = dataclasses.field(default_factory=list)
    unread: list[str] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)
    retold: int = 0


def read_captions(
    folder: str | os.PathLike,
    captions: str | os.PathLike | None = None,
    *,
    required: bool = True,
    kinds: Sequence[str] = (),
) -> FolderCaptions:
    """Returns the captions of every media file under `folder`, and the names without a partner.

    Those of the file `captions`, if it is given, stand in place of what the folder says, of the files that it names.
    That is read from the first that exists: one of `caption_tables.TABLE_NAMES` in the folder, a list of files and one
    of captions beside it (`caption_tables.read_lines`), or the texts beside the media files (`pairing`). A table in a
    subfolder counts for what lies in that. A file on several lines of a table has several captions. Hidden files and
    folders are left out, and so is what lies beside clips as one of `kinds` (`sources.beside`).

    Raises `UserError` when the folder does not exist or holds no media, a caption file cannot be understood
    (with its line number) or, where captions are `required`, no media file has one, or none in the file `captions`.
    """
    root = place(folder)
    if not is_folder(root):
        raise UserError(f"the folder {root} does not exist: pass --config.data.path=DIR with your clips")
    every = list_folder(root)
    beside, others = _beside(root, captions, every, kinds)
    listing = every._replace(sizes={name: size for name, size in every.sizes.items() if name not in others})
    media = [name for name in listing.sizes if suffix_of(name) in MEDIA_SUFFIXES]
    heic = sorted(name for files in by_key(listing.sizes) for name in heic_of(files))
    if not media:
        raise UserError(_no_media(root, listing, heic))
    tables = _tables(root, listing) if captions is None else {"": read_named(captions, root)}
    found = _read_tables(root, tables, listing)
    if required and not found.captions and not found.windows:
        raise UserError(_nothing_found(root, captions, media=media, found=found))
    found = found if captions is None else _with_own(root, found, listing)
    uncaptioned = _uncaptioned(media, found)
    return FolderCaptions(
        by_file={name: found.captions[name][0] for name in sorted(found.captions)},
        weights={name: weights for name, (_, weights) in found.captions.items() if weights},
        windows=found.windows,
        retold=found.retold,
        sizes={name: every.sizes[name] for name in (*media, *others)},
        beside=beside,
        uncaptioned=uncaptioned,
        previews=tuple(sorted(found.previews)),
        sharing=tuple(sorted(found.sharing)),
        unread=tuple(sorted(set(found.unread).difference(heic))),
        heic=tuple(heic),
        missing=tuple(sorted(found.missing)),
        linked=tuple(listing.linked),
        account=_account(listing, found, uncaptioned),
    )


def _beside(
    root: AnyPath, captions: str | os.PathLike | None, listing: Listing, kinds: Sequence[str]
) -> tuple[dict[str, dict[str, str]], set[str]]:
    """Returns the files beside media files by kind, those that a table names before those of such a name; and all."""
    if not kinds:
        return {}, set()
    read = functools.partial(read_files_beside, kinds=kinds)
    tables = {} if captions is None else {".": from_named(read, captions, root)}
    for folder, (first, *_) in _table_files(root, listing).items():
        if len(first) == 1:
            tables[folder] = read(root / first[0])
    named, lost = place_named(tables, listing.sizes)
    if lost:
        said = "%s: %d files that tables name beside clips are not there, and these go without: %s"
        logging.warning(said, root, len(lost), printable(lost[0]))
    by_name = find_beside(listing.sizes, kinds)
    found = {name: by_name.get(name, {}) | named.get(name, {}) for name in by_name | named}
    return found, names_beside(listing.sizes, kinds).union(*(files.values() for files in named.values()))


def _with_own(root: AnyPath, told: _Found, listing: Listing) -> _Found:
    """Returns what a table told that stands beside the folder, and of files that it does not name what the folder says.

    Of files that it names no text is read, and no table where it names every file.
    """
    told = dataclasses.replace(told, retold=len(told.captions.keys() | told.windows.keys()))
    if all(name in told.captions for name in listing.sizes if suffix_of(name) in MEDIA_SUFFIXES):
        return told
    own = _read_tables(root, _tables(root, listing), listing, told)
    windows = {name: own.windows.get(name, {}) | told.windows.get(name, {}) for name in (*own.windows, *told.windows)}
    return dataclasses.replace(
        told,
        captions=own.captions | told.captions,
        windows=windows,
        previews=[name for name in own.previews if name not in told.captions],
        sharing=[name for name in own.sharing if name not in told.captions],
        unread=[*told.unread, *own.unread],
        missing=sorted({*told.missing, *own.missing}),
    )


def _uncaptioned(media: Sequence[str], found: _Found) -> tuple[str, ...]:
    placed = {*found.captions, *found.windows, *found.previews, *found.sharing}
    return tuple(name for name in media if name not in placed)


def _account(listing: Listing, found: _Found, uncaptioned: Sequence[str]) -> str:
    return account(
        collections.Counter(map(suffix_of, listing.sizes)),
        captioned=len({*found.captions, *found.windows}),
        uncaptioned=len(uncaptioned),
        previews=len(found.previews),
        sharing=len(found.sharing),
        linked=listing.linked,
    )


def _table_files(root: AnyPath, listing: Listing) -> dict[str, list[tuple[str, ...]]]:
    """Returns the tables of each folder that has some, the one that is read first; the folders in sorted order.

    One is a file, or a list of names and one of captions. Raises `UserError` for one that cannot be read.
    """
    there: dict[str, dict[str, str]] = {}
    for name in listing.sizes:
        folder, _, last = name.rpartition("/")
        if last.lower() in (*TABLE_NAMES, *TEXTS_FILES, NAMES_FILE):
            there.setdefault(folder, {})[last.lower()] = name
    files = {}
    for folder, names in sorted(there.items()):
        lists = [(names[NAMES_FILE], names[name]) for name in TEXTS_FILES if name in names and NAMES_FILE in names]
        found = [*((names[name],) for name in TABLE_NAMES if name in names), *lists]
        for name in (name for one in found for name in reversed(one)):
            if listing.sizes[name] is None:
                wrong = "is a link that leads nowhere, or out of the folder, or is no regular file"
                raise UserError(f"{root / name} {wrong}: put a copy there")
        if found:
            files[folder] = found
    return files


def _tables(root: AnyPath, listing: Listing) -> dict[str, dict[str, list[Written]]]:
    """Returns what the table of each folder that has one says, "" being `root`; the others there are named."""
    tables = {}
    for folder, (first, *others) in _table_files(root, listing).items():
        if others:
            passed = ", ".join(other[-1] for other in others)
            logging.warning("%s: %s is read and %s passed over: keep one", root, first[-1], passed)
        paths = [root / name for name in first]
        tables[folder] = read_lines(*paths) if len(paths) == 2 else read_table(*paths)
    return tables


def _read_tables(
    root: AnyPath, tables: Mapping[str, Mapping[str, list[Written]]], listing: Listing, known: _Found | None = None
) -> _Found:
    """Returns the captions of the files in folders that have tables, and of those beside media files elsewhere.

    Texts beside media files that have captions in `known` are not read, and what stands for these is of no use.
    Names in a table are relative to its folder. Of several tables that name a file that of the outermost folder counts.
    """
    elsewhere = {name: size for name, size in listing.sizes.items() if tables.keys().isdisjoint(_folders_of(name))}
    found = _read_beside(root, Listing(elsewhere, listing.linked), known or _Found(captions={}))
    media = Names(name for name in listing.sizes if suffix_of(name) in MEDIA_SUFFIXES)
    every = Names(listing.sizes)
    for folder, table in tables.items():
        told = look_up(table, media, folder)
        twice = [name for name in told.captions if name in found.captions]
        twice += [name for name, own in told.windows.items() if own.keys() & found.windows.get(name, {}).keys()]
        if twice:
            said = "%s: the captions of %d files in the table in %s are passed over, since they have others: %s"
            logging.warning(said, root, len(twice), printable(folder), printable(twice[0]))
        found.captions.update({name: one for name, one in told.captions.items() if name not in found.captions})
        for name, own in told.windows.items():
            found.windows[name] = own | found.windows.get(name, {})
        for name in told.missing:
            file = every.find(name, folder) or every.find((window_named(name) or (name,))[0], folder)
            (found.missing if file is None else found.unread).append(file or within(folder, name))
    return found


def _folders_of(name: str) -> list[str]:
    """Returns the folders in which a file lies, the outermost first, which is ""."""
    parts = name.split("/")
    return ["/".join(parts[:depth]) for depth in range(len(parts))]


def _read_beside(root: AnyPath, listing: Listing, known: _Found) -> _Found:
    """Returns the captions in files beside the media files, as `_read_tables`."""
    # What a link out of the folder leads to, such as a key or the environment, is no caption.
    there = {name for name, size in listing.sizes.items() if size is not None}
    read = functools.partial(_read_text, root, listing.sizes)

    def pair_up(files: FolderFiles) -> Paired:
        texts = tuple(text for text in files.texts if text in there)
        return pair(dataclasses.replace(files, texts=texts), read, told=known.captions.keys())

    media = {name for name in listing.sizes if suffix_of(name) in MEDIA_SUFFIXES}
    with ThreadPoolExecutor(_THREADS) as pool:
        beside = windows_beside(sorted(there), media)
        of_windows = beside.names()
        windows = beside.read(read, each=pool.map, known=known.windows)
        found = _Found(captions={}, windows=windows, missing=beside.lost)
        for paired in pool.map(pair_up, by_key(name for name in listing.sizes if name not in of_windows)):
            found.captions.update(paired.captions)
            found.previews.extend(paired.thumbnails)
            found.sharing.extend(paired.sharing)
            found.unread.extend(paired.unread)
            found.missing.extend(paired.unused)
    return found


def _read_text(root: AnyPath, sizes: Mapping[str, int | None], name: str) -> list[Written]:
    """Returns what a file beside a clip says; raises `UserError` where it cannot be understood."""
    if (sizes[name] or 0) > MOST_CAPTION_BYTES:
        size = f"{sizes[name]} bytes, over the {MOST_CAPTION_BYTES} of a caption"
        raise UserError(f"{root / name} has {size}: shorten or rename it")
    try:
        return read_beside(name, read_whole(root / name))
    except UnicodeDecodeError as error:
        raise UserError(f"{root / name} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    except ValueError as error:
        raise UserError(f"{root / name} cannot be read as captions ({error}): mend or remove it") from error


def _no_media(root: AnyPath, listing: Listing, heic: Sequence[str]) -> str:
    """Returns the sentence for a folder without media files."""
    endings = f"{', '.join(sorted(MEDIA_SUFFIXES))}){passed_over(listing.linked)}"
    endings += f"; {len(heic)} are HEIC pictures such as {heic[0]}: {HEIC_REMEDY}" if heic else ""
    return f"the folder {root} holds {len(listing.sizes)} files but no video or image ({endings}"


def _nothing_found(root: AnyPath, captions: str | os.PathLike | None, *, media: list[str], found: _Found) -> str:
    """Returns the sentence for a folder in which no media file has a caption."""
    looked = (
        f"the caption file {captions}"
        if captions is not None
        else f"{', '.join(TABLE_NAMES)}, {NAMES_FILE} with {TEXTS_FILES[0]}, and a {' or '.join(TEXT_SUFFIXES)} file "
        "beside each clip"
    )
    others = [*found.unread, *found.missing]
    named = f"; the captions name {len(others)} other files such as {others[0]}" if others else ""
    named += ", whose ending is not read" if found.unread else ""
    return (
        f"none of the {len(media)} media files in {root} has a caption{named}; looked for {looked}: "
        f'write captions.jsonl with lines like {{"file": "{media[0]}", "caption": "..."}}'
    )
