"""Clips in tar files, as WebDataset lays them out, read where they lie.

Members of a tar that share a key make a sample: a media file and what is written about it (`pairing`). Unlike in
https://github.com/webdataset/webdataset, the members of a sample need not be neighbours, names may have dots in them,
and every sample has an index of its own: headers are read once, then a clip is decoded from its place in the tar.
"""

import collections
import dataclasses
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, NamedTuple, Unpack

from sora_jax.core.errors import UserError
from sora_jax.data.clips import BadClip, Clip, FrameRange
from sora_jax.data.media import file_kinds, video_io
from sora_jax.data.sources.account import account
from sora_jax.data.sources.base import digest
from sora_jax.data.sources.caption_lookup import settle_captions
from sora_jax.data.sources.caption_tables import MOST_CAPTION_BYTES, Written, read_beside
from sora_jax.data.sources.decoded import DecodedSource, SourceLimits
from sora_jax.data.sources.pairing import by_key, heic_of, is_hidden, pair, windows_beside
from sora_jax.data.sources.remote import AnyPath, open_file, reaching, read_at
from sora_jax.data.sources.tar_index import Member, TarDamage, read_section, walk_tar
from sora_jax.data.sources.tar_paths import THREADS, find_tars
from sora_jax.data.tokens import NO_CAPTIONS, Captions

_AHEAD = 2**18  # bytes; the headers and the captions of a sample mostly lie in one piece


class _Sample(NamedTuple):
    """Where a sample's media file lies, and its captions."""

    tar: int
    offset: int
    size: int
    name: str
    captions: tuple[str, ...]
    weights: tuple[float, ...] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Contents:
    """What one tar of `length` bytes holds; the lists are of names, those in `damaged` are sentences.

    `samples` are all media files that are clips, captioned or not, `windows` captions of windows by their names.
    """

    length: int
    endings: collections.Counter[str]
    samples: list[_Sample] = dataclasses.field(default_factory=list)
    windows: dict[str, dict[FrameRange, Captions]] = dataclasses.field(default_factory=dict)
    missing: list[str] = dataclasses.field(default_factory=list)
    previews: list[str] = dataclasses.field(default_factory=list)
    sharing: list[str] = dataclasses.field(default_factory=list)
    unread: list[str] = dataclasses.field(default_factory=list)
    heic: list[str] = dataclasses.field(default_factory=list)
    damaged: list[str] = dataclasses.field(default_factory=list)


class TarSource(DecodedSource):
    """Captioned videos and images in the tar files that `path` stands for: one tar, a folder or a pattern.

    Samples come in the order of the tars and of their members. Which captions belong to which media file, or window of
    it, `pairing` says, what is read of them `caption_tables.read_beside`. The table `captions`, if there is one, has
    others for the clips that it names, as `source_id` does, and for windows of them.

    What is left out is listed: `uncaptioned` media files without captions, `missing` keys without a media file (links
    and sparse files count as none) and texts without one, `previews` pictures of videos that are there, `sharing` media
    files whose caption another clip has, `unread` captioned files whose ending is not read, `heic` pictures of that
    kind, captioned or not, `linked` folders behind links. `damaged` says in sentences what could not be read, with tar
    and offset: of a tar that is cut off or damaged, every whole sample before that place is used.

    `path` may lie in a bucket (`remote`): then headers and clips are read from there in pieces.

    Raises `UserError` when `path` stands for no tar, a tar of a numbered pattern does not exist, a tar is compressed,
    or no sample is left.
    """

    def __init__(
        self, path: str | os.PathLike, *, captions: str | os.PathLike | None = None, **limits: Unpack[SourceLimits]
    ):
        super().__init__(**limits)
        with reaching(path):
            self._paths, labels, self.linked = find_tars(path)
            with ThreadPoolExecutor(THREADS) as pool:
                contents = list(pool.map(_read_contents, itertools.count(), self._paths, labels))
        self._lengths = [tar.length for tar in contents]
        self._labels = labels
        self._samples = [sample for tar in contents for sample in tar.samples]
        settled = settle_captions(
            list(map(self.source_id, range(len(self._samples)))),
            [(sample.captions, sample.weights) for sample in self._samples],
            {name: found for tar in contents for name, found in tar.windows.items()},
            table=captions,
            required=self.captions_required,
        )
        for number, (texts, weights) in enumerate(settled.captions):
            self._samples[number] = self._samples[number]._replace(captions=texts, weights=weights)
        self._samples = [self._samples[number] for number in settled.kept]
        self._windows, self.captions_required = settled.windows, settled.required
        self.retold = settled.retold
        self.uncaptioned = settled.uncaptioned
        self.missing = [*(name for tar in contents for name in tar.missing), *settled.missing]
        self.previews = [name for tar in contents for name in tar.previews]
        self.sharing = [name for tar in contents for name in tar.sharing]
        self.unread = [name for tar in contents for name in tar.unread]
        self.heic = [name for tar in contents for name in tar.heic]
        self.damaged = [sentence for tar in contents for sentence in tar.damaged]
        self.account = account(
            sum((tar.endings for tar in contents), collections.Counter[str]()),
            captioned=len(settled.captions) - len(self.uncaptioned),
            uncaptioned=len(self.uncaptioned),
            previews=len(self.previews),
            sharing=len(self.sharing),
            linked=self.linked,
        )
        if not self._samples:
            raise UserError(self._nothing_found(path))

    def __len__(self) -> int:
        return len(self._samples)

    def _read(self, index: int, **options: Any) -> Clip:
        sample, name = self._samples[index], self.source_id(index)
        path, length = self._paths[sample.tar], self._lengths[sample.tar]
        video_io.check_bytes(sample.size, name)
        try:
            media = read_section(path, offset=sample.offset, size=sample.size, length=length)
        except OSError as error:
            raise BadClip(name, f"cannot be read: {error.strerror or error}") from error
        pixels_THWC, fps = self._reader.read_bytes(media, name, **options)
        return Clip(pixels_THWC=pixels_THWC, fps=fps, captions=sample.captions, weights=sample.weights, source_id=name)

    def _captioned(self, index: int) -> bool:
        return bool(self._samples[index].captions)

    def size(self, index: int) -> int:
        """Returns the bytes of a clip's media file."""
        return self._samples[index].size

    def source_id(self, index: int) -> str:
        """Returns the tar's name, a slash and the member's name."""
        sample = self._samples[index]
        return f"{self._labels[sample.tar]}/{sample.name}"

    def origin(self, index: int) -> str:
        """Returns a digest of the clip's bytes in number, captions and weights; its place in a tar does not matter."""
        sample = self._samples[index]
        return digest(sample.size, sample.captions, sample.weights, *self._facts_of_windows(index))

    def _nothing_found(self, path: str | os.PathLike) -> str:
        """Returns the sentence for tars without a single sample."""
        first = next(iter(self.damaged + self.uncaptioned + self.missing), "they are empty")
        return (
            f"the {len(self._paths)} tars of {os.fspath(path)} hold no captioned clip: {len(self.uncaptioned)} media "
            f"files have no caption, {len(self.missing)} keys no media file, {len(self.damaged)} places are damaged "
            f'(the first: {first}); a sample is KEY.mp4 and KEY.txt, or KEY.json with a "caption"'
        )


