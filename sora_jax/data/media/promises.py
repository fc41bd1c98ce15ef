"""What the headers of a video promise, and whether its frames keep it: what is cut off is not passed on as whole.

Duration times rate is no promise of frames. Where times vary (cameras in dim light, screen recordings, dropped
duplicates) there are fewer, and the duration of a container is that of its longest stream. So a video is cut off where
it ends too early by its times, counting those of the stream whose end the headers tell, where its table, if there is
one, has more frames than came, and where the file is not as long as it says.
"""

import itertools
import os
import statistics
from collections.abc import Iterator
from typing import BinaryIO

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from sora_jax.data.clips import BadClip

LONGEST_USUAL_STEP = 1.5  # times the median step; a longer one is a hold
ROUNDING = 1e-4  # of a rate that is met
SMALLEST_SHARE = 0.9  # of what is declared, frames and seconds, below which a video counts as cut off

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_MOST_PARTS = 100_000  # of a file, at its top


class PromisedFrames:
    """The frames of a stream as they are decoded; raises `BadClip` at the first that is damaged.

    `declared` says how many the headers speak of. `counted` says whether there is a table. `decoded` counts those that
    came.
    """

    def __init__(self, file: BinaryIO, container: InputContainer, stream: VideoStream, source_id: str):
        self._file, self._container, self._stream, self._source_id = file, container, stream, source_id
        self._frames = self._decode()
        self._packets = 0
        self._ends: dict[int, float] = {}  # of each stream, seconds
        self.counted = stream.frames > 0
        self._seconds, self._own = _declared_seconds(container, stream)
        self.declared = declared_frames(container, stream)
        self.decoded = 0

    def __iter__(self) -> Iterator[VideoFrame]:
        return self

    def __next__(self) -> VideoFrame:
        frame = next(self._frames)
        self.decoded += 1
        if frame.is_corrupt:
            raise BadClip(self._source_id, f"frame {self.decoded} is damaged")
        return frame

    def check_whole(self) -> None:
        """Raises `BadClip` where all frames have come and are fewer than the file shows that there were."""
        declared = self.declared or 0.0
        if self.decoded >= SMALLEST_SHARE * declared:
            return
        lost = self.decoded < SMALLEST_SHARE * self._packets
        few = not self.counted or self._packets < SMALLEST_SHARE * self._stream.frames
        if lost or (few and self._ends_early() and not ends_as_it_says(self._file)):
            reason = f"only {self.decoded} of {declared:.0f} declared frames can be decoded"
            raise BadClip(self._source_id, reason)

    def _decode(self) -> Iterator[VideoFrame]:
        # Packets of all streams are read anyway, and only those of this one decoded.
        for packet in self._container.demux():
            self._note_end(packet)
            if packet.stream == self._stream:  # `stream_index` of the packet that flushes a decoder is always 0
                self._packets += packet.size > 0 and not packet.is_discard
                yield from (frame for frame in packet.decode() if isinstance(frame, VideoFrame))

    def _note_end(self, packet: Packet) -> None:
        time = packet.dts if packet.pts is None else packet.pts
        if time is not None and packet.time_base is not None:
            end = float((time + (packet.duration or 0)) * packet.time_base)
            self._ends[packet.stream_index] = max(end, self._ends.get(packet.stream_index, end))

    def _ends_early(self) -> bool:
        """Returns whether what was read ends before the time that the headers tell."""
        if self._seconds is None:
            return False
        ends = [end for index, end in self._ends.items() if index == self._stream.index or not self._own]
        start = 0.0
        if "matroska" not in self._container.format.name:  # its durations are times of ends
            start = float((self._stream.start_time or 0) * (self._stream.time_base or 0))
        return max(ends, default=0.0) - start < SMALLEST_SHARE * self._seconds


