"""Pixels from videos: what FFmpeg decodes, checked, upright and in RGB.

Shapes: `T` frames, `H` rows of pixels, `W` columns of pixels, `C` = 3 colours (red, green, blue).

Damage is not passed on: a decoder that conceals errors still marks the frames.
"""

import contextlib
import itertools
import math
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import BinaryIO

import av
import numpy as np
from av.container import InputContainer
from av.filter import Graph
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from sora_jax.data.clips import BadClip
from sora_jax.data.frame_rates import at_rate
from sora_jax.data.pictures import ReadLimits
from sora_jax.data.rgb import Converter, square_size

SMALLEST_SHARE = 0.9  # of the declared frames, below which a video counts as cut off
LATEST_SHARE = 0.1  # of a frame's time, by which it may be late and still in time for one at a rate by choice
FRAMES_AHEAD = 4  # decoded and not yet in RGB
LASTING, FULL_SIZE = 0.5, 0.25  # of the most frames and pixels of a track: below, one is a still or a preview
PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image


def read_video(file: BinaryIO, *, demuxer: str, limits: ReadLimits) -> tuple[np.ndarray, float]:
    """Returns pixels and rate of the video stream that a player shows; see `video_io.read_stream`."""
    with av.open(file, mode="r", format=demuxer, metadata_errors="replace") as container:
        stream = _shown_stream(container, limits.source_id)
        if limits.opaque and stream.metadata.get("alpha_mode") == "1":
            raise limits.transparent()  # in a part of WebM that the decoder at hand does not show
        # Frame threads hide which frame an error belongs to, and slice threads rarely find more than one slice. What
        # does help is `_ahead`, which keeps two cores busy where they are idle and costs next to nothing where other
        # loaders use them; hence no more threads than that, for the conversion neither.
        stream.thread_type = "NONE"
        declared, native = _declared_frames(container, stream), _native_rate(stream)
        sound = _SoundFrames(container.decode(stream), limits.source_id)
        frames = _deinterlaced(sound, stream)
        promised, fps = math.ceil(declared or 1), limits.fps
        if native and fps and native >= fps:
            timed = ((f, float(number / native) if f.time is None else f.time) for number, f in enumerate(frames))
            # Times are rounded to ticks, the first one too; where a tick is as long as a frame they are exact.
            frames = at_rate(timed, fps=fps, slack=float(min(stream.time_base or 0, LATEST_SHARE / native)))
            promised = int(1 + (promised - 1) * fps / native)
        else:
            fps = None
        pixels_THWC, times = _decode(frames, stream, promised=promised, limits=limits)
        stopped = limits.max_frames is not None and len(times) == limits.max_frames
        if not stopped and sound.decoded < SMALLEST_SHARE * (declared or 0):
            reason = f"only {sound.decoded} of {declared:.0f} declared frames can be decoded"
            raise BadClip(limits.source_id, reason)
        return pixels_THWC, fps or _rate(times, stream, limits=limits)


def _shown_stream(container: InputContainer, source_id: str) -> VideoStream:
    """Returns the stream that is the video: the first of those that last, are the default one and no preview.

    One lasts that has half as many frames as the one with most: a still does not. A preview has less than a quarter of
    the pixels of the largest. Covers and chapter pictures never count. Raises `BadClip` where there is none.
    """
    streams = [stream for stream in container.streams.video if not stream.disposition & PICTURES]
    if not streams:
        raise BadClip(source_id, "has no video stream")
    declared = [_declared_frames(container, stream) for stream in streams]
    pixels = [stream.codec_context.height * stream.codec_context.width for stream in streams]
    most = max((frames for frames in declared if frames is not None), default=0.0)

    def rank(number: int) -> tuple[bool, bool, bool]:
        frames = declared[number]
        lasts = frames is None or frames >= LASTING * most
        default = bool(streams[number].disposition & Disposition.default)
        return lasts, default, pixels[number] >= FULL_SIZE * max(pixels)

    return streams[max(range(len(streams)), key=rank)]


def _native_rate(stream: VideoStream) -> Fraction | None:
    """Returns frames per second, on average, as the header says; None where it says nothing."""
    # The mean is too high where the last frame has no duration, the rate that all times fit is for variable ones.
    rates = [rate for rate in (stream.average_rate, stream.base_rate) if rate]
    return min(rates, default=stream.guessed_rate)


def _declared_frames(container: InputContainer, stream: VideoStream) -> float | None:
    """Returns how many frames the headers promise, at least; None where they say nothing."""
    seconds = None
    if stream.duration is not None and stream.time_base is not None:
        seconds = float(stream.duration * stream.time_base)
    elif "DURATION" in stream.metadata:
        # Matroska has durations of streams only in this tag; the container's is that of the longest stream.
        hours, minutes, rest = stream.metadata["DURATION"].split(":")
        seconds = 3600 * float(hours) + 60 * float(minutes) + float(rest)
    elif container.duration is not None:
        seconds = container.duration / av.time_base
    promises = [float(stream.frames)] if stream.frames > 0 else []
    if seconds and stream.average_rate:
        promises.append(seconds * float(stream.average_rate))
    # An edit list hides frames which the table still counts, hence the smaller.
    return min(promises, default=None)


