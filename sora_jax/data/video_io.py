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
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation
from av.video.stream import VideoStream
from PIL import Image, ImageOps, UnidentifiedImageError

from sora_jax.core.errors import StorageError, UserError
from sora_jax.data.clips import BadClip

# Makes room for uint8 of a shape.
Allocator = Callable[[tuple[int, ...]], np.ndarray]

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
PICTURE_SUFFIXES = (".gif", ".webp", ".png", ".jpg", ".jpeg", ".bmp")
MEDIA_SUFFIXES = frozenset((*DEMUXERS, *PICTURE_SUFFIXES))
PICTURE_FORMATS = ("GIF", "WEBP", "PNG", "JPEG", "BMP")
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Limits:
    """The file's name for messages, how much of it may be decoded, and where its pixels go."""

    source_id: str
    max_frames: int | None
    max_pixels: int
    allocate: Allocator

    def wanted(self, frames: int) -> int:
        """Returns how many of `frames` frames are to be decoded."""
        return frames if self.max_frames is None else min(frames, self.max_frames)

    def check(self, frames: int, height: int, width: int) -> None:
        """Raises `BadClip` where so many pixels are too many."""
        if frames * height * width > self.max_pixels:
            remedy = ": set max_frames" if frames > 1 else ""
            reason = f"{frames} frames of {height}x{width} exceed max_pixels = {self.max_pixels}{remedy}"
            raise BadClip(self.source_id, reason)


def allocate_bytes(shape: tuple[int, ...]) -> np.ndarray:
    """Returns uint8 of a shape, not yet written to."""
    return np.empty(shape, np.uint8)


def read_clip(
    path: str | os.PathLike,
    *,
    max_frames: int | None = None,
    max_pixels: int = MAX_PIXELS,
    allocate: Allocator = allocate_bytes,
) -> tuple[np.ndarray, float]:
    """Returns what `read_stream` does, of a file; `BadClip` also when it is not a regular one."""
    stream, name = _regular_file(path), os.fspath(path)
    return read_stream(stream, name, max_frames=max_frames, max_pixels=max_pixels, allocate=allocate)


def read_stream(
    stream: contextlib.AbstractContextManager[BinaryIO],
    name: str,
    *,
    max_frames: int | None = None,
    max_pixels: int = MAX_PIXELS,
    allocate: Allocator = allocate_bytes,
) -> tuple[np.ndarray, float]:
    """Returns uint8 (T, H, W, 3) as a viewer would see it, and frames per second; an image has T = 1.

    Upright (rotation and EXIF orientation applied), with square pixels, transparency on white. At most the first
    `max_frames` frames are decoded. The rate of a video is (T - 1) / (last time - first time), so that variable rates
    are averaged; a GIF or WebP frame that is held several times as long as the shortest is repeated.
    The ending of `name` chooses the decoder; `stream` can be seeked in and is closed in the end. For videos `allocate`
    is asked for the (T, H, W, 3) that the headers promise, and for more where there is more; what is returned need not
    be that array.

    Raises `BadClip` for whatever cannot be decoded to its end: an ending not in `MEDIA_SUFFIXES`, no video in it, over
    `max_pixels` T * H * W, a damaged frame, or (unless stopped by `max_frames`) under `SMALLEST_SHARE` of the frames
    that the file declares.
    """
    assert max_frames is None or max_frames > 0, max_frames
    limits = _Limits(source_id=name, max_frames=max_frames, max_pixels=max_pixels, allocate=allocate)
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
            return _read_pictures(file, limits=limits)
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


