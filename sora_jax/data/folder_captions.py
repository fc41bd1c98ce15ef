"""The media files of a folder and what is written about them, in a table or beside each of them.

Nothing that lies in the folder is passed over without a word: what is no clip is listed under the reason.
"""

import collections
import dataclasses
import functools
import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from absl import logging

from sora_jax.core.errors import UserError
from sora_jax.data.account import account
from sora_jax.data.caption_tables import (
    MOST_CAPTION_BYTES,
    NAMES_FILE,
    TABLE_NAMES,
    TABLE_SUFFIXES,
    TEXTS_FILES,
    Written,
    read_beside,
    read_lines,
    read_table,
)
from sora_jax.data.captions import Captions, clean_captions
from sora_jax.data.file_kinds import HEIC_REMEDY, MEDIA_SUFFIXES, suffix_of
from sora_jax.data.pairing import TEXT_SUFFIXES, Files, Paired, by_key, heic_of, pair
from sora_jax.data.remote import (
    AnyPath,
    Listing,
    is_folder,
    is_there,
    list_folder,
    passed_over,
    place,
    reaching,
    read_file,
)

# As curation names a window of a file, frames from 0 and both included.
_WINDOW = re.compile(r"(.+)#(\d{1,9})-(\d{1,9})", re.DOTALL)
# Files in buckets and on network disks take a round trip each.
_THREADS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderCaptions:
    """The media files of a folder and what is written about them; names are relative, with forward slashes.

    `by_file` maps each captioned file to its cleaned captions, in sorted order of names. `weights` has those files
    whose captions are not drawn alike: a number above 0 for each caption. `sizes` has the bytes of each media file,
    None for a link that leads nowhere, or out of the folder.

    The others are sorted names of what is left out: `uncaptioned` media files about which nothing is written,
    `previews` pictures of videos that are there, `sharing` media files whose caption another clip has, `unread` files
    with captions whose ending is not read, `heic` pictures of that kind, captioned or not, `missing` names with
    captions but no file, `linked` folders behind links.
    `account` is a line about all files that are there.

    `windows` has the captions of windows of files, by file, first and last frame, where a table names
    "FILE#FIRST-LAST".
    """

    by_file: dict[str, tuple[str, ...]]
    weights: dict[str, tuple[float, ...]]
    windows: dict[str, dict[tuple[int, int], Captions]]
    sizes: dict[str, int | None]
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
    windows: dict[str, dict[tuple[int, int], Captions]] = dataclasses.field(default_factory=dict)
    previews: list[str] = dataclasses.field(default_factory=list)
    sharing: list[str] = dataclasses.field(default_factory=list)
    unread: list[str] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)


def read_captions(
    folder: str | os.PathLike, captions: str | os.PathLike | None = None, *, required: bool = True
) -> FolderCaptions:
    """Returns the captions of every media file under `folder`, and the names without a partner.

    Read from the first that exists: the file `captions`, one of `caption_tables.TABLE_NAMES` in the folder, a list of
    files and one of captions beside it (`caption_tables.read_lines`), or the texts beside the media files (`pairing`).
    A file on several lines of a table has several captions. Hidden files and folders are left out.

    Raises `UserError` when the folder does not exist or holds no media, a caption file cannot be understood
    (with its line number) or, where captions are `required`, no media file has one.
    """
    root = place(folder)
    if not is_folder(root):
        raise UserError(f"the folder {root} does not exist: pass --config.data.path=DIR with your clips")
    listing = list_folder(root)
    media = [name for name in listing.sizes if suffix_of(name) in MEDIA_SUFFIXES]
    heic = sorted(name for files in by_key(listing.sizes) for name in heic_of(files))
    if not media:
        endings = f"{', '.join(sorted(MEDIA_SUFFIXES))}){passed_over(listing.linked)}"
        endings += f"; {len(heic)} are HEIC pictures such as {heic[0]}: {HEIC_REMEDY}" if heic else ""
        raise UserError(f"the folder {root} holds {len(listing.sizes)} files but no video or image ({endings}")
    table = _read_table(root, captions, listing)
    found = _read_beside(root, listing) if table is None else _look_up(table, listing.sizes)
    if required and not found.captions and not found.windows:
        raise UserError(_nothing_found(root, captions, media=media, found=found))
    placed = {*found.captions, *found.windows, *found.previews, *found.sharing}
    uncaptioned = tuple(name for name in media if name not in placed)
    return FolderCaptions(
        by_file={name: found.captions[name][0] for name in sorted(found.captions)},
        weights={name: weights for name, (_, weights) in found.captions.items() if weights},
        windows=found.windows,
        sizes={name: listing.sizes[name] for name in media},
        uncaptioned=uncaptioned,
        previews=tuple(sorted(found.previews)),
        sharing=tuple(sorted(found.sharing)),
        unread=tuple(sorted(set(found.unread).difference(heic))),
        heic=tuple(heic),
        missing=tuple(sorted(found.missing)),
        linked=tuple(listing.linked),
        account=account(
            collections.Counter(map(suffix_of, listing.sizes)),
            captioned=len({*found.captions, *found.windows}),
            uncaptioned=len(uncaptioned),
            previews=len(found.previews),
            sharing=len(found.sharing),
            linked=listing.linked,
        ),
    )


