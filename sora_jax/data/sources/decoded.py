"""What sources of media files share: how a clip, a window of it and its thumbnails are asked for."""

import abc
from typing import Any, TypedDict, Unpack

from sora_jax.data.clips import Clip
from sora_jax.data.media.guarded import ReaderPool
from sora_jax.data.media.video_io import MAX_PIXELS


class SourceLimits(TypedDict, total=False):
    """What is read of each clip: at most `max_frames` frames, of faster ones `fps` a second, `max_pixels` T * H * W."""

    max_frames: int | None
    max_pixels: int
    fps: float | None


class DecodedSource(abc.ABC):
    """Clips in media files, decoded one by one when asked for.

    Decoding is done by child processes (`guarded.GuardedReader`), one for each thread that asks at the same time.
    """

    def __init__(self, **limits: Unpack[SourceLimits]):
        self._max_frames = limits.get("max_frames")
        self._limits: dict[str, Any] = {"max_pixels": limits.get("max_pixels", MAX_PIXELS), "fps": limits.get("fps")}
        self._reader = ReaderPool()

    @abc.abstractmethod
    def _read(self, index: int, **options: Any) -> Clip:
        """Returns a clip, read with these options of `video_io.read_stream`; raises `BadClip`."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Returns the number of clips, unusable ones included."""

    @abc.abstractmethod
    def size(self, index: int) -> int | None:
        """Returns the bytes of a clip's file, or another number that changes when it does; None where there is none."""

    @abc.abstractmethod
    def source_id(self, index: int) -> str:
        """Returns the clip's name within the source, without decoding it."""

    @abc.abstractmethod
    def origin(self, index: int) -> str:
        """Returns a few characters that change whenever the clip's pixels or captions do, without decoding it."""

    def __getitem__(self, index: int) -> Clip:
        return self._read(index, **self._limits, max_frames=self._max_frames)

    def window(self, index: int, first: int, last: int) -> Clip:
        """Returns frames `first` to `last`, both included, of a clip, whatever `max_frames` is; raises `BadClip`."""
        return self._read(index, **self._limits, window=(first, last))

    def lacks_caption(self, index: int, first: int, last: int) -> bool:
        """Returns whether a window would have no caption though captions are required."""
        del index, first, last
        return False

    def captioned_windows(self, index: int) -> frozenset[tuple[int, int]]:
        """Returns the first and last frames of the windows of a file that have captions of their own."""
        del index
        return frozenset()

    def thumbnails(self, index: int, *, short_side: int) -> Clip:
        """Returns all frames of a clip, scaled down to `short_side` px as they are decoded; raises `BadClip`."""
        return self._read(index, **self._limits, short_side=short_side)