def _read_video(file: BinaryIO, *, demuxer: str, limits: _Limits) -> tuple[np.ndarray, float]:
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
        if not stopped and len(times) < SMALLEST_SHARE * (declared or 0):
            reason = f"only {len(times)} of {declared:.0f} declared frames can be decoded"
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
    container: InputContainer, stream: VideoStream, *, declared: float | None, limits: _Limits
) -> tuple[np.ndarray, list[float | None]]:
    """Returns uint8 (T, H, W, 3) and each frame's time in seconds."""
    # Memory that is never written to is never taken, so a promise that is too high costs nothing.
    capacity = limits.wanted(max(1, math.ceil(declared or 1)))
    limits.check(capacity, stream.codec_context.height, stream.codec_context.width)
    pixels_THWC = None
    times: list[float | None] = []
    for frame in itertools.islice(container.decode(stream), limits.max_frames):
        if frame.is_corrupt:
            raise BadClip(limits.source_id, f"frame {len(times) + 1} is damaged")
        height, width = _square_size(frame, stream.sample_aspect_ratio)
        limits.check(max(capacity, len(times) + 1), height, width)
        pixels_HWC = _upright_rgb(frame, height=height, width=width)
        if pixels_THWC is None:
            pixels_THWC = limits.allocate((capacity, *pixels_HWC.shape))
        if pixels_HWC.shape != pixels_THWC.shape[1:]:
            raise BadClip(limits.source_id, f"changes size at frame {len(times) + 1}")
        if len(times) == len(pixels_THWC):
            pixels_THWC, full_THWC = limits.allocate((2 * len(times), *pixels_HWC.shape)), pixels_THWC
            pixels_THWC[: len(times)] = full_THWC
        pixels_THWC[len(times)] = pixels_HWC
        times.append(frame.time)
    if pixels_THWC is None:
        raise BadClip(limits.source_id, "has no frames")
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
        pixels_HWC = np.asarray(_on_white(Image.fromarray(pixels_HWC)))
    else:
        pixels_HWC = frame.to_ndarray(format="rgb24", height=height, width=width, interpolation=TO_RGB)
    # Angles are counterclockwise, as numpy's are; one between the quarters, or a broken one, is left alone.
    quarters = frame.rotation // 90 if frame.rotation % 90 == 0 else 0
    return np.rot90(pixels_HWC, quarters)


def _rate(times: list[float | None], stream: VideoStream, *, limits: _Limits) -> float:
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


def _read_pictures(file: BinaryIO, *, limits: _Limits) -> tuple[np.ndarray, float]:
    """Returns pixels and rate of an image (T = 1, rate 1) or of an animated GIF or WebP."""
    with Image.open(file, formats=PICTURE_FORMATS) as image:
        animated = image.format in ("GIF", "WEBP")
        wanted = limits.wanted(getattr(image, "n_frames", 1) if animated else 1)
        limits.check(wanted, image.height, image.width)
        if wanted == 1:
            return np.asarray(_plain_rgb(ImageOps.exif_transpose(image)))[None], 1.0
        pixels_THWC, seconds = None, []
        for index in range(wanted):
            image.seek(index)
            image.load()
            pixels_HWC = np.asarray(_plain_rgb(image))
            if pixels_THWC is None:
                pixels_THWC = limits.allocate((wanted, *pixels_HWC.shape))
            if pixels_HWC.shape != pixels_THWC.shape[1:]:
                raise BadClip(limits.source_id, f"changes size at frame {index + 1}")
            pixels_THWC[index] = pixels_HWC
            # Browsers show frames of up to 10 ms for 100 ms, and their makers know.
            milliseconds = image.info.get("duration", 0)
            seconds.append(milliseconds / 1000 if milliseconds > 10 else 0.1)
    holds = [max(1, round(second / min(seconds))) for second in seconds]
    assert pixels_THWC is not None
    limits.check(limits.wanted(sum(holds)), *pixels_THWC.shape[1:3])
    if max(holds) > 1:
        # Encoders store equal neighbours once; repeating them gives motion its real speed back.
        pixels_THWC = np.repeat(pixels_THWC, holds, axis=0)[: limits.max_frames]
    return pixels_THWC, sum(holds) / sum(seconds)


def _plain_rgb(image: Image.Image) -> Image.Image:
    """Returns the image as 8 bit RGB, transparency on white."""
    if image.mode.startswith("I"):
        # Pillow clips 16 bit greys at 255 instead of scaling them.
        levels_HW = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((levels_HW + 128) // 257).astype(np.uint8)).convert("RGB")
    return _on_white(image) if image.has_transparency_data else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """Returns the image as RGB, composited on white."""
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


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
