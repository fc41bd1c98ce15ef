"""What controls a video that is made: given videos of its size and rate, of which clips beside it are computed."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from absl import logging

from sora_jax.core.errors import UserError
from sora_jax.data.clips import covering
from sora_jax.generate.given import Read
from sora_jax.generate.limits import ModelLimits
from sora_jax.generate.request import Request
from sora_jax.generate.showing import size_of_area
from sora_jax.generate.tracks import Tracks

# Rates that files round differently are the same.
_SAME_RATE = 0.01
# Times the pixels of samples, over which a video that no size is asked for is not made as large as its control.
_LARGER = 4.0


class MadeControl(NamedTuple):
    """A clip beside in pixels.

    Attributes:
      pixels_THWC: uint8, of whole tokens.
      fps: Frames per second.
      role: A key of `video.parts.ROLES`.
      scale: Its height and width are those of the clip that is made over this.
    """

    pixels_THWC: np.ndarray
    fps: float
    role: str
    scale: int


class MakeControl(Protocol):
    """Returns what is given beside a clip, uint8 (T, H, W, 3) of so many frames per second; None where that has none.

    `as_is`: the pixels are no clip but what is given beside it, whose height and width are those of the clip over
    `scale`.
    """

    @property
    def scale(self) -> int: ...

    def __call__(self, pixels_THWC: np.ndarray, fps: float, *, as_is: bool = False) -> MadeControl | None: ...


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class GivenControl:
    """A given video that controls one that is made.

    Attributes:
      kind: Which control is computed of it.
      name: Of the file.
      clip_THWC: uint8, frame by frame beside that of what is made.
      fps: Frames per second.
      level: Of the noise on what is computed, in [0, 1].
      as_is: Whether the frames are what is given beside, of its size, and nothing is computed of them.
      still: Whether all of them belong to the whole video, and not one to each of its frames.
    """

    kind: str
    name: str
    clip_THWC: np.ndarray
    fps: float
    level: float
    as_is: bool = False
    still: bool = False


def read_controls(
    request: Request, limits: ModelLimits, read: Read, *, max_frames: int | None = None
) -> tuple[GivenControl, ...]:
    """Returns what controls the video of a request; UserError for a kind that the model was not trained with."""
    lacking = [kind for kind in request.beside if kind not in limits.controls]
    if lacking:
        known = f"with {', '.join(limits.controls)} beside clips" if limits.controls else "with nothing beside clips"
        remedy = "take one of these" if limits.controls else "name it in context.kinds and in the context of a stage"
        raise UserError(f"{limits.name} was trained {known}, and control {', '.join(lacking)} is asked for: {remedy}")
    found = []
    for kind, name, level in zip(request.control, request.control_video, request.levels_beside, strict=False):
        clip_THWC, fps = read(name) if max_frames is None else read(name, max_frames=max_frames)
        found.append(GivenControl(kind=kind, name=name, clip_THWC=clip_THWC, fps=fps, level=level))
    return tuple(found)


def as_trained(controls: Sequence[GivenControl], limits: ModelLimits) -> tuple[GivenControl, ...]:
    """Returns controls that alone say how large a video is, those far larger than samples scaled down to their area.

    What a model has seen is about as large as samples, and time and memory grow faster than pixels.
    """
    _, rows, columns = (s * p for s, p in zip(limits.stride, limits.patch, strict=True))
    found = []
    for control in controls:
        given = control.clip_THWC.shape[1], control.clip_THWC.shape[2]
        if math.prod(given) > _LARGER * math.prod(limits.size):
            size = size_of_area(limits.size, given, step=(rows, columns))
            _say_scaled(control.name, given, size, limits.size)
            control = dataclasses.replace(control, clip_THWC=covering(control.clip_THWC, size))
        found.append(control)
    return tuple(found)


@functools.cache  # a request is read more than once
def _say_scaled(name: str, given: tuple[int, int], size: tuple[int, int], usual: tuple[int, int]) -> None:
    logging.warning(
        "the control %s is %dx%d px, far more than the %dx%d px of samples: it is scaled down to %dx%d px; pass "
        "--size=%dx%d for a video as large as it is",
        *(name, *given, *usual, *size, *given),
    )


def drawn_beside(
    request: Request,
    limits: ModelLimits,
    read: Read,
    tracks: Tracks | None,
    *,
    size: tuple[int, int],
    fps: float,
    frames: int,
) -> tuple[GivenControl, ...]:
    """Returns what else is given beside the video of a request, once it is known how large and long that is.

    Raises UserError as `Tracks.boxes`, and where the reference is no image.
    """
    found, levels = [], dict(zip(request.beside, request.levels_beside, strict=True))

    def half(kind: str) -> tuple[int, int]:
        return size[0] // limits.controls[kind].scale, size[1] // limits.controls[kind].scale

    if tracks is not None:
        clip_THWC = drawn_tracks(tracks.boxes(frames, size), size, limits)
        common = {"name": tracks.name, "fps": fps, "as_is": True}
        found.append(GivenControl(kind="boxes", clip_THWC=clip_THWC, level=levels["boxes"], **common))
    if request.reference is not None:
        image_THWC, _ = read(request.reference, opaque=True, max_frames=2)
        if len(image_THWC) > 1:
            raise UserError(f"{request.reference} is a video and a reference is one image: give one of its frames")
        clip_THWC = covering(image_THWC, half("reference"))
        common = {"name": request.reference, "fps": fps, "as_is": True, "still": True}
        found.append(GivenControl(kind="reference", clip_THWC=clip_THWC, level=levels["reference"], **common))
    return tuple(found)


def drawn_tracks(boxes_NT4: np.ndarray, size: tuple[int, int], limits: ModelLimits) -> np.ndarray:
    """Returns what is given beside a video of `size`, uint8 (T, H, W, 3), for boxes in it."""
    assert limits.draw_boxes is not None, limits.name
    scale = limits.controls["boxes"].scale
    return limits.draw_boxes(boxes_NT4 / scale, (size[0] // scale, size[1] // scale))


def frames_of(controls: Sequence[GivenControl], limits: ModelLimits, tracks: Tracks | None = None) -> int:
    """Returns the frames of a video that says nothing of its own: as many as all its controls have, and it can have.

    Where these leave it open, as many as its tracks need.
    """
    shortest = min((len(control.clip_THWC) for control in controls), default=None)
    if shortest is not None:
        return limits.first + max(0, shortest - limits.first) // limits.step * limits.step
    if tracks is None or tracks.frames is None:
        return limits.frames
    return limits.first + math.ceil(max(0, tracks.frames - limits.first) / limits.step) * limits.step


def check_controls(
    controls: Sequence[GivenControl], *, size: tuple[int, int], fps: float, frames: int | None = None
) -> None:
    """Raises UserError where a control is of another size or rate than what is made, or has less than `frames`."""
    for control in controls:
        what, (count, height, width, _) = f"the control {control.name}", control.clip_THWC.shape
        if (height, width) != size:
            raise UserError(
                f"{what} is {height}x{width} px and the video {size[0]}x{size[1]}: scale it, or pass "
                f"--size={height}x{width}"
            )
        if frames is not None and count < frames:
            raise UserError(f"{what} has {count} frames and the video {frames}: give a longer one, or ask for less")
        if frames != 1 and abs(control.fps - fps) > _SAME_RATE * fps:
            raise UserError(
                f"{what} has {control.fps:g} frames per second and the video {fps:g}: resample it, or pass "
                f"--fps={control.fps:g}"
            )


def check_rates(controls: Sequence[GivenControl], limits: ModelLimits) -> None:
    """Raises UserError where controls alone say the rate of a video, and the model saw no clips of such a rate."""
    if limits.rates is None:
        return
    low, high = limits.rates
    for control in controls:
        if not low * (1 - _SAME_RATE) <= control.fps <= high * (1 + _SAME_RATE):
            known = f"up to {high:g}" if low == 0 else f"{high:g}" if low == high else f"{low:g} to {high:g}"
            raise UserError(
                f"the control {control.name} has {control.fps:g} frames per second and {limits.name} was trained with "
                f"{known}: resample it, or pass --fps={control.fps:g} for such a video all the same"
            )


def window_of(control: GivenControl, start: int, frames: int) -> np.ndarray:
    """Returns `frames` frames of a control from `start` on; its last one stands for those that it does not have."""
    if control.still:
        return control.clip_THWC
    number_T = np.minimum(np.arange(start, start + frames), len(control.clip_THWC) - 1)
    return control.clip_THWC[number_T]