class _SoundFrames:
    """The frames that a decoder gives, which are counted; raises `BadClip` at the first that is damaged."""

    def __init__(self, frames: Iterator[VideoFrame], source_id: str):
        self._frames, self._source_id = frames, source_id
        self.decoded = 0

    def __iter__(self) -> Iterator[VideoFrame]:
        return self

    def __next__(self) -> VideoFrame:
        frame = next(self._frames)
        self.decoded += 1
        if frame.is_corrupt:
            raise BadClip(self._source_id, f"frame {self.decoded} is damaged")
        return frame


def _decode(
    all_frames: Iterator[VideoFrame], stream: VideoStream, *, promised: int, limits: ReadLimits
) -> tuple[np.ndarray, list[float | None]]:
    """Returns uint8 (T, H, W, 3) of the frames within the limits and their times in seconds."""
    # Memory that is never written to is never taken, so a promise that is too high costs nothing.
    capacity = limits.wanted(max(1, promised))
    limits.check(capacity, *limits.size(stream.codec_context.height, stream.codec_context.width))
    pixels_THWC = None
    times: list[float | None] = []
    converter = Converter(limits)
    with contextlib.closing(_ahead(itertools.islice(all_frames, limits.stop))) as frames:
        for number, frame in enumerate(frames):
            if number < limits.first_frame:
                continue
            height, width = limits.size(*square_size(frame, stream.sample_aspect_ratio))
            limits.check(max(capacity, len(times) + 1), height, width)
            pixels_HWC = converter.upright_rgb(frame, height=height, width=width)
            if pixels_THWC is None:
                pixels_THWC = limits.allocate((capacity, *pixels_HWC.shape))
            if pixels_HWC.shape != pixels_THWC.shape[1:]:
                raise BadClip(limits.source_id, f"changes size at frame {number + 1}")
            if len(times) == len(pixels_THWC):
                pixels_THWC, full_THWC = limits.allocate((2 * len(times), *pixels_HWC.shape)), pixels_THWC
                pixels_THWC[: len(times)] = full_THWC
            pixels_THWC[len(times)] = pixels_HWC
            times.append(frame.time)
    if pixels_THWC is None:
        after = f" after the first {limits.first_frame}" if limits.first_frame else ""
        raise BadClip(limits.source_id, f"has no frames{after}")
    return pixels_THWC[: len(times)], times


def _deinterlaced(frames: Iterator[VideoFrame], stream: VideoStream) -> Iterator[VideoFrame]:
    """Yields as many frames; of those that are flagged as woven of two moments, pictures of the first one."""
    graph = None
    for frame in frames:
        if graph is None and frame.interlaced_frame:
            graph = Graph()
            graph.threads = 1
            # It holds three frames. From now on all go through it; it leaves those without the flag as they are.
            source = graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=stream.time_base
            )
            bwdif = graph.add("bwdif", "mode=send_frame:deint=interlaced")
            graph.link_nodes(source, bwdif, graph.add("buffersink")).configure()
        if graph is None:
            yield frame
        else:
            graph.vpush(frame)
            yield from _filtered(graph)
    if graph is not None:
        graph.vpush(None)
        yield from _filtered(graph)


def _filtered(graph: Graph) -> Iterator[VideoFrame]:
    """Yields what a graph has made of the frames that it was given so far."""
    with contextlib.suppress(BlockingIOError, EOFError):
        while True:
            yield graph.vpull()


def _ahead(frames: Iterator[VideoFrame]) -> Generator[VideoFrame, None, None]:
    """Yields the same frames, decoded by a thread up to `FRAMES_AHEAD` before they are asked for; to be closed."""
    thread = ThreadPoolExecutor(1)
    coming = deque(thread.submit(next, frames, None) for _ in range(FRAMES_AHEAD))
    try:
        while (frame := coming.popleft().result()) is not None:
            coming.append(thread.submit(next, frames, None))
            yield frame
    finally:
        thread.shutdown(cancel_futures=True)


def _rate(times: list[float | None], stream: VideoStream, *, limits: ReadLimits) -> float:
    """Returns frames per second from the frames' own times, else from the header."""
    known = [time for time in times if time is not None]
    steps = [late - early for early, late in itertools.pairwise(known)]
    if len(known) == len(times) and steps and min(steps) > 0:
        return len(steps) / (known[-1] - known[0])
    rate = stream.average_rate or stream.guessed_rate
    if rate:
        return float(rate)
    if len(times) == 1:
        return 1.0
    raise BadClip(limits.source_id, "has no frame rate")
