"""Where clips come from: anything with a length, an index, a name and an origin for each clip."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar, Unpack

import grain
import numpy as np

from sora_jax.data.clips import BadClip, Clip
from sora_jax.data.media.video_io import check_bytes
from sora_jax.data.sources.decoded import DecodedSource, SourceLimits
from sora_jax.data.sources.folder_captions import read_captions
from sora_jax.data.sources.remote import is_remote, place, reaching, read_whole

T = TypeVar("T")
# Rates of a video and of what lies beside it are the same within this share: forms of files round them differently.
_SAME_RATE = 0.1


class Source(Protocol):
    """A fixed list of clips in a fixed order; the same index always gives the same clip."""

    def __len__(self) -> int:
        """Returns the number of clips, unusable ones included."""
        ...

    def __getitem__(self, index: int) -> Clip:
        """Returns a clip at its native size; raises `BadClip` when it cannot be used."""
        ...

    def source_id(self, index: int) -> str:
        """Returns the clip's name within the source, without decoding it."""
        ...

    def origin(self, index: int) -> str:
        """Returns a few characters that change whenever the clip's pixels or captions do, without decoding it."""
        ...


def digest(*facts: Any) -> str:
    """Returns the origin that facts fit for JSON amount to: 16 characters."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def fingerprint(source: Source) -> str:
    """Returns a sha256 in hex that changes whenever the list of clips, or what one of them was made from, does."""
    total = hashlib.sha256()
    for index in range(len(source)):
        total.update(json.dumps([source.source_id(index), source.origin(index)]).encode())
    return total.hexdigest()


@contextlib.contextmanager
def read_ahead(
    read: Callable[[int], T], indices: Sequence[int], *, readers: int, ahead: int = 0
) -> Iterator[Iterator[T]]:
    """Gives what `read` returns for each of `indices`, in their order, while `readers` threads are at work on the next.

    There must be at least one index, and `read` must not raise: that would end the reading. Results wait until they are
    asked for: two of each thread, or `ahead` if that is more.
    """
    options = grain.ReadOptions(num_threads=readers, prefetch_buffer_size=max(2 * readers, ahead))
    with contextlib.closing(iter(grain.MapDataset.source(indices).map(read).to_iter_dataset(options))) as results:
        yield results


class FolderSource(DecodedSource):
    """Captioned videos and images of a folder and its subfolders, decoded as `DecodedSource` says.

    How captions are written and which mistakes raise `UserError` says `folder_captions.read_captions`; what is left out
    is listed under the names of `FolderCaptions`. The folder may lie in a bucket (`remote`): then its media files are
    read whole, and decoded from memory. A clip has `beside` it what lies beside its file as one of `kinds`.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        captions: str | os.PathLike | None = None,
        kinds: Sequence[str] = (),
        **limits: Unpack[SourceLimits],
    ):
        super().__init__(**limits)
        with reaching(path):
            found = read_captions(path, captions, required=self.captions_required is True, kinds=kinds)
        if self.captions_required is None:
            self.captions_required = bool(found.by_file or found.windows)
        extra = {*found.windows, *(() if self.captions_required else found.uncaptioned)} - found.by_file.keys()
        self._root = place(path)
        self._captions = found.by_file | {name: () for name in extra}
        self._weights = found.weights
        self._windows = found.windows
        self._names = sorted(self._captions)
        self._sizes, self._beside = found.sizes, found.beside
        self.uncaptioned = list(found.uncaptioned)
        self.missing = list(found.missing)
        self.retold = found.retold
        self.previews = list(found.previews)
        self.sharing = list(found.sharing)
        self.unread = list(found.unread)
        self.heic = list(found.heic)
        self.linked = list(found.linked)
        self.account = found.account

    def __len__(self) -> int:
        return len(self._names)

    def _read(self, index: int, **options: Any) -> Clip:
        name = self._names[index]
        pixels_THWC, fps = self._decoded(name, **options)
        captions, weights, beside = self._captions[name], self._weights.get(name), dict[str, np.ndarray]()
        # What only looks at a clip, small, has no use for them.
        files = {} if "short_side" in options else self._beside.get(name, {})
        for kind, file in files.items():
            shared = {key: value for key, value in options.items() if key != "tell"}
            beside[kind], rate = self._decoded(file, **shared)
            if beside[kind].shape != pixels_THWC.shape:
                sizes = [" x ".join(map(str, one.shape[:3])) for one in (beside[kind], pixels_THWC)]
                raise BadClip(name, f"is {sizes[1]} and {file} beside it {sizes[0]} (frames x height x width)")
            # Of long videos the first frames alone are read: that there are as many says nothing of their times.
            if len(pixels_THWC) > 1 and abs(rate - fps) > _SAME_RATE * fps:
                raise BadClip(name, f"has {fps:g} frames per second and {file} beside it {rate:g}")
        return Clip(pixels_THWC=pixels_THWC, fps=fps, captions=captions, weights=weights, source_id=name, beside=beside)

    def _decoded(self, name: str, **options: Any) -> tuple[np.ndarray, float]:
        """Returns pixels and frames per second of a file; raises `BadClip`."""
        if self._sizes[name] is None:
            if not is_remote(self._root) and not os.path.islink(self._root / name):
                raise BadClip(name, "is not a regular file")
            raise BadClip(name, "is a link that leads nowhere, or out of the folder: make it a hard link, or a copy")
        try:
            if is_remote(self._root):
                return self._reader.read_bytes(self._fetch(name), name, **options)
            return self._reader.read_clip(self._root / name, **options)
        except BadClip as error:
            raise BadClip(name, error.reason) from error

    def _captioned(self, index: int) -> bool:
        return bool(self._captions[self._names[index]])

    def _fetch(self, name: str) -> bytes:
        check_bytes(self._sizes[name] or 0, name)
        try:
            return read_whole(self._root / name)
        except OSError as error:
            raise BadClip(name, f"cannot be read: {error.strerror or error}") from error

    def size(self, index: int) -> int | None:
        """Returns the bytes of a clip's file; None where `remote.list_folder` has none."""
        return self._sizes[self._names[index]]

    def source_id(self, index: int) -> str:
        """Returns the file's name relative to the folder, with forward slashes."""
        return self._names[index]

    def origin(self, index: int) -> str:
        """Returns a digest of the file's size, captions, weights and files beside it; not of when it was touched."""
        name = self._names[index]
        facts = (self._sizes[name], self._captions[name], self._weights.get(name))
        beside = [(kind, self._sizes[file]) for kind, file in sorted(self._beside.get(name, {}).items())]
        return digest(*facts, *self._facts_of_windows(index), *([beside] if beside else []))
