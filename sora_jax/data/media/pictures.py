"""Pixels from images and animated pictures, and what limits the reading of any media file.

Shapes: `T` frames, `H` rows of pixels, `W` columns of pixels, `C` = 3 colours (red, green, blue).
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import BinaryIO, TypedDict

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from sora_jax.data.clips import BadClip
from sora_jax.data.media.frame_rates import at_rate
from sora_jax.data.media.profiles import in_srgb

MAX_PIXELS = 2**30  # frames x rows x columns; three bytes each
# Pillow refuses twice as many, before it takes memory: also frames of a GIF that are larger than its header says.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
PICTURE_FORMATS = ("GIF", "WEBP", "PNG", "JPEG", "BMP", "TIFF", "AVIF")
ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")
# Tags of a page of a TIFF (6.0, pages 36 and 40), and their values for one that is of another page.
_NEW_SUBFILE, _COPY_OR_MASK, _SUBFILE, _REDUCED = 254, 0b101, 255, 2
ROUNDED = 0.005  # seconds, by which a GIF's times are off at most: it counts in hundredths


# Makes room for uint8 of a shape.
Allocator = Callable[[tuple[int, ...]], np.ndarray]


# Is told how many frames a file has at the rate at which it is read, as far as its headers say.
Tell = Callable[[int], None]


def tell_nobody(frames: int) -> None:
    """Takes the number of frames of a file, for those who need it not."""
    del frames


def allocate_bytes(shape: tuple[int, ...]) -> np.ndarray:
    """Returns uint8 of a shape, not yet written to."""
    return np.empty(shape, np.uint8)


class ReadOptions(TypedDict, total=False):
    """What can be asked for besides the clip, of every reader; `video_io.read_stream` says what each means."""

    max_frames: int | None
    max_pixels: int
    window: tuple[int, int] | None
    short_side: int | None
    fps: float | None
    opaque: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadLimits:
    """The file's name for messages, how much of it is kept, at which size, and where; see `video_io.read_stream`."""

    source_id: str
    max_frames: int | None
    max_pixels: int
    first_frame: int = 0
    short_side: int | None = None
    fps: float | None = None
    opaque: bool = False
    allocate: Allocator = allocate_bytes
    tell: Tell = tell_nobody

    def __post_init__(self):
        assert all(limit is None or limit > 0 for limit in (self.max_frames, self.fps)), (self.max_frames, self.fps)

    def within(self, window: tuple[int, int] | None) -> "ReadLimits":
        """Returns these limits for frames (first, last), counted from 0, both included; None: for all."""
        if window is None:
            return self
        first, last = window
        assert 0 <= first <= last, window
        return dataclasses.replace(self, first_frame=first, max_frames=last - first + 1)

    @property
    def stop(self) -> int | None:
        """The number of the frame at which decoding ends; None decodes all."""
        return None if self.max_frames is None else self.first_frame + self.max_frames

    def wanted(self, frames: int) -> int:
        """Returns how many of `frames` frames are kept, at least one."""
        left = max(1, frames - self.first_frame)
        return left if self.max_frames is None else min(left, self.max_frames)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Returns the sides scaled down, isotropically, to `short_side`."""
        scale = 1.0 if self.short_side is None else min(1.0, self.short_side / min(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))

    def most(self, height: int, width: int) -> int:
        """Returns how many frames of a size `max_pixels` allows, at least one."""
        return max(1, self.max_pixels // max(1, height * width))

    def check(self, frames: int, height: int, width: int) -> None:
        """Raises `BadClip` where so many pixels are too many."""
        if frames * height * width > self.max_pixels:
            remedy = ": cut or scale it first; of clips to train on set data.max_frames" if frames > 1 else ""
            reason = f"{frames} frames of {height}x{width} exceed max_pixels = {self.max_pixels}{remedy}"
            raise BadClip(self.source_id, reason)

    def transparent(self) -> BadClip:
        """Returns what is raised where opaque pixels are asked for and there are others."""
        return BadClip(self.source_id, "is transparent in places: put it on a background first")


def read_pictures(file: BinaryIO, *, limits: ReadLimits, whole: bool) -> tuple[np.ndarray, float]:
    """Returns pixels and rate of an image (T = 1, rate 1) or of an animated GIF, WebP, PNG or AVIF.

    How often frames are repeated, and whether they follow faster than `limits.fps`, depends on all that are decoded;
    `whole` decodes all, and so does `limits.fps`, so that numbers of frames mean the same in every window.
    """
    with Image.open(file, formats=PICTURE_FORMATS) as image:
        # The first picture of an animated PNG may be there for those who cannot play it: then it is not of the film.
        still = _page(image, limits) if image.format == "TIFF" else int(getattr(image, "default_image", False))
        # A JPEG with several pictures (MPO) is one photo, taken more than once.
        frames_there = getattr(image, "n_frames", 1) - still if image.format in ANIMATED else 1
        wanted = frames_there if whole or limits.fps else limits.wanted(frames_there)
        limits.check(wanted, *limits.size(image.height, image.width))
        if wanted == 1:
            image.seek(still)
            _check_opaque(image, limits)
            return np.asarray(shrunk(_plain_rgb(ImageOps.exif_transpose(image)), limits))[None], 1.0
        pixels_THWC, seconds = None, []
        for index in range(wanted):
            image.seek(still + index)
            image.load()
            _check_opaque(image, limits)
            pixels_HWC = np.asarray(shrunk(_plain_rgb(ImageOps.exif_transpose(image)), limits))
            if pixels_THWC is None:
                pixels_THWC = limits.allocate((wanted, *pixels_HWC.shape))
            if pixels_HWC.shape != pixels_THWC.shape[1:]:
                raise BadClip(limits.source_id, f"changes size at frame {index + 1}")
            pixels_THWC[index] = pixels_HWC
            # Browsers show frames of up to 10 ms for 100 ms, and their makers know.
            milliseconds = image.info.get("duration", 0)
            seconds.append(milliseconds / 1000 if milliseconds > 10 else 0.1)
    assert pixels_THWC is not None
    holds = [max(1, round(second / min(seconds))) for second in seconds]
    # Encoders store equal neighbours once; repeating them gives motion its real speed back.
    rate, frames = sum(holds) / sum(seconds), sum(holds)
    shown = itertools.chain.from_iterable(map(itertools.repeat, range(wanted), holds))
    if limits.fps and rate >= limits.fps:
        starts = list(itertools.accumulate(seconds, initial=0.0))
        starts[-1] -= seconds[-1] / holds[-1]  # what is repeated last
        rate, frames = limits.fps, int(1 + starts[-1] * limits.fps)  # all of them are decoded then
        shown = at_rate(zip([*range(wanted), wanted - 1], starts, strict=True), fps=rate, slack=ROUNDED)
    limits.tell(round(frames * frames_there / wanted))
    limits.check(limits.wanted(frames), *pixels_THWC.shape[1:3])
    numbers = list(itertools.islice(shown, limits.first_frame, limits.stop))
    if not numbers:
        raise BadClip(limits.source_id, f"has no frames after the first {limits.first_frame}")
    return pixels_THWC if np.array_equal(numbers, np.arange(wanted)) else pixels_THWC[numbers], rate


def _page(image: Image.Image, limits: ReadLimits) -> int:
    """Returns the number of the one picture in a TIFF, among smaller copies and masks of it, and shows it.

    Raises `BadClip` for several: which of them is meant, or whether they are a film, the file does not say.
    """
    pages = []
    for index in range(getattr(image, "n_frames", 1)):
        image.seek(index)
        tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
        if not (tags.get(_NEW_SUBFILE, 0) & _COPY_OR_MASK or tags.get(_SUBFILE) == _REDUCED):
            pages.append(index)
    if len(pages) > 1:
        reason = f"has {len(pages)} pages: save each as a picture of its own, or all of them as a video"
        raise BadClip(limits.source_id, reason)
    page = pages[0] if pages else 0
    image.seek(page)
    return page


def shrunk(image: Image.Image, limits: ReadLimits) -> Image.Image:
    """Returns the image at the size that is asked for."""
    height, width = limits.size(image.height, image.width)
    return image.resize((width, height), Image.Resampling.BOX) if height < image.height else image


def _plain_rgb(image: Image.Image) -> Image.Image:
    """Returns the image as 8 bit sRGB, its colour profile applied, transparency on white."""
    image = in_srgb(image)
    if image.mode.startswith("I"):
        # Pillow clips 16 bit greys at 255 instead of scaling them.
        levels_HW = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((levels_HW + 128) // 257).astype(np.uint8)).convert("RGB")
    return on_white(image) if image.has_transparency_data else image.convert("RGB")


def _check_opaque(image: Image.Image, limits: ReadLimits) -> None:
    """Raises `BadClip` where opaque pixels are asked for and some of the image are not."""
    if not limits.opaque or not image.has_transparency_data:
        return
    if (np.asarray(image.convert("RGBA").getchannel("A")) < 255).any():
        raise limits.transparent()


def on_white(image: Image.Image) -> Image.Image:
    """Returns the image as RGB, composited on white."""
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")
