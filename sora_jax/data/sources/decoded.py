"""What sources of media files share: how a clip, a window of it and its thumbnails are asked for."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, TypedDict, Unpack

from sora_jax.data.clips import BadClip, Clip, FrameRange
from sora_jax.data.media.guarded import ReaderPool
from sora_jax.data.media.pictures import MAX_PIXELS
from sora_jax.data.tokens import Captions


class SourceLimits(TypedDict, total=False):
    """What is read of each clip: at most `max_frames` frames, of faster ones `fps` a second, `max_pixels` T * H * W.

    Clips without a caption are left out, or bad where only decoding tells, unless `captions_required` is False; with
    None they are needed as soon as any clip has one.
    """

    max_frames: int | None
    max_pixels: int
    fps: float | None
    captions_required: bool | None


class DecodedSource(abc.ABC):
    """Clips in media files, decoded one by one when asked for.

    Decoding is done by child processes (`guarded.GuardedReader`), one for each thread that asks at the same time.
    """

    def __init__(self, **limits: Unpack[SourceLimits]):
        self.captions_required = limits.get("captions_required", True)
        self.retold = 0  # clips that a table given beside the source names, themselves or windows of them
        self._windows: Mapping[str, Mapping[FrameRange, Captions]] = {}  # by the name of the clip
        self._max_frames = limits.get("max_frames")
        self._limits: dict[str, Any] = {"max_pixels": limits.get("max_pixels", MAX_PIXELS), "fps": limits.get("fps")}
        self._reader = ReaderPool()

    @abc.abstractmethod
    def _read(self, index: int, **options: Any) -> Clip:
        """Returns a clip, read with these options of `video_io.read_stream` and `tell`; raises `BadClip`."""

    @abc.abstractmethod
    def _captioned(self, index: int) -> bool:
        """Returns whether a clip as a whole has a caption."""

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
        if self.captions_required and self.captioned_windows(index) and not self._captioned(index):
            reason = "has captions of windows only: set data.curation as it was when they were cut"
            raise BadClip(self.source_id(index), reason)
        there: list[int] = []
        clip = self._read(index, **self._limits, max_frames=self._max_frames, tell=there.append)
        frames = len(clip.pixels_THWC)
        # Where reading has come to the end, headers that say otherwise are wrong.
        return dataclasses.replace(clip, file_frames=max([frames, *there]) if frames == self._max_frames else frames)

    def window(self, index: int, first: int, last: int) -> Clip:
        """Returns frames `first` to `last`, both included, of a clip, whatever `max_frames` is; raises `BadClip`.

        It has captions of its own, or else those of the clip.
        """
        clip = self._read(index, **self._limits, window=(first, last))
        own = self._windows.get(clip.source_id, {}).get((first, last))
        return clip if own is None else dataclasses.replace(clip, captions=own[0], weights=own[1])

    def lacks_caption(self, index: int, first: int, last: int) -> bool:
        """Returns whether a window would have no caption though captions are required."""
        return (
            bool(self.captions_required)
            and (first, last) not in self.captioned_windows(index)
            and not self._captioned(index)
        )

    def captioned_windows(self, index: int) -> frozenset[FrameRange]:
        """Returns the first and last frames of the windows of a file that have captions of their own."""
        return frozenset(self._windows.get(self.source_id(index), ()))

    def _facts_of_windows(self, index: int) -> list[Any]:
        """Returns what the captions of a clip's windows add to its origin."""
        own = self._windows.get(self.source_id(index))
        return [] if own is None else [sorted(own.items())]

    def thumbnails(self, index: int, *, short_side: int) -> Clip:
        """Returns all frames of a clip, scaled down to `short_side` px as they are decoded; raises `BadClip`."""
        return self._read(index, **self._limits, short_side=short_side)