def _read_contents(number: int, path: AnyPath, label: str) -> _Contents:
    """Returns what the tar `number`, called `label`, holds."""
    members: dict[str, Member] = {}
    damaged: list[str] = []
    with open_file(path, ahead=_AHEAD) as (file, length):
        try:
            for member in walk_tar(file, length):
                if member.name in members:
                    damaged.append(f"{label}: {member.name} is replaced by its namesake at byte {member.offset}")
                members[member.name] = member
        except TarDamage as damage:
            damaged.append(f"{label}: from byte {damage.offset} of {length} nothing is read: {damage.reason}")

        def read(name: str) -> list[Written]:
            try:
                return _read_captions(file, members[name])
            except ValueError as error:
                damaged.append(f"{label}: {name} at byte {members[name].offset} is passed over: {error}")
                return []

        endings = collections.Counter(file_kinds.suffix_of(name) for name in members if not is_hidden(name))
        contents = _Contents(length=length, endings=endings, damaged=damaged)
        plain = [name for name, member in members.items() if member.plain]
        clips = {name for name in plain if file_kinds.suffix_of(name) in file_kinds.MEDIA_SUFFIXES}
        beside = windows_beside(plain, clips)
        contents.windows.update({f"{label}/{name}": found for name, found in beside.read(read).items()})
        contents.missing.extend(f"{label}/{name}" for name in beside.lost)
        of_windows = beside.names()
        for files in by_key(name for name in members if name not in of_windows):
            media, texts = (tuple(n for n in names if members[n].plain) for names in (files.media, files.texts))
            heic = heic_of(files)
            paired = pair(dataclasses.replace(files, media=media, texts=texts), read)
            for name, (captions, weights) in (paired.captions | dict.fromkeys(paired.uncaptioned, NO_CAPTIONS)).items():
                contents.samples.append(
                    _Sample(number, members[name].offset, members[name].size, name, captions, weights)
                )
            for names, found in (
                (contents.missing, paired.unused if media or paired.unread or heic else [files.key]),
                (contents.unread, [name for name in paired.unread if name not in heic]),
                (contents.heic, heic),
                (contents.previews, paired.thumbnails),
                (contents.sharing, paired.sharing),
            ):
                names += [f"{label}/{name}" for name in found]
    return contents


def _read_captions(file: BinaryIO, member: Member) -> list[Written]:
    """Returns what a text member says; raises `ValueError` where it cannot be understood."""
    if member.size > MOST_CAPTION_BYTES:
        raise ValueError(f"{member.size} bytes are no caption")
    return read_beside(member.name, read_at(file, member.offset, member.size))
