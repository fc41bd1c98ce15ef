"""Pixels from media files; `video_output.py` is the other way.

Shapes: `T` frames, `H` rows of pixels, `W` columns of pixels, `C` = 3 colours (red, green, blue).

A file is data from a stranger. It must be a regular file, which the decoder gets as an open handle, so that
nothing in it can name another file or an address; the first bytes, or else the ending, choose a demuxer from a short
list (`file_kinds`); sizes are checked before pixels are decoded.
"""

import contextlib
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Unpack

import numpy as np
from av.error import FFmpegError
from PIL import Image, UnidentifiedImageError

from sora_jax.data.clips import BadClip
from sora_jax.data.media.file_kinds import (
    DEMUXERS,
    HEAD_BYTES,
    HEIC_REMEDY,
    HEIC_SUFFIXES,
    MEDIA_SUFFIXES,
    PICTURE,
    kind_of,
    strange_kind,
    suffix_of,
)
from sora_jax.data.media.pictures import (
    MAX_PIXELS,
    PICTURE_FORMATS,
    Allocator,
    ReadLimits,
    ReadOptions,
    Tell,
    allocate_bytes,
    read_pictures,
    tell_nobody,
)
from sora_jax.data.media.videos import read_video

MAX_BYTES = 2**31  # of a file that is decoded from memory
LFS_POINTER = b"version https://git-lfs"

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
    path: str | os.PathLike,
    *,
    allocate: Allocator = allocate_bytes,
    tell: Tell = tell_nobody,
    **options: Unpack[ReadOptions],
) -> tuple[np.ndarray, float]:
    """Returns what `read_stream` does, of a file; `BadClip` also when it is not a regular one."""
    return read_stream(_regular_file(path), os.fspath(path), allocate=allocate, tell=tell, **options)


def read_stream(
    stream: contextlib.AbstractContextManager[BinaryIO],
    name: str,
    *,
    max_frames: int | None = None,
    max_pixels: int = MAX_PIXELS,
    window: tuple[int, int] | None = None,
    short_side: int | None = None,
    fps: float | None = None,
    opaque: bool = False,
    allocate: Allocator = allocate_bytes,
    tell: Tell = tell_nobody,
) -> tuple[np.ndarray, float]:
    """Returns uint8 (T, H, W, 3) as a viewer would see it, and frames per second; an image has T = 1.

    Upright (display matrix and EXIF orientation applied), with square pixels, transparency on white. At most the first
    `max_frames` frames are decoded; with `window` = (first, last) instead, frames of these numbers, counted from 0 and
    both included, are kept (those before are decoded, too). With `short_side` larger frames are scaled down to it.

    The rate of a video is (T - 1) / (last time - first time), so that variable rates are averaged; a frame of an
    animated picture that is held several times as long as the shortest is repeated. With `fps` a clip of at least this
    rate (a video: on average, as its header says, or by its usual step) is resampled to it by its frames' times (see
    `frame_rates.at_rate`); then `max_frames` and `window` count resampled frames. A slower clip keeps its frames and
    its rate.

    The first bytes choose the decoder, or else the ending of `name`; `stream` can be seeked in and is closed in the
    end. `allocate` is asked for the (T, H, W, 3) that the headers promise, and for more where there is more; what is
    returned need not be that array. With `opaque` a picture that one can see through is refused. `tell` is told how
    many frames the file has at that rate, where its headers say so.

    Raises `BadClip` for an ending not in `MEDIA_SUFFIXES`, no video, over `max_pixels` T * H * W, a damaged frame, none
    in the `window`, or (unless stopped by `max_frames` or `window`) a file that is cut off, as `promises` tells it.
    """
    limits = ReadLimits(
        source_id=name,
        max_frames=max_frames,
        max_pixels=max_pixels,
        short_side=short_side,
        fps=fps,
        opaque=opaque,
        allocate=allocate,
        tell=tell,
    ).within(window)
    _check_ending(name)
    with _damage_is_a_bad_clip(name), stream as file:
        kind = _kind(file, name)
        if kind != PICTURE:
            return read_video(file, demuxer=kind, limits=limits)
        return read_pictures(file, limits=limits, whole=window is not None)


@contextlib.contextmanager
def _damage_is_a_bad_clip(name: str) -> Iterator[None]:
    """Raises `BadClip` for what libraries raise on damaged bytes."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise BadClip(name, f"is not an image ({', '.join(PICTURE_FORMATS)})") from error
    except DECODING_ERRORS as error:
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BadClip(name, f"cannot be decoded: {said.splitlines()[0][:120]}") from error


def check_bytes(size: int, name: str) -> None:
    """Raises `BadClip` for a file that is too large to be held in memory while it is decoded."""
    if size > MAX_BYTES:
        raise BadClip(name, f"has {size} bytes, over the {MAX_BYTES} of a file in an archive or a bucket: split it")


def _check_ending(name: str) -> None:
    """Raises `BadClip` for a file of an ending that is not read."""
    if suffix_of(name) in HEIC_SUFFIXES:
        raise BadClip(name, f"is a HEIC picture by its ending, which is not read: {HEIC_REMEDY}")
    if suffix_of(name) not in MEDIA_SUFFIXES:
        raise BadClip(name, f"the ending {suffix_of(name)!r} is none of {', '.join(sorted(MEDIA_SUFFIXES))}")


def _kind(file: BinaryIO, name: str) -> str:
    """Returns the demuxer of a file, or `PICTURE`; raises `BadClip` for what is known to be neither."""
    head = file.read(HEAD_BYTES)
    file.seek(0)
    if head.startswith(LFS_POINTER):
        raise BadClip(name, "is a git LFS pointer, not the file itself: run git lfs pull")
    strange = strange_kind(head)
    if strange is not None:
        raise BadClip(name, f"is a {strange}")
    return kind_of(head) or DEMUXERS.get(suffix_of(name), PICTURE)


@contextlib.contextmanager
def _regular_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Yields the file opened for reading; raises `OSError` for a pipe or device, without waiting for one."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("it is not a regular file")
        yield file
