"""The files that a request names, read: the image, the videos at one rate, the mask.

Letters: T H W C frames, rows, columns, colours of pixels.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import numpy as np

from sora_jax.core.errors import UserError
from sora_jax.data.clips import BadClip
from sora_jax.data.frame_rates import at_rate
from sora_jax.data.guarded import GuardedReader
from sora_jax.data.pictures import ReadOptions
from sora_jax.data.video_io import MAX_PIXELS
from sora_jax.data.videos import LATEST_SHARE
from sora_jax.generate.request import Request

# A mask is white where its mean over colours is over this.
_WHITE = 127
# Rates this close are one: 29.97 and 30, 23.976 and 24.
_SAME_RATE = 0.005


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Given:
    """What a request gives, at its native sizes, uint8.

    Attributes:
      image_THWC: The image, T = 1.
      clips: The videos, (T, H, W, 3).
      rates: Frames per second of each.
      mask_THWC: As long as the first video, which it covers.
      remarks: Sentences about what was done to them.
    """

    image_THWC: np.ndarray | None
    clips: tuple[np.ndarray, ...]
    rates: tuple[float, ...]
    mask_THWC: np.ndarray | None
    remarks: tuple[str, ...] = ()

    def at(self, fps: float, names: Sequence[str]) -> "Given":
        """Returns the same with videos of `fps` frames per second, each at its own speed; `names` are theirs.

        At each time k / fps is the latest frame at or before it, so frames of faster videos are left out and those of
        slower ones repeated. The mask goes with its video.
        """
        clips, mask, remarks = list(self.clips), self.mask_THWC, []
        for number, (clip, rate, name) in enumerate(zip(self.clips, self.rates, names, strict=True)):
            shown_T = _shown(clip, rate, fps, name)
            if shown_T is None:
                continue
            clips[number] = clip[shown_T]
            mask = mask[shown_T] if mask is not None and number == 0 else mask
            remarks.append(
                f"{name} has {rate:.4g} frames per second and the result {fps:.4g}: of its frames some are "
                f"{'left out' if rate > fps else 'repeated'}, so that it keeps its speed"
            )
        rates = tuple(fps for _ in clips)
        return dataclasses.replace(self, clips=tuple(clips), rates=rates, mask_THWC=mask, remarks=tuple(remarks))


def read_given(request: Request) -> Given:
    """Returns the files of a request; raises UserError where one cannot be read, or does not go with another."""
    image, mask = None, None
    if request.image:
        image, _ = _read(request.image, opaque=True)
        if len(image) > 1:
            raise UserError(f"{request.image} has {len(image)} frames and animate takes one image: use extend")
    read = [_read(name) for name in request.video]
    clips, rates = tuple(clip for clip, _ in read), tuple(rate for _, rate in read)
    _check_alike(request, clips)
    if request.mask:
        mask = _read_mask(request.mask, clips[0])
    return Given(image_THWC=image, clips=clips, rates=rates, mask_THWC=mask)


def whiter(pixels_THWC: np.ndarray) -> np.ndarray:
    """Returns bool (T, H, W): where a mask is white."""
    return pixels_THWC.mean(axis=-1) > _WHITE


def _shown(clip_THWC: np.ndarray, rate: float, fps: float, name: str) -> np.ndarray | None:
    """Returns the numbers of the frames that are shown at `fps`; None: all as they are."""
    frames, height, width, _ = clip_THWC.shape
    if frames == 1 or abs(rate / fps - 1) < _SAME_RATE:
        return None
    wanted = 1 + int((frames - 1) * fps / rate)
    if wanted * height * width > MAX_PIXELS:
        raise UserError(
            f"{name} at {fps:g} frames per second is {wanted} frames of {height}x{width} px, over the {MAX_PIXELS} "
            "pixels that are held: a lower --fps, or a shorter or smaller video"
        )
    timed = ((number, number / rate) for number in range(frames))
    return np.array(list(at_rate(timed, fps=fps, slack=LATEST_SHARE / rate)))


@functools.cache
def _reader() -> GuardedReader:
    """Returns the one process that decodes what requests name: it starts with the first file."""
    return GuardedReader()


def _read(path: str, **options: Unpack[ReadOptions]) -> tuple[np.ndarray, float]:
    """Returns uint8 (T, H, W, 3) and frames per second of a file; raises UserError where it cannot be read."""
    if not Path(path).exists():
        raise UserError(f"{path} does not exist")
    try:
        return _reader().read_clip(path, **options)
    except BadClip as error:
        raise UserError(str(error)) from error


def _check_alike(request: Request, clips: Sequence[np.ndarray]) -> None:
    sizes = [clip.shape[1:3] for clip in clips]
    if len(set(sizes)) > 1 and request.size is None:
        (a, b), (c, d) = sizes
        raise UserError(
            f"the videos to connect are {a}x{b} and {c}x{d} px: pass --size=HEIGHTxWIDTH to make them alike"
        )


def _read_mask(path: str, clip: np.ndarray) -> np.ndarray:
    """Returns the mask, uint8 (T, H, W, 3), as long as the clip."""
    # Its alpha may be the mask, or its colours: only who made it knows.
    pixels_THWC, _ = _read(path, opaque=True)
    frames, height, width = pixels_THWC.shape[:3]
    if (height, width) != clip.shape[1:3]:
        raise UserError(f"the mask {path} is {height}x{width} px, the video {clip.shape[1]}x{clip.shape[2]}: scale it")
    if frames not in (1, len(clip)):
        raise UserError(f"the mask {path} has {frames} frames, the video {len(clip)}: give one frame, or as many")
    if not whiter(pixels_THWC).any():
        raise UserError(f"the mask {path} is black: nothing would be made; white says where to fill in")
    return np.broadcast_to(pixels_THWC, clip.shape)
