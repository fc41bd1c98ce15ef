"""Which texts belong to which media files, by their names alone: one rule for folders and for tars.

Files that share a key are looked at together; the key is the name up to the first dot of its last part
(https://github.com/webdataset/webdataset, "The WebDataset Format"). Within a key a text belongs to the media file whose
name, without its ending, is the longest beginning of the text's: `take 1.2.txt` to `take 1.2.mp4`, `a.0.txt` to
`a.mp4`. One that begins like none of them belongs to the first that has none of its own: `a.txt` to `a.left.mp4`. A
picture beside a video of its name is a thumbnail. A caption is of one clip: of files that would share it the first
counts, videos before moving pictures before stills, then by name.

Names are compared in Unicode NFC: systems differ in how they write the same letter. Two that are the same in it belong
to what has their own form.
"""

import dataclasses
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence, Set

from sora_jax.data.clips import FrameRange
from sora_jax.data.media.file_kinds import DEMUXERS, HEIC_SUFFIXES, MEDIA_SUFFIXES, suffix_of
from sora_jax.data.sources.caption_lookup import Names, window_named
from sora_jax.data.sources.caption_tables import Written
from sora_jax.data.tokens import NO_CAPTIONS, Captions, clean_captions

# Of the files that may say what a clip shows; of several kinds the first in which something is written counts.
TEXT_SUFFIXES = (".txt", ".caption", ".json")
_HERE_AND_UP = (".", "..")  # in names of members of tars
_MOVING_PICTURES = (".gif", ".webp")
# What stands between a key and an ending where it is no part of the name, as in KEY.video.mp4.
_ROLE = re.compile(r"(\.[A-Za-z_]\w*)+")

_TOLD: Captions = (("",), None)

