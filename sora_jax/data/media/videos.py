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
from sora_jax.data.media.frame_rates import at_rate
from sora_jax.data.media.pictures import ReadLimits
from sora_jax.data.media.promises import PromisedFrames, declared_frames, follows_at
from sora_jax.data.media.rgb import Converter, square_size

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
        native = _native_rate(stream)
        if not (native and limits.fps and native < limits.fps):
            return _read_stream(file, container, stream, limits=limits, fps=limits.fps if native else None)
        # A long pause makes a mean slow, though all else follows fast. What the usual step is only the times say.
        fps = limits.fps if follows_at(limits.fps, container, stream) else None
    file.seek(0)
    with av.open(file, mode="r", format=demuxer, metadata_errors="replace") as container:
        stream = _shown_stream(container, limits.source_id)
        return _read_stream(file, container, stream, limits=limits, fps=fps)


def _read_stream(
    file: BinaryIO, container: InputContainer, stream: VideoStream, *, limits: ReadLimits, fps: float | None
) -> tuple[np.ndarray, float]:
    """Returns pixels and rate of a stream, resampled to `fps` by its times; None leaves them as they are."""
    # Frame threads hide which frame an error belongs to, and slice threads rarely find more than one slice. What
    # does help is `_ahead`, which keeps two cores busy where they are idle and costs next to nothing where other
    # loaders use them; hence no more threads than that, for the conversion neither.
    stream.thread_type = "NONE"
    native = _native_rate(stream)
    sound = PromisedFrames(file, container, stream, limits.source_id)
    frames = _deinterlaced(sound, stream)
    promised = math.ceil(sound.declared or 1)
    if native and fps:
        timed = ((f, float(number / native) if f.time is None else f.time) for number, f in enumerate(frames))
        # Times are rounded to ticks, the first one too; where a tick is as long as a frame they are exact.
        slack = float(min(stream.time_base or 0, LATEST_SHARE / max(native, fps)))
        frames = at_rate(timed, fps=fps, slack=slack)
        promised = int(1 + (promised - 1) * fps / native)
    if sound.declared is not None:
        limits.tell(promised)
    if not sound.counted:
        # Times may vary, so that what all frames take is known when they are there.
        promised = min(promised, limits.most(*_coded_size(stream, limits)))
    pixels_THWC, times = _decode(frames, stream, promised=promised, limits=limits)
    stopped = limits.max_frames is not None and len(times) == limits.max_frames
    if not stopped:
        sound.check_whole()
    return pixels_THWC, fps or _rate(times, stream, limits=limits)


def _shown_stream(container: InputContainer, source_id: str) -> VideoStream:
    """Returns the stream that is the video: the first of those that last, are the default one and no preview.

    One lasts that has half as many frames as the one with most: a still does not. A preview has less than a quarter of
    the pixels of the largest. Covers and chapter pictures never count. Raises `BadClip` where there is none.
    """
    streams = [stream for stream in container.streams.video if not stream.disposition & PICTURES]
    if not streams:
        raise BadClip(source_id, "has no video stream")
    declared = [declared_frames(container, stream) for stream in streams]
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


def _decode(
    all_frames: Iterator[VideoFrame], stream: VideoStream, *, promised: int, limits: ReadLimits
) -> tuple[np.ndarray, list[float | None]]:
    """Returns uint8 (T, H, W, 3) of the frames within the limits and their times in seconds."""
    # Memory that is never written to is never taken, so a promise that is too high costs nothing.
    capacity = limits.wanted(max(1, promised))
    limits.check(capacity, *_coded_size(stream, limits))
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
                more = min(2 * len(times), limits.most(height, width))
                pixels_THWC, full_THWC = limits.allocate((more, *pixels_HWC.shape)), pixels_THWC
                pixels_THWC[: len(times)] = full_THWC
            pixels_THWC[len(times)] = pixels_HWC
            times.append(frame.time)
    if pixels_THWC is None:
        after = f" after the first {limits.first_frame}" if limits.first_frame else ""
        raise BadClip(limits.source_id, f"has no frames{after}")
    return pixels_THWC[: len(times)], times


def _coded_size(stream: VideoStream, limits: ReadLimits) -> tuple[int, int]:
    """Returns the (height, width) at which frames are kept, as the header has it."""
    return limits.size(stream.codec_context.height, stream.codec_context.width)


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