def follows_at(fps: float, container: InputContainer, stream: VideoStream) -> bool:
    """Returns whether frames of a stream usually follow at `fps` a second or faster; reads the container to its end."""
    tick = float(stream.time_base or 0)
    times = sorted(packet.pts * tick for packet in container.demux(stream) if packet.size and packet.pts is not None)
    steps = [late - early for early, late in itertools.pairwise(times) if late > early]
    # Times are rounded to ticks, and a mean over the usual steps is not; holds are left out of it.
    longest = LONGEST_USUAL_STEP * statistics.median(steps or [0.0])
    usual = [step for step in steps if step <= longest]
    return bool(usual) and statistics.fmean(usual) <= (1 + ROUNDING) / fps


def declared_frames(container: InputContainer, stream: VideoStream) -> float | None:
    """Returns how many frames the headers speak of, by table or by duration and rate; None where they say nothing."""
    seconds, _ = _declared_seconds(container, stream)
    promises = [float(stream.frames)] if stream.frames > 0 else []
    if seconds and stream.average_rate:
        promises.append(seconds * float(stream.average_rate))
    # An edit list hides frames which the table still counts, hence the smaller.
    return min(promises, default=None)


def _declared_seconds(container: InputContainer, stream: VideoStream) -> tuple[float | None, bool]:
    """Returns the seconds that the headers promise, None where they say nothing, and whether of this very stream."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base), True
    whole = None if container.duration is None else container.duration / av.time_base
    # Matroska has durations of streams only in this tag. One that says more is left from the film it was cut out of.
    tag = _seconds_of(stream.metadata.get("DURATION", ""))
    if tag is not None and (whole is None or tag <= whole):
        return tag, True
    return whole, False


def _seconds_of(tag: str) -> float | None:
    """Returns the seconds of "HOURS:MINUTES:SECONDS"; None where it is none."""
    try:
        hours, minutes, rest = map(float, tag.split(":"))
    except ValueError:
        return None
    return 3600 * hours + 60 * minutes + rest


def ends_as_it_says(file: BinaryIO) -> bool:
    """Returns whether a file is as long as its outermost parts say (MP4 and MOV, AVI, Matroska and WebM).

    False also where nothing there says how long they are, and of any other format.
    """
    length, start = file.seek(0, os.SEEK_END), 0
    head = _read(file, 0, 4)
    if head == _EBML:
        end = _matroska_end(file)
        return end is not None and end <= length
    part_end = _riff_end if head == b"RIFF" else _box_end
    for _ in range(_MOST_PARTS):
        end = part_end(file, start)
        if end is None:
            return start > 0 and part_end is _riff_end  # what follows is none of its parts
        if end >= length:
            return end == length
        start = end
    return False


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _riff_end(file: BinaryIO, start: int) -> int | None:
    """Returns where a RIFF chunk ends; None where there is none, or it does not say so."""
    head = _read(file, start, 8)
    size = int.from_bytes(head[4:], "little")
    return start + 8 + size + size % 2 if head[:4] == b"RIFF" and 0 < size < 2**32 - 1 else None


def _box_end(file: BinaryIO, start: int) -> int | None:
    """Returns where a box of MP4 ends; None where there is none, or it does not say so."""
    head = _read(file, start, 16)
    size = int.from_bytes(head[8:] if head[:4] == b"\0\0\0\1" else head[:4], "big")
    return start + size if size >= 8 and head[4:8].isalnum() else None


def _matroska_end(file: BinaryIO) -> int | None:
    """Returns where the segment ends; None where it does not say so."""
    header = _element(file, len(_EBML))
    if header is None or _read(file, header, 4) != _SEGMENT:
        return None
    return _element(file, header + len(_SEGMENT))


def _element(file: BinaryIO, offset: int) -> int | None:
    """Returns where an element of Matroska ends whose size is written at `offset`; None for an unknown size."""
    field = _read(file, offset, 8)
    if not field or not field[0]:
        return None
    width = 9 - field[0].bit_length()
    size = int.from_bytes(field[:width], "big") & (2 ** (7 * width) - 1)
    return None if size == 2 ** (7 * width) - 1 else offset + width + size
