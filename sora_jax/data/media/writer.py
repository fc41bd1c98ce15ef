"""Pixels to media files.

Shapes: `T` frames, `H` rows of pixels, `W` columns of pixels, `C` = 3 colours (red, green, blue).
"""

import contextlib
import dataclasses
import io
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from absl import logging
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sora_jax.core.errors import StorageError, UserError
from sora_jax.core.paths import beside

# What each container may hold, the first by default; .png also as frames_%04d.png, one file a frame.
CODECS = {".mp4": ("h264", "av1"), ".webm": ("vp9", "av1")}
WRITTEN_SUFFIXES = (*CODECS, ".gif", ".webp", ".png")
# Frames per second that animated pictures show at most: viewers hold shorter frames for a tenth of a second instead.
FASTEST = {".gif": 50.0, ".webp": 1000 / 11}
# As `rgb.TO_RGB`, the other way.
FROM_RGB = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP
# Of high quality; one thread, since their number changes the bytes.
_ENCODERS: dict[str, tuple[str, dict[str, str]]] = {
    "h264": ("libx264", {"crf": "12"}),
    "vp9": ("libvpx-vp9", {"crf": "15", "b": "0", "row-mt": "0"}),
    "av1": ("libsvtav1", {"crf": "15", "preset": "8", "svtav1-params": "lp=1"}),
}
_SMALLEST_AV1 = 64  # px, of a side
_NUMBERED = re.compile(r"%0?[1-9]?d")
_DIGITS = re.compile("[0-9]+")

