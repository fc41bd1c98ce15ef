"""A clip and how it is cut to what the model can take.

Shapes: `T` frames, `H` rows of pixels, `W` columns of pixels, `C` = 3 colours.

A clip keeps its aspect ratio and its duration. The limit is a number of tokens, not a size: only a clip
over the limit is scaled down, isotropically, and only what the strides demand is trimmed or cropped
(Dehghani et al., "Patch n' Pack", arXiv 2307.06304, section 2, for images; here time is a third axis).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from fractions import Fraction

import numpy as np
from PIL import Image

from sora_jax.core.printable import printable

# While the short side of the token grid is above this, a clip over the limit loses size; below it, duration.
# A minute of video shrunk to a few pixels teaches less than its first seconds at a size that shows something.
SHORT_SIDE_TOKENS = 4
# Of a picture may be cut to gain size, and of the size may be given up to keep the picture whole.
LITTLE_CUT, LEAST_SIZE = 0.02, 0.5

FrameRange = tuple[int, int]  # numbers of the first and the last frame, counted from 0, both included


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """Pixels of one video or image with what is known about them.

    `pixels_THWC` is uint8 with C = 3 (an image has T = 1), `fps` is in frames per second (of no meaning when
    T = 1), `captions` are alternatives for the whole clip, `source_id` names the clip within its source.
    A caption is drawn as often as its weight among `weights` (> 0) says; None: all alike. `file_frames` is how many
    frames the file has from which these were read, at this rate, by its headers; None: not known. `beside` are pixels
    that the user gives for it, such as its depth, by kind; of the shape of its own.
    """

    pixels_THWC: np.ndarray
    fps: float
    captions: tuple[str, ...]
    source_id: str
    weights: tuple[float, ...] | None = None
    file_frames: int | None = None
    beside: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        assert self.weights is None or len(self.weights) == len(self.captions), self.weights
        assert self.pixels_THWC.dtype == np.uint8, self.pixels_THWC.dtype
        assert self.pixels_THWC.ndim == 4, self.pixels_THWC.shape
        assert self.pixels_THWC.shape[-1] == 3, self.pixels_THWC.shape
        assert min(self.pixels_THWC.shape) > 0, self.pixels_THWC.shape
        assert self.fps > 0, self.fps


class BadClip(Exception):
    """A clip that cannot be used: `source_id` names it and `reason` is a short sentence for the user."""

    def __init__(self, source_id: str, reason: str):
        # Both go to `args`, so that the exception survives pickling between worker processes.
        super().__init__(source_id, reason)
        self.source_id = source_id
        self.reason = reason

    def __str__(self) -> str:
        # The name is one that strangers gave; it goes to terminals and logs.
        return printable(f"{self.source_id}: {self.reason}")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """A clip that fits the model, with what was lost on the way.

    `trimmed_frames` were cut from the end; `scale` in (0, 1] is the isotropic factor on both sides; then
    `cropped_rows` and `cropped_columns` of scaled pixels were cut evenly from the edges, `cut` is their share of the
    picture, in [0, 1); `tokens` are left.
    """

    clip: Clip
    trimmed_frames: int
    cropped_rows: int
    cropped_columns: int
    cut: float
    scale: float
    tokens: int


def fit_clip(
    clip: Clip,
    *,
    stride: tuple[int, int, int],
    min_tokens: int,
    max_tokens: int,
    max_frames: int | None,
    square_crop: bool = False,
) -> Fitted:
    """Returns the clip trimmed, scaled and cropped as little as the strides and the token limits allow.

    `stride` holds pixels per token: (temporal stride, spatial stride x patch height, spatial stride x patch
    width). A clip of T frames, H rows and W columns has `(1 + (T - 1) / st) * (H / sh) * (W / sw)` tokens.

    The first frames are kept, 1 + k * st of them and at most `max_frames`. Over `max_tokens` the clip is
    scaled down, to a scale at which one side is an exact multiple of its stride: of those that fit and are at least
    `LEAST_SIZE` of the largest that does, to the largest that cuts at most `LITTLE_CUT` of the picture, else to the one
    that cuts least, by whole percents. Once the short side of the largest has `SHORT_SIDE_TOKENS` tokens, time is cut
    instead; only a single frame that is still too large is scaled further. With `square_crop` only the central square
    is kept, and all of this is done to it.

    Raises `BadClip` when the clip is smaller than one stride, has fewer than `min_tokens` tokens, or is so
    elongated that no scale brings one frame under `max_tokens`.
    """
    st, sh, sw = stride
    assert min(stride) > 0, stride
    assert 0 < min_tokens <= max_tokens, (min_tokens, max_tokens)
    assert max_frames is None or max_frames > 0, max_frames
    frames, height, width, _ = clip.pixels_THWC.shape
    if height < sh or width < sw:
        reason = f"{height}x{width} pixels are smaller than one token of {sh}x{sw} pixels"
        raise BadClip(clip.source_id, reason)
    allowed_frames = frames if max_frames is None else min(frames, max_frames)
    steps = 1 + (allowed_frames - 1) // st
    # What is kept lies in the middle, of the square as of the frame.
    sides = (min(height, width),) * 2 if square_crop else (height, width)
    fit = _fit_grid(steps, sides, stride=(sh, sw), max_tokens=max_tokens)
    if fit is None:
        reason = f"{height}x{width} pixels are too elongated for one frame of max_tokens = {max_tokens} tokens"
        raise BadClip(clip.source_id, reason)
    steps, scale, (rows, columns) = fit
    tokens = steps * rows * columns
    if tokens < min_tokens:
        reason = f"{frames} frames of {height}x{width} give {tokens} tokens, under min_tokens = {min_tokens}"
        raise BadClip(clip.source_id, reason)
    return _cut_clip(clip, frames=1 + (steps - 1) * st, scale=scale, size=(rows * sh, columns * sw), tokens=tokens)


def _cut_clip(clip: Clip, *, frames: int, scale: Fraction, size: tuple[int, int], tokens: int) -> Fitted:
    """Returns the first frames of a clip, scaled and cropped to `size`, and what that loses."""
    all_frames, height, width, _ = clip.pixels_THWC.shape

    def cut(pixels_THWC: np.ndarray) -> np.ndarray:
        return scale_and_crop(pixels_THWC[:frames], scale=scale, size=size)

    return Fitted(
        clip=with_pixels(clip, cut),
        trimmed_frames=all_frames - frames,
        cropped_rows=int(height * scale) - size[0],
        cropped_columns=int(width * scale) - size[1],
        cut=float(1 - Fraction(size[0] * size[1]) / (scale**2 * height * width)),
        scale=float(scale),
        tokens=tokens,
    )


def with_pixels(clip: Clip, change: Callable[[np.ndarray], np.ndarray]) -> Clip:
    """Returns a clip whose pixels, and those beside it, are what `change` makes of them."""
    beside = {kind: change(pixels_THWC) for kind, pixels_THWC in clip.beside.items()}
    return dataclasses.replace(clip, pixels_THWC=change(clip.pixels_THWC), beside=beside)


def _fit_grid(
    steps: int, sides: tuple[int, int], *, stride: tuple[int, int], max_tokens: int
) -> tuple[int, Fraction, tuple[int, int]] | None:
    """Returns (time steps, exact scale, token grid of a frame), or None where even one frame cannot fit."""
    if steps * _area(Fraction(1), sides, stride=stride) <= max_tokens:
        return steps, Fraction(1), _grid(Fraction(1), sides, stride=stride)
    scales = _exact_scales(sides, stride=stride)
    short_side = min(SHORT_SIDE_TOKENS, *_grid(Fraction(1), sides, stride=stride))
    smallest = next(s for s in scales if min(_grid(s, sides, stride=stride)) >= short_side)
    kept = min(steps, max(1, max_tokens // _area(smallest, sides, stride=stride)))
    fitting = [s for s in scales if kept * _area(s, sides, stride=stride) <= max_tokens]
    if not fitting:
        return None
    large = [s for s in fitting if s >= fitting[-1] * Fraction(LEAST_SIZE)]
    scale = max(large, key=lambda s: (-_percents(_cut(s, sides, stride=stride)), s))
    return min(steps, max_tokens // _area(scale, sides, stride=stride)), scale, _grid(scale, sides, stride=stride)


def _percents(cut: Fraction) -> int:
    """Returns the percents of a picture that a cut takes, as they are compared: what is little is alike."""
    return max(math.ceil(100 * cut), round(100 * LITTLE_CUT))


def _exact_scales(sides: tuple[int, int], *, stride: tuple[int, int]) -> list[Fraction]:
    """Returns the ascending scales in (0, 1] that make a side an exact multiple and leave a token on both."""
    scales = {Fraction(n * s, side) for side, s in zip(sides, stride, strict=True) for n in range(1, side // s + 1)}
    return sorted(scale for scale in scales if min(_grid(scale, sides, stride=stride)) >= 1)


def _grid(scale: Fraction, sides: tuple[int, int], *, stride: tuple[int, int]) -> tuple[int, int]:
    """Returns (rows, columns) of whole tokens in a frame scaled by `scale`."""
    return int(sides[0] * scale) // stride[0], int(sides[1] * scale) // stride[1]


def _cut(scale: Fraction, sides: tuple[int, int], *, stride: tuple[int, int]) -> Fraction:
    """Returns the share of a frame scaled by `scale` that whole tokens leave out."""
    rows, columns = _grid(scale, sides, stride=stride)
    return 1 - rows * stride[0] * columns * stride[1] / (scale**2 * sides[0] * sides[1])


def _area(scale: Fraction, sides: tuple[int, int], *, stride: tuple[int, int]) -> int:
    """Returns the tokens of one frame scaled by `scale`."""
    rows, columns = _grid(scale, sides, stride=stride)
    return rows * columns


def covering(pixels_THWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns uint8 (T, *size, 3): the clip scaled isotropically, up or down, until it covers `size`; its centre."""
    height, width = pixels_THWC.shape[1:3]
    return scale_and_crop(pixels_THWC, scale=max(Fraction(size[0], height), Fraction(size[1], width)), size=size)


def scale_and_crop(pixels_THWC: np.ndarray, *, scale: Fraction, size: tuple[int, int]) -> np.ndarray:
    """Returns uint8 (T, *size, 3): the centre of every frame, bicubic, antialiased where it is scaled down."""
    _, height, width, _ = pixels_THWC.shape
    if scale == 1:
        top, left = (height - size[0]) // 2, (width - size[1]) // 2
        return np.ascontiguousarray(pixels_THWC[:, top : top + size[0], left : left + size[1]])
    # The box is in source pixels and may be fractional, so the scale is exactly the same on both axes.
    box_height, box_width = float(size[0] / scale), float(size[1] / scale)
    top, left = max(0.0, (height - box_height) / 2), max(0.0, (width - box_width) / 2)
    box = (left, top, min(width, left + box_width), min(height, top + box_height))
    frames = [
        Image.fromarray(frame_HWC).resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box)
        for frame_HWC in pixels_THWC
    ]
    return np.stack([np.asarray(frame) for frame in frames])
