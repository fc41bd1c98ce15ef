"""Frames of videos as a viewer sees them: in RGB, with square pixels, upright.

Shapes: `H` rows of pixels, `W` columns of pixels, `C` = 3 colours (red, green, blue).
"""

import struct
from fractions import Fraction

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from PIL import Image

from sora_jax.data.media.pictures import ReadLimits, on_white
from sora_jax.data.media.tone import TONE_FORMAT, ToneMap, is_mapped

NEARLY_SQUARE = 0.01  # pixels this close to square are not resampled
HD = (720, 1280)  # rows, columns, from either of which on untagged colours are taken for BT.709, as players do
UNTAGGED = 2  # AVCOL_SPC_UNSPECIFIED
NEARLY_QUARTER = 0.02  # sine of the angle up to which a display matrix counts as one of quarter turns, as FFmpeg has it

# By default FFmpeg rounds colours down, over one level darker with every pass through a file.
TO_RGB = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
# Formats that FFmpeg converts faster by way of one plane a colour, for which it has vector code: to the same pixels.
PLANES_FIRST = ("yuv42", "yuv44", "yuvj42", "yuvj44")


def square_size(frame: VideoFrame, pixel_aspect: Fraction | None) -> tuple[int, int]:
    """Returns (height, width) with square pixels, the shorter way of the pixel stretched."""
    if not pixel_aspect or abs(pixel_aspect - 1) < NEARLY_SQUARE:
        return frame.height, frame.width
    if pixel_aspect > 1:
        return frame.height, round(frame.width * pixel_aspect)
    return round(frame.height / pixel_aspect), frame.width


class Converter:
    """Makes RGB of the frames of a stream. One for all of them: it takes about as long to set up as a frame.

    `limits` say whether they must be opaque.
    """

    def __init__(self, limits: ReadLimits):
        self._limits = limits
        self._to_planes, self._to_pixels = VideoReformatter(), VideoReformatter()
        self._map: tuple[tuple[int, int], ToneMap] | None = None

    def upright_rgb(self, frame: VideoFrame, *, height: int, width: int) -> np.ndarray:
        """Returns uint8 (H, W, 3) of the frame at `height` x `width`, then turned as its display matrix says.

        Raises `BadClip` where it must be opaque and is not.
        """
        turn = frame.side_data.get("DISPLAYMATRIX")
        tags = frame.color_trc, frame.color_primaries
        transparent = any(component.is_alpha for component in frame.format.components)
        size, how = (width, height), {"src_colorspace": _matrix(frame), "interpolation": TO_RGB, "threads": 1}
        if is_mapped(*tags) and not transparent:
            pixels_HWC = self._mapped(self._to_planes.reformat(frame, *size, TONE_FORMAT, **how).to_ndarray(), tags)
            return pixels_HWC if turn is None else turned(pixels_HWC, bytes(turn))
        if frame.format.name.startswith(PLANES_FIRST) and not transparent:
            frame = self._to_planes.reformat(frame, *size, "gbrp", **how)
        pixels_HWC = self._to_pixels.reformat(frame, *size, "rgba" if transparent else "rgb24", **how).to_ndarray()
        if transparent:
            if self._limits.opaque and pixels_HWC[..., 3].min() < 255:
                raise self._limits.transparent()
            pixels_HWC = np.asarray(on_white(Image.fromarray(pixels_HWC)))
        return pixels_HWC if turn is None else turned(pixels_HWC, bytes(turn))

    def _mapped(self, signal_HWC: np.ndarray, tags: tuple[int, int]) -> np.ndarray:
        """Returns uint8 colours of BT.709 of a signal with these tags, transfer and primaries."""
        if self._map is None or self._map[0] != tags:
            self._map = tags, ToneMap(transfer=tags[0], primaries=tags[1])
        return self._map[1](signal_HWC)


def _matrix(frame: VideoFrame) -> Colorspace | None:
    """Returns the matrix from luma and colour differences to RGB; None: the one that the frame names."""
    if frame.colorspace != UNTAGGED or frame.format.is_rgb or len(frame.format.components) < 3:
        return None
    if is_mapped(frame.color_trc, frame.color_primaries):
        return Colorspace.BT2020
    return Colorspace.ITU709 if frame.height >= HD[0] or frame.width >= HD[1] else Colorspace.ITU601


def turned(pixels_HWC: np.ndarray, matrix: bytes) -> np.ndarray:
    """Returns the pixels (H, W, C) turned, and mirrored, as a display matrix says, or (W, H, C).

    The matrix is FFmpeg's: nine int32, of which a, b, d, e at 0, 1, 3, 4 take the pixel at (x, y), x to the right and y
    down, to (a x + d y, b x + e y). One of an angle between the quarters, or a broken one, is left alone.
    """
    numbers = struct.unpack("=9i", matrix)
    a, b, d, e = numbers[0], numbers[1], numbers[3], numbers[4]
    if max(abs(b), abs(d)) < NEARLY_QUARTER * min(abs(a), abs(e)):
        x, y = a, e
    elif max(abs(a), abs(e)) < NEARLY_QUARTER * min(abs(b), abs(d)):
        pixels_HWC, x, y = pixels_HWC.swapaxes(0, 1), d, b
    else:
        return pixels_HWC
    return pixels_HWC[:: 1 if y > 0 else -1, :: 1 if x > 0 else -1]