Facts = Mapping[str, Any]
Write = Callable[[np.ndarray], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipFormat:
    """How a clip is written.

    Attributes:
      fps: Frames per second.
      codec: One of `CODECS` of the ending; None: the first.
      facts: What the file should say of itself, as JSON in its comment; a "prompt" is its title too.
    """

    fps: float
    codec: str | None = None
    facts: Facts = dataclasses.field(default_factory=dict)


def write_clip(path: str | os.PathLike, pixels_THWC: np.ndarray, *, fps: float) -> None:
    """Writes uint8 (T, H, W, 3) at `fps` frames per second, as `open_clip` does."""
    check_written_suffix(path, frames=len(pixels_THWC))
    with open_clip(path, ClipFormat(fps=fps)) as write:
        write(pixels_THWC)


def write_picture(path: Path, pixels_HWC: np.ndarray) -> None:
    """Writes uint8 (H, W, 3) to a .png of this very name, in which a `%02d` stands for no number."""
    with _replacing(path) as partial:
        partial.write_bytes(encode_png(pixels_HWC))


@contextlib.contextmanager
def open_clip(path: str | os.PathLike, form: ClipFormat) -> Iterator[Write]:
    """Yields what takes uint8 frames (n, H, W, 3) piece by piece; the ending of `path` chooses the format.

    .mp4 and .webm are of high quality, tagged BT.709, with colour at half resolution when both sides are even, and
    hold no more than a piece in memory; .gif has 256 colours a frame, .webp is of high quality, .png holds one frame,
    frames_%04d.png one in each file. Equal input gives equal bytes. The file appears under its name only when it is
    whole; missing folders are made.

    Raises `UserError` for another ending, codec, or for several frames in a .png; `StorageError` where the disk
    refuses.
    """
    path = Path(path)
    check_written_suffix(path, frames=1, codec=form.codec)
    suffix = path.suffix.lower()
    fastest = FASTEST.get(suffix, form.fps)
    if form.fps > fastest:
        logging.warning(
            f"{path} will last {form.fps / fastest:.2g} times as long: a {suffix[1:]} shows at most {fastest:.3g} "
            f"frames per second, not {form.fps:g}; .mp4 and .webm keep the rate"
        )
    if is_numbered(path):
        numbered = _Numbered(path, form)
        yield numbered.write
        numbered.end()
        return
    with _replacing(path) as partial:
        if suffix in CODECS:
            with _encoding(partial, form, suffix) as write:
                yield write
            return
        pieces: list[np.ndarray] = []
        yield pieces.append
        pixels_THWC = np.concatenate(pieces)
        check_written_suffix(path, frames=len(pixels_THWC))
        encode = {".gif": encode_gif, ".webp": _encode_webp}.get(suffix)
        if encode is not None:
            partial.write_bytes(encode(pixels_THWC, fps=form.fps, facts=form.facts))
        else:
            partial.write_bytes(encode_png(pixels_THWC[0], facts=form.facts))


def check_codec(codec: str | None, size: tuple[int, int]) -> None:
    """Raises `UserError` where a codec, as of `ClipFormat`, takes no frames of a size, height and width in px."""
    if codec == "av1" and min(size) < _SMALLEST_AV1:
        raise UserError(
            f"the AV1 encoder takes sides of {_SMALLEST_AV1} px or more, not {size[0]}x{size[1]}: choose another codec"
        )


def check_written_suffix(path: str | os.PathLike, *, frames: int, codec: str | None = None) -> None:
    """Raises `UserError` where `open_clip` could not write so many frames to `path`, or not with that codec."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in WRITTEN_SUFFIXES:
        raise UserError(f"cannot write {path}: the ending must be one of {', '.join(WRITTEN_SUFFIXES)}")
    if suffix == ".png" and frames > 1 and not is_numbered(path):
        raise UserError(
            f"cannot write {frames} frames to {path}: a video ends in .mp4, .webm, .gif or .webp, or is frames_%04d.png"
        )
    if codec is not None and codec not in CODECS.get(suffix, ()):
        allowed = ", ".join(f"{', '.join(codecs)} in {ending}" for ending, codecs in CODECS.items())
        raise UserError(f"cannot write {path} with the codec {codec}: there are {allowed}")


def is_numbered(path: Path) -> bool:
    """Returns whether `open_clip` writes each frame to a picture of its own; in other endings a % is only a %."""
    return path.suffix.lower() == ".png" and _NUMBERED.search(path.name) is not None


def first_file(path: Path) -> Path:
    """Returns the file that holds the first frame of what `open_clip` writes to `path`."""
    return _frame_file(path, 0) if is_numbered(path) else path


def share_a_file(first: Path, second: Path) -> bool:
    """Returns whether two names of one folder may come to be one file: numbers are those of any frames."""
    if not is_numbered(first):
        first, second = second, first
    if not is_numbered(first):
        return first.name == second.name
    before, after = _around_numbers(first)
    if is_numbered(second):
        others = _around_numbers(second)
        return _differ_in_digits(before, others[0]) and _differ_in_digits(after[::-1], others[1][::-1])
    if not (second.name.startswith(before) and second.name.endswith(after)):
        return False
    runs = _DIGITS.findall(second.name)
    numbers = {int(run[i:j]) for run in runs for i, j in itertools.combinations(range(len(run) + 1), 2)}
    return any(_frame_file(first, number).name == second.name for number in numbers)


def _around_numbers(path: Path) -> tuple[str, str]:
    """Returns what a numbered name has before its first number, and after its last one."""
    parts = _NUMBERED.split(path.name)
    return parts[0], parts[-1]


def _differ_in_digits(one: str, other: str) -> bool:
    """Returns whether two texts begin alike, and the longer one goes on with digits, or blanks before them, alone."""
    short, long = sorted((one, other), key=len)
    return long.startswith(short) and not long[len(short) :].strip(" 0123456789")


def _frame_file(path: Path, number: int) -> Path:
    return path.with_name(_NUMBERED.sub(lambda found: found[0] % number, path.name))


def encode_gif(pixels_THWC: np.ndarray, *, fps: float, facts: Facts | None = None) -> bytes:
    """Returns an endless GIF of uint8 (T, H, W, 3), each frame with a palette of its own.

    A GIF counts in hundredths of a second: durations are rounded so that the sum stays right. Faster videos are slowed
    down to `FASTEST`.
    """
    frames = [Image.fromarray(f_HWC).quantize(256, Image.Quantize.MEDIANCUT) for f_HWC in pixels_THWC]
    durations = [10 * d for d in _durations(len(frames), rate=min(fps, FASTEST[".gif"]), unit=0.01)]
    said = {"comment": json.dumps(facts).encode()} if facts else {}
    return _encode_animation(frames, durations, "GIF", disposal=1, optimize=False, **said)


def _encode_webp(pixels_THWC: np.ndarray, *, fps: float, facts: Facts | None = None) -> bytes:
    """Returns an endless WebP of uint8 (T, H, W, 3); faster videos are slowed down to `FASTEST`."""
    frames = [Image.fromarray(frame_HWC) for frame_HWC in pixels_THWC]
    durations = _durations(len(frames), rate=min(fps, FASTEST[".webp"]), unit=0.001)
    said = {}
    if facts:
        exif = Image.Exif()
        exif[0x010E] = json.dumps(facts)  # ImageDescription
        said["exif"] = exif.tobytes()
    return _encode_animation(frames, durations, "WEBP", quality=95, method=4, **said)


def _encode_animation(frames: list[Image.Image], durations: list[int], name: str, **options: Any) -> bytes:
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


def encode_png(pixels_HWC: np.ndarray, *, facts: Facts | None = None) -> bytes:
    """Returns a PNG of uint8 (H, W, 3)."""
    buffer = io.BytesIO()
    said = None
    if facts:
        said = PngInfo()
        said.add_itxt("Comment", _said(facts))
    Image.fromarray(pixels_HWC).save(buffer, "PNG", pnginfo=said)
    return buffer.getvalue()


class _Numbered:
    """Writes each frame to a picture of its own, counted from 0."""

    def __init__(self, path: Path, form: ClipFormat):
        self._path, self._form, self._count = path, form, 0

    def write(self, pixels_THWC: np.ndarray) -> None:
        for pixels_HWC in pixels_THWC:
            with _replacing(_frame_file(self._path, self._count)) as partial:
                partial.write_bytes(encode_png(pixels_HWC, facts=self._form.facts))
            self._count += 1

    def end(self) -> None:
        """Tells of pictures that follow by their numbers, and would be taken for frames of this video."""
        following = _frame_file(self._path, self._count)
        if following.exists():
            logging.warning("%s was there before and is no frame of this video, which has %d", following, self._count)


@contextlib.contextmanager
def _encoding(path: Path, form: ClipFormat, suffix: str) -> Iterator[Write]:
    """Yields what encodes frames into a container; all pieces have the size of the first."""
    codec, container = form.codec or CODECS[suffix][0], suffix.removeprefix(".")
    # Matroska draws its identifiers at random otherwise.
    options = {"movflags": "+faststart"} if container == "mp4" else {"fflags": "+bitexact"}
    with av.open(path.absolute(), "w", format=container, options=options) as output:
        output.metadata.update(_metadata(form.facts))
        stream: Any = None

        def write(pixels_THWC: np.ndarray) -> None:
            nonlocal stream
            assert pixels_THWC.dtype == np.uint8, pixels_THWC.dtype
            if stream is None:
                stream = _add_stream(output, codec, form.fps, pixels_THWC.shape[1:3])
            for pixels_HWC in pixels_THWC:
                frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels_HWC), format="rgb24")
                frame = frame.reformat(format=stream.pix_fmt, dst_colorspace="ITU709", interpolation=FROM_RGB)
                output.mux(stream.encode(frame))

        yield write
        output.mux(stream.encode())


def _add_stream(output: Any, codec: str, fps: float, size: tuple[int, int]) -> Any:
    """Returns the stream of an encoder, tagged BT.709 so that every player shows the same colours."""
    height, width = size
    check_codec(codec, size)
    name, options = _ENCODERS[codec]
    stream = output.add_stream(name, rate=Fraction(fps).limit_denominator(1001), options=options)
    stream.height, stream.width = height, width
    stream.pix_fmt = "yuv420p" if (height % 2 == 0 and width % 2 == 0) or codec == "av1" else "yuv444p"
    context = stream.codec_context
    context.thread_count = 1
    context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1
    return stream


def _metadata(facts: Facts) -> dict[str, str]:
    if not facts:
        return {}
    prompt = facts.get("prompt", "")
    title = prompt if isinstance(prompt, str) else " / ".join(prompt)
    return {"title": title, "comment": _said(facts)}


def _said(facts: Facts) -> str:
    """Returns the facts as JSON that can be written as UTF-8, whatever a file or a prompt in them is called."""
    return json.dumps(facts, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yields a name beside `path`; what is written there becomes `path`, or disappears on an error.

    A link that has either name is replaced, never followed: others may write to the folder, as in /tmp.
    """
    partial = beside(path.with_name(f".{path.name}"), f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        partial.open("xb").close()
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