# Returns what is written in the text of this name, nothing where it cannot be read.
ReadText = Callable[[str], list[Written]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderFiles:
    """The names that share a key, in their order: media files, texts, and files of other endings."""

    key: str
    media: tuple[str, ...]
    texts: tuple[str, ...]
    others: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paired:
    """What became of the files of a key; of clips that are told of elsewhere what they would have without that.

    `captions` has the clips, each with at least one caption. `uncaptioned` are media files about which nothing is
    written. `thumbnails` are pictures of a video that is there; `sharing` are media files whose captions another clip
    has. `unused` are texts that belong to no media file; those in `unread` belong to files of an ending that is not
    read, which stand there themselves.
    """

    captions: dict[str, Captions]
    uncaptioned: tuple[str, ...]
    thumbnails: tuple[str, ...]
    sharing: tuple[str, ...]
    unread: tuple[str, ...]
    unused: tuple[str, ...]


WindowCaptions = dict[str, dict[FrameRange, Captions]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowTexts:
    """The texts of each window, by media file, and those of windows of files that are not there."""

    texts: dict[str, dict[FrameRange, list[str]]]
    lost: list[str]

    def names(self) -> set[str]:
        """Returns all of them."""
        return {*self.lost, *(name for of in self.texts.values() for texts in of.values() for name in texts)}

    def read(
        self, read: ReadText, *, each: Callable[..., Iterable[Captions]] = map, known: WindowCaptions | None = None
    ) -> WindowCaptions:
        """Returns the captions of windows by media file, where there are some; `each` does what `map` does.

        The texts of windows that have captions in `known` are not read.
        """
        places = [
            (file, window, texts)
            for file, of in self.texts.items()
            for window, texts in of.items()
            if window not in (known or {}).get(file, {})
        ]
        told: WindowCaptions = {}
        for (file, window, _), captions in zip(
            places, each(lambda place: _captions(place[2], read), places), strict=True
        ):
            if captions[0]:
                told.setdefault(file, {})[window] = captions
        return told


def is_hidden(name: str) -> bool:
    """Returns whether a file, or a folder in which it lies, is hidden."""
    return any(part.startswith(".") and part not in _HERE_AND_UP for part in name.split("/"))


def by_key(names: Iterable[str]) -> list[FolderFiles]:
    """Returns the names by their keys, in the order of the first of each.

    Hidden names and those without an ending are left out.
    """
    keys: dict[str, list[str]] = {}
    for name in names:
        key = _key(name)
        if key is not None:
            keys.setdefault(key, []).append(name)
    return [
        FolderFiles(
            key=key,
            media=tuple(name for name in members if suffix_of(name) in MEDIA_SUFFIXES),
            texts=tuple(name for name in members if suffix_of(name) in TEXT_SUFFIXES),
            others=tuple(name for name in members if suffix_of(name) not in (*MEDIA_SUFFIXES, *TEXT_SUFFIXES)),
        )
        for key, members in keys.items()
    ]


def pair(files: FolderFiles, read: ReadText, *, told: Set[str] = frozenset()) -> Paired:
    """Returns which of the files are clips, and their captions; `read` is called for the texts that are needed.

    Those of clips that are `told` of elsewhere are not: whatever they say, `_TOLD` is the caption here.
    """
    media = sorted(files.media, key=rank)
    thumbnails = _thumbnails(media, files)
    clips: dict[str, str] = {}
    for name in media:
        if name not in thumbnails:
            clips.setdefault(_as_written(name), name)
    own, loose = _own_texts(clips.values(), files.texts)
    captions = {name: _TOLD if name in told and texts else _captions(texts, read) for name, texts in own.items()}
    taken, sharing = set[str](), set[str]()
    by_stem, of_all = _ByStem(loose), None
    for name in (name for name in own if not captions[name][0]):
        # Any text may be about a name that is the key and a role.
        role = _ROLE.fullmatch(_stem(name).removeprefix(files.key)) is not None
        texts = loose if role else by_stem.beginning(name)
        if taken if role else not taken.isdisjoint(texts):
            sharing.add(name)
            continue
        if name in told:
            captions[name] = _TOLD if texts else NO_CAPTIONS
        elif role:
            of_all = captions[name] = of_all or _captions(texts, read)
        else:
            captions[name] = _captions(texts, read)
        taken.update(texts if captions[name][0] else ())
    for name in media:
        clip = clips.get(_as_written(name), name)
        if name != clip and name not in thumbnails and (captions[clip][0] or clip in sharing):
            sharing.add(name)
    left, others = [text for text in loose if text not in taken], _ByStem(files.others)
    unread = {text: others.beginning(text) for text in left}
    captioned = {name: found for name, found in captions.items() if found[0]}
    placed = captioned.keys() | sharing | thumbnails
    return Paired(
        captions=captioned,
        uncaptioned=tuple(name for name in media if name not in placed),
        thumbnails=tuple(name for name in media if name in thumbnails),
        sharing=tuple(name for name in media if name in sharing),
        unread=tuple(dict.fromkeys(other for others in unread.values() for other in others)),
        unused=tuple(text for text in left if not unread[text] and suffix_of(text) != ".json"),
    )


def windows_beside(names: Iterable[str], media: Set[str]) -> WindowTexts:
    """Returns the texts among `names` that are of windows of media files.

    One is called `FILE#FIRST-LAST.txt` after the file that it lies beside, unless a clip is called `FILE#FIRST-LAST`
    itself.
    """
    known, written, composed = Names(media), set(map(_as_written, media)), set(map(_stem, media))
    texts: dict[str, dict[FrameRange, list[str]]] = {}
    lost = []
    for name in names:
        named = window_named(_as_written(name)) if suffix_of(name) in TEXT_SUFFIXES else None
        if named is None or suffix_of(named[0]) not in MEDIA_SUFFIXES or _key(name) is None:
            continue
        if _as_written(name) in written or (_stem(name) in composed and named[0] not in media):
            continue
        if (file := known.find(named[0])) is None:
            lost.append(name)
        else:
            texts.setdefault(file, {}).setdefault(named[1], []).append(name)
    return WindowTexts(texts=texts, lost=lost)


def heic_of(files: FolderFiles) -> list[str]:
    """Returns the HEIC pictures of a key that no media file of the same name stands for."""
    stems = {_stem(name) for name in files.media}
    return [name for name in files.others if suffix_of(name) in HEIC_SUFFIXES and _stem(name) not in stems]


def _captions(texts: Sequence[str], read: ReadText) -> Captions:
    """Returns the cleaned captions of the first kind of text in which there are some, and their weights."""
    for suffix in TEXT_SUFFIXES:
        written = [one for text in texts if suffix_of(text) == suffix for one in read(text)]
        captions, weights = clean_captions(written)
        if captions:
            return captions, weights
    return NO_CAPTIONS


def _own_texts(clips: Iterable[str], texts: Iterable[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Returns the texts of each clip, whose names begin with its name, and those that begin like none."""
    own: dict[str, list[str]] = {name: [] for name in clips}
    loose, by_stem = list[str](), _ByStem(own)
    for text in texts:
        begun = by_stem.beginning(text)
        if not begun:
            loose.append(text)
            continue
        # Of two names that differ in their Unicode forms alone it belongs to the one of its own.
        written = _as_written(text)
        nearest = max(begun, key=lambda name: (len(_stem(name)), _continues(written, _as_written(name))))
        own[nearest].append(text)
    return own, loose


def _thumbnails(media: Iterable[str], files: FolderFiles) -> set[str]:
    """Returns the pictures that are of a video beside them, and have no caption that could not be the video's."""
    captioned = set(map(_stem, files.texts))
    videos = {_stem(name) for name in files.media if suffix_of(name) in DEMUXERS}
    begun = {beginning for video in videos for beginning in _beginnings(video)}
    found = set()
    for name in (name for name in media if suffix_of(name) not in DEMUXERS):
        stem = _stem(name)
        if stem in begun or (stem not in captioned and not videos.isdisjoint(_beginnings(stem))):
            found.add(name)
    return found


class _ByStem:
    """Names by what they are without their endings: a key may have thousands, such as all of a day."""

    def __init__(self, names: Iterable[str]):
        self._places: dict[str, list[tuple[int, str]]] = {}
        for place, name in enumerate(names):
            self._places.setdefault(_stem(name), []).append((place, name))

    def beginning(self, name: str) -> list[str]:
        """Returns, in their order, those whose stem is that of a name, or is where it begins before a dot."""
        found = [place for stem in _beginnings(_stem(name)) for place in self._places.get(stem, ())]
        return [one for _, one in sorted(found)]


def _beginnings(stem: str) -> list[str]:
    """Returns a stem and what is before each of its dots: those that it continues."""
    return [stem, *(stem[:place] for place, letter in enumerate(stem) if letter == ".")]


def _continues(stem: str, beginning: str) -> bool:
    """Returns whether a name is another one, or that and what follows a dot."""
    return f"{stem}.".startswith(f"{beginning}.")


def rank(name: str) -> tuple[int, str]:
    """Returns by what media files that share a name are sorted: videos before moving pictures before stills."""
    suffix = suffix_of(name)
    return 0 if suffix in DEMUXERS else 1 if suffix in _MOVING_PICTURES else 2, name


def _key(name: str) -> str | None:
    """Returns the name up to the first dot of its last part; None for a hidden file or one without an ending."""
    if is_hidden(name):
        return None
    folder, slash, last = _composed(name).rpartition("/")
    stem, dot, _ = last.partition(".")
    return f"{folder}{slash}{stem}" if stem and dot else None


def _stem(name: str) -> str:
    """Returns the name without its ending, in NFC."""
    return _composed(_as_written(name))


def _as_written(name: str) -> str:
    """Returns the name without its ending, in the Unicode form that it has."""
    return name.rpartition(".")[0]


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)
