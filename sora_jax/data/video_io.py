"""Pixels from media files and to them.

Shapes: `T` frames, `H` rows of pixels, `W` columns of pixels, `C` = 3 colours (red, green, blue).

A file is data from a stranger. It must be a regular file, which the decoder gets as an open handle, so that
nothing in it can name another file or an address; the ending alone chooses the demuxer; sizes are checked
before pixels are decoded.
"""

import contextlib
import dataclasses
import io
import itertools
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
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation
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
    read_pictures,
)
from sora_jax.data.videos import read_video

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
LFS_POINTER = b"version https://git-lfs"

# As `videos.TO_RGB`, the other way.
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


def read_clip(
    path: str | os.PathLike, *, allocate: Allocator = allocate_bytes, **options: Unpack[ReadOptions]
) -> tuple[np.ndarray, float]:
    """Returns what `read_stream` does, of a file; `BadClip` also when it is not a regular one."""
    return read_stream(_regular_file(path), os.fspath(path), allocate=allocate, **options)


def read_stream(
    stream: contextlib.AbstractContextManager[BinaryIO],
    name: str,
    *,
    max_frames: int | None = None,
    max_pixels: int = MAX_PIXELS,
    window: tuple[int, int] | None = None,
    short_side: int | None = None,
    fps: float | None = None,
    allocate: Allocator = allocate_bytes,
) -> tuple[np.ndarray, float]:
    """Returns uint8 (T, H, W, 3) as a viewer would see it, and frames per second; an image has T = 1.

    Upright (rotation and EXIF orientation applied), with square pixels, transparency on white. At most the first
    `max_frames` frames are decoded; with `window` = (first, last) instead, frames of these numbers, counted from 0 and
    both included, are kept (those before them are decoded, to count them, and let go). With `short_side` each larger
    frame is scaled down to it as it is decoded, so that only small ones are held.

    The rate of a video is (T - 1) / (last time - first time), so that variable rates are averaged; a GIF or WebP frame
    that is held several times as long as the shortest is repeated. With `fps` a clip of at least this rate (a video: on
    average, as its header says) is resampled to it by its frames' times (see `frame_rates.at_rate`); then `max_frames`
    and `window` count resampled frames. A slower clip keeps its frames and its rate.

    The ending of `name` chooses the decoder; `stream` can be seeked in and is closed in the end. `allocate` is asked
    for the (T, H, W, 3) that the headers promise, and for more where there is more; what is returned need not be that
    array.

    Raises `BadClip` for whatever cannot be decoded to its end: an ending not in `MEDIA_SUFFIXES`, no video in it, over
    `max_pixels` T * H * W, a damaged frame, none in the `window`, or (unless stopped by `max_frames` or `window`) under
    `videos.SMALLEST_SHARE` of the frames that the file declares.
    """
    assert max_frames is None or max_frames > 0, max_frames
    assert fps is None or fps > 0, fps
    limits = ReadLimits(
        source_id=name, max_frames=max_frames, max_pixels=max_pixels, short_side=short_side, fps=fps, allocate=allocate
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
                return read_video(file, demuxer=DEMUXERS[suffix], limits=limits)
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