def _read_table(root: AnyPath, captions: str | os.PathLike | None, listing: Listing) -> dict[str, list[Written]] | None:
    """Returns what the table that is named or, of those that are looked for, comes first says; None without one."""
    if captions is not None:
        with reaching(captions):
            path = place(captions) if is_there(place(captions)) else root / os.fspath(captions)
            if not path.is_file():
                raise UserError(f"the caption file {captions} does not exist, neither here nor in {root}")
            if path.suffix.lower() not in TABLE_SUFFIXES:
                raise UserError(f"the caption file {path} must end in {' or '.join(TABLE_SUFFIXES)}")
            return read_table(path)
    there = {name.lower(): name for name in listing.sizes if "/" not in name}
    tables = [there[name] for name in TABLE_NAMES if name in there]
    lines = [there[name] for name in TEXTS_FILES if name in there and NAMES_FILE in there]
    for name in (*tables, *lines, *(there[NAMES_FILE] for _ in lines)):
        if listing.sizes[name] is None:
            raise UserError(f"{root / name} is a link that leads nowhere, or out of the folder: put a copy there")
    if len(tables) + len(lines) > 1:
        first, *others = (*tables, *lines)
        logging.warning("%s: %s is read and %s passed over: keep one", root, first, ", ".join(others))
    if tables:
        return read_table(root / tables[0])
    return read_lines(root / there[NAMES_FILE], root / lines[0]) if lines else None


def _look_up(table: Mapping[str, list[Written]], names: Iterable[str]) -> _Found:
    """Returns the captions of a table by the names of the files that it means."""
    known = {unicodedata.normalize("NFC", name): name for name in names} | {name: name for name in names}
    written: dict[str, list[Written]] = {}
    found = _Found(captions={})
    for name, texts in table.items():
        file = known.get(name) or known.get(unicodedata.normalize("NFC", name))
        window = _WINDOW.fullmatch(name) if file is None else None
        if window is not None:
            file = known.get(window[1]) or known.get(unicodedata.normalize("NFC", window[1]))
        if file is None:
            found.missing.append(name)
        elif suffix_of(file) not in MEDIA_SUFFIXES:
            found.unread.append(file)
        elif window is not None:
            captions = clean_captions(texts)
            if captions[0]:
                found.windows.setdefault(file, {})[int(window[2]), int(window[3])] = captions
        else:
            written.setdefault(file, []).extend(texts)
    cleaned = {name: clean_captions(texts) for name, texts in written.items()}
    found.captions.update({name: captions for name, captions in cleaned.items() if captions[0]})
    return found


def _read_beside(root: AnyPath, listing: Listing) -> _Found:
    """Returns the captions in files beside the media files."""
    # What a link out of the folder leads to, such as a key or the environment, is no caption.
    there = {name for name, size in listing.sizes.items() if size is not None}
    read = functools.partial(_read_text, root, listing.sizes)

    def pair_up(files: Files) -> Paired:
        return pair(dataclasses.replace(files, texts=tuple(text for text in files.texts if text in there)), read)

    stems = {name.rpartition(".")[0] for name in there if suffix_of(name) in MEDIA_SUFFIXES}
    windows = {name: stem for name in there if (stem := _window_of(name, there)) is not None and stem not in stems}
    with ThreadPoolExecutor(_THREADS) as pool:
        texts: dict[str, list[Written]] = {}
        for stem, written in zip(windows.values(), pool.map(read, windows), strict=True):
            texts.setdefault(stem, []).extend(written)
        found = _Found(captions={}, windows=_look_up(texts, there).windows)
        for paired in pool.map(pair_up, by_key(name for name in listing.sizes if name not in windows)):
            found.captions.update(paired.captions)
            found.previews.extend(paired.thumbnails)
            found.sharing.extend(paired.sharing)
            found.unread.extend(paired.unread)
            found.missing.extend(paired.unused)
    return found


def _window_of(text: str, there: Collection[str]) -> str | None:
    """Returns the window of a file that is there whose captions a text holds by its name, `FILE#FIRST-LAST.txt`."""
    stem = text.rpartition(".")[0]
    window = _WINDOW.fullmatch(stem) if suffix_of(text) in TEXT_SUFFIXES else None
    return stem if window is not None and window[1] in there else None


def _read_text(root: AnyPath, sizes: Mapping[str, int | None], name: str) -> list[Written]:
    """Returns what a file beside a clip says; raises `UserError` where it cannot be understood."""
    if (sizes[name] or 0) > MOST_CAPTION_BYTES:
        size = f"{sizes[name]} bytes, over the {MOST_CAPTION_BYTES} of a caption"
        raise UserError(f"{root / name} has {size}: shorten or rename it")
    try:
        return read_beside(name, read_file(root / name))
    except UnicodeDecodeError as error:
        raise UserError(f"{root / name} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    except ValueError as error:
        raise UserError(f"{root / name} cannot be read as captions ({error}): mend or remove it") from error


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
