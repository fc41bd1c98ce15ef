"""Pixels from media files and to them.

Shapes: `T` frames, `H` rows of pixels, `W` columns of pixels, `C` = 3 colours (red, green, blue).

A file is data from a stranger. It must be a regular file, which the decoder gets as an open handle, so that
nothing in it can name another file or an address; the ending alone chooses the demuxer; sizes are checked
before pixels are decoded. Damage is not passed on: a decoder that conceals errors still marks the frames.
"""

import contextlib
import dataclasses
import io
import itertools
import math
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, Unpack

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation
from av.video.stream import VideoStream
from PIL import Image, UnidentifiedImageError

from sora_jax.core.errors import StorageError, UserError
from sora_jax.data.clips import BadClip
from sora_jax.data.pictures import (
    PICTURE_FORMATS,
    PICTURE_SUFFIXES,
    Allocator,
    ReadLimits,
    ReadOptions,
    allocate_bytes,
    on_white,
    read_pictures,
)

DEMUXERS = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".mkv": "matroska",
    ".webm": "matroska",
    ".avi": "avi",
    ".mpg": "mpeg",
    ".mpeg": "mpeg",
}
MEDIA_SUFFIXES = frozenset((*DEMUXERS, *PICTURE_SUFFIXES))
WRITTEN_SUFFIXES = (".mp4", ".gif", ".webp", ".png")

MAX_PIXELS = 2**30  # frames x rows x columns; three bytes each
SMALLEST_SHARE = 0.9  # of the declared frames, below which a video counts as cut off
LFS_POINTER = b"version https://git-lfs"
NEARLY_SQUARE = 0.01  # pixels this close to square are not resampled

# By default FFmpeg rounds colours down, over one level darker with every pass through a file.
TO_RGB = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
FROM_RGB = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP

# FFmpeg and Pillow raise all of these on damaged bytes.
DECODING_ERRORS = (
    FFmpegError,
    Image.DecompressionBombError,
    ArithmeticError,
    LookupError,
    OSError,
    EOFError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


def read_clip(path: str | os.PathLike, **options: Unpack[ReadOptions]) -> tuple[np.ndarray, float]:
    """Returns what `read_stream` does, of a file; `BadClip` also when it is not a regular one."""
    return read_stream(_regular_file(path), os.fspath(path), **options)


def read_stream(
    stream: contextlib.AbstractContextManager[BinaryIO],
    name: str,
    *,
    max_frames: int | None = None,
    max_pixels: int = MAX_PIXELS,
    window: tuple[int, int] | None = None,
    short_side: int | None = None,
    allocate: Allocator = allocate_bytes,
) -> tuple[np.ndarray, float]:
    """Returns uint8 (T, H, W, 3) as a viewer would see it, and frames per second; an image has T = 1.

    Upright (rotation and EXIF orientation applied), with square pixels, transparency on white. At most the first
    `max_frames` frames are decoded; with `window` = (first, last) instead, frames of these numbers, counted from 0 and
    both included, are kept (those before them are decoded, to count them, and let go). With `short_side` each larger
    frame is scaled down to it as it is decoded, so that only small ones are held.

    The rate of a video is (T - 1) / (last time - first time), so that variable rates are averaged; a GIF or WebP frame
    that is held several times as long as the shortest is repeated. The ending of `name` chooses the decoder; `stream`
    can be seeked in and is closed in the end. `allocate` is asked for the (T, H, W, 3) that the headers promise, and
    for more where there is more; what is returned need not be that array.

    Raises `BadClip` for whatever cannot be decoded to its end: an ending not in `MEDIA_SUFFIXES`, no video in it, over
    `max_pixels` T * H * W, a damaged frame, none in the `window`, or (unless stopped by `max_frames` or `window`) under
    `SMALLEST_SHARE` of the frames that the file declares.
    """
    assert max_frames is None or max_frames > 0, max_frames
    limits = ReadLimits(
        source_id=name, max_frames=max_frames, max_pixels=max_pixels, short_side=short_side, allocate=allocate
    )
    if window is not None:
        assert 0 <= window[0] <= window[1], window
        limits = dataclasses.replace(limits, first_frame=window[0], max_frames=window[1] - window[0] + 1)
    suffix = Path(name).suffix.lower()
    if suffix not in MEDIA_SUFFIXES:
        raise BadClip(limits.source_id, f"the ending {suffix!r} is none of {', '.join(sorted(MEDIA_SUFFIXES))}")
    try:
        with stream as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise BadClip(limits.source_id, "is a git LFS pointer, not the file itself: run git lfs pull")
            file.seek(0)
            if suffix in DEMUXERS:
                return _read_video(file, demuxer=DEMUXERS[suffix], limits=limits)
            return read_pictures(file, limits=limits, whole=window is not None)
    except UnidentifiedImageError as error:
        raise BadClip(limits.source_id, f"is not an image ({', '.join(PICTURE_FORMATS)})") from error
    except DECODING_ERRORS as error:
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BadClip(limits.source_id, f"cannot be decoded: {said.splitlines()[0][:120]}") from error


@contextlib.contextmanager
def _regular_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Yields the file opened for reading; raises `OSError` for a pipe or device, without waiting for one."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("it is not a regular file")
        yield file


def _read_video(file: BinaryIO, *, demuxer: str, limits: ReadLimits) -> tuple[np.ndarray, float]:
    """Returns pixels and rate of the first video stream that is not a cover picture."""
    with av.open(file, mode="r", format=demuxer, metadata_errors="replace") as container:
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise BadClip(limits.source_id, "has no video stream")
        stream = streams[0]
        # Frame threads hide which frame an error belongs to, and loaders already run one process a core.
        stream.thread_type = "NONE"
        declared = _declared_frames(container, stream)
        pixels_THWC, times = _decode(container, stream, declared=declared, limits=limits)
        stopped = limits.max_frames is not None and len(times) == limits.max_frames
        decoded = limits.first_frame + len(times)
        if not stopped and decoded < SMALLEST_SHARE * (declared or 0):
            reason = f"only {decoded} of {declared:.0f} declared frames can be decoded"
            raise BadClip(limits.source_id, reason)
        return pixels_THWC, _rate(times, stream, limits=limits)


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


def _decode(
    container: InputContainer, stream: VideoStream, *, declared: float | None, limits: ReadLimits
) -> tuple[np.ndarray, list[float | None]]:
    """Returns uint8 (T, H, W, 3) and each frame's time in seconds."""
    # Memory that is never written to is never taken, so a promise that is too high costs nothing.
    capacity = limits.wanted(max(1, math.ceil(declared or 1)))
    limits.check(capacity, *limits.size(stream.codec_context.height, stream.codec_context.width))
    pixels_THWC = None
    times: list[float | None] = []
    for number, frame in enumerate(itertools.islice(container.decode(stream), limits.stop)):
        if frame.is_corrupt:
            raise BadClip(limits.source_id, f"frame {number + 1} is damaged")
        if number < limits.first_frame:
            continue
        height, width = limits.size(*_square_size(frame, stream.sample_aspect_ratio))
        limits.check(max(capacity, len(times) + 1), height, width)
        pixels_HWC = _upright_rgb(frame, height=height, width=width)
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


def _square_size(frame: VideoFrame, pixel_aspect: Fraction | None) -> tuple[int, int]:
    """Returns (height, width) with square pixels, the shorter way of the pixel stretched."""
    if not pixel_aspect or abs(pixel_aspect - 1) < NEARLY_SQUARE:
        return frame.height, frame.width
    if pixel_aspect > 1:
        return frame.height, round(frame.width * pixel_aspect)
    return round(frame.height / pixel_aspect), frame.width


def _upright_rgb(frame: VideoFrame, *, height: int, width: int) -> np.ndarray:
    """Returns uint8 (H, W, 3) of the frame at `height` x `width`, then turned as its display matrix says."""
    if any(component.is_alpha for component in frame.format.components):
        pixels_HWC = frame.to_ndarray(format="rgba", height=height, width=width, interpolation=TO_RGB)
        pixels_HWC = np.asarray(on_white(Image.fromarray(pixels_HWC)))
    else:
        pixels_HWC = frame.to_ndarray(format="rgb24", height=height, width=width, interpolation=TO_RGB)
    # Angles are counterclockwise, as numpy's are; one between the quarters, or a broken one, is left alone.
    quarters = frame.rotation // 90 if frame.rotation % 90 == 0 else 0
    return np.rot90(pixels_HWC, quarters)


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


def write_clip(path: str | os.PathLike, pixels_THWC: np.ndarray, *, fps: float) -> None:
    """Writes uint8 (T, H, W, 3) at `fps` frames per second; the ending chooses the format.

    .mp4 is H.264 at a high quality (with colour at half resolution when both sides are even), .gif has 256
    colours a frame, .webp is of high quality, .png holds one frame. Equal input gives equal bytes. The file
    appears under its name only when it is whole; missing folders are made.

    Raises `UserError` for another ending, or for several frames in a .png; `StorageError` where the disk refuses.
    """
    assert pixels_THWC.ndim == 4, pixels_THWC.shape
    assert pixels_THWC.dtype == np.uint8, pixels_THWC.dtype
    path = Path(path)
    suffix = path.suffix.lower()
    check_written_suffix(path, frames=len(pixels_THWC))
    with _replacing(path) as partial:
        if suffix == ".mp4":
            _write_mp4(partial, pixels_THWC, fps=fps)
        elif suffix == ".gif":
            partial.write_bytes(encode_gif(pixels_THWC, fps=fps))
        elif suffix == ".webp":
            partial.write_bytes(_encode_webp(pixels_THWC, fps=fps))
        else:
            partial.write_bytes(encode_png(pixels_THWC[0]))


def check_written_suffix(path: str | os.PathLike, *, frames: int) -> None:
    """Raises `UserError` where `write_clip` could not write so many frames to `path`."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in WRITTEN_SUFFIXES:
        raise UserError(f"cannot write {path}: the ending must be one of {', '.join(WRITTEN_SUFFIXES)}")
    if suffix == ".png" and frames > 1:
        raise UserError(f"cannot write {frames} frames to {path}: a video ends in .mp4, .gif or .webp")


def encode_gif(pixels_THWC: np.ndarray, *, fps: float) -> bytes:
    """Returns an endless GIF of uint8 (T, H, W, 3), each frame with a palette of its own.

    A GIF counts in hundredths of a second: durations are rounded so that the sum stays right. Above 50 frames
    per second the video is slowed down to 50, since viewers take shorter durations for a mistake.
    """
    frames = [Image.fromarray(f_HWC).quantize(256, Image.Quantize.MEDIANCUT) for f_HWC in pixels_THWC]
    durations = [10 * d for d in _durations(len(frames), rate=min(fps, 50.0), unit=0.01)]
    return _encode_animation(frames, durations, "GIF", disposal=1, optimize=False)


def _encode_webp(pixels_THWC: np.ndarray, *, fps: float) -> bytes:
    """Returns an endless WebP of uint8 (T, H, W, 3)."""
    frames = [Image.fromarray(frame_HWC) for frame_HWC in pixels_THWC]
    durations = _durations(len(frames), rate=fps, unit=0.001)
    return _encode_animation(frames, durations, "WEBP", quality=95, method=4)


def _encode_animation(frames: list[Image.Image], durations: list[int], name: str, **options: int) -> bytes:
    """Returns the frames in the named format; durations are in milliseconds; one frame is a still image."""
    buffer = io.BytesIO()
    if len(frames) > 1:
        options |= {"save_all": True, "loop": 0}
        frames[0].save(buffer, name, append_images=frames[1:], duration=durations, **options)
    else:
        frames[0].save(buffer, name, **options)
    return buffer.getvalue()


def _durations(frames: int, *, rate: float, unit: float) -> list[int]:
    """Returns whole numbers of `unit` seconds, one a frame, that never drift from `rate`."""
    edges = [round(index / (rate * unit)) for index in range(frames + 1)]
    return [late - early for early, late in itertools.pairwise(edges)]


def encode_png(pixels_HWC: np.ndarray) -> bytes:
    """Returns a PNG of uint8 (H, W, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, "PNG")
    return buffer.getvalue()


def _write_mp4(path: Path, pixels_THWC: np.ndarray, *, fps: float) -> None:
    """Writes H.264 in MP4, tagged BT.709 so that every player shows the same colours."""
    _, height, width, _ = pixels_THWC.shape
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(path.absolute(), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "12"})
        stream.height, stream.width = height, width
        stream.pix_fmt = "yuv420p" if height % 2 == 0 and width % 2 == 0 else "yuv444p"
        context = stream.codec_context
        # One thread: the number of threads changes the bytes.
        context.thread_count = 1
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1
        for pixels_HWC in pixels_THWC:
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels_HWC), format="rgb24")
            frame = frame.reformat(format=stream.pix_fmt, dst_colorspace="ITU709", interpolation=FROM_RGB)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yields a name beside `path`; what is written there becomes `path`, or disappears on an error."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
