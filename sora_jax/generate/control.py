"""What controls a video that is made: given videos of its size and rate, of which clips beside it are computed."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from sora_jax.core.errors import UserError
from sora_jax.generate.given import Read
from sora_jax.generate.limits import ModelLimits
from sora_jax.generate.request import Request

# Rates that files round differently are the same.
_SAME_RATE = 0.01


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

    `as_is`: the pixels are no clip but what is given beside it, of its size.
    """

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
    """

    kind: str
    name: str
    clip_THWC: np.ndarray
    fps: float
    level: float
    as_is: bool = False


def read_controls(
    request: Request, limits: ModelLimits, read: Read, *, max_frames: int | None = None
) -> tuple[GivenControl, ...]:
    """Returns what controls the video of a request; UserError for a kind that the model was not trained with."""
    lacking = [kind for kind in request.control if kind not in limits.controls]
    if lacking:
        known = f"with {', '.join(limits.controls)} beside clips" if limits.controls else "with nothing beside clips"
        remedy = "take one of these" if limits.controls else "name it in context.kinds and in the context of a stage"
        raise UserError(f"{limits.name} was trained {known}, and control {', '.join(lacking)} is asked for: {remedy}")
    found = []
    for kind, name, level in zip(request.control, request.control_video, request.control_levels, strict=True):
        clip_THWC, fps = read(name) if max_frames is None else read(name, max_frames=max_frames)
        found.append(GivenControl(kind=kind, name=name, clip_THWC=clip_THWC, fps=fps, level=level))
    return tuple(found)


def frames_of(controls: Sequence[GivenControl], limits: ModelLimits) -> int:
    """Returns the frames of a video that says nothing of its own: as many as all its controls have, and it can have."""
    shortest = min((len(control.clip_THWC) for control in controls), default=limits.frames)
    return limits.first + max(0, shortest - limits.first) // limits.step * limits.step if controls else shortest


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


def window_of(control: GivenControl, start: int, frames: int) -> np.ndarray:
    """Returns `frames` frames of a control from `start` on; its last one stands for those that it does not have."""
    number_T = np.minimum(np.arange(start, start + frames), len(control.clip_THWC) - 1)
    return control.clip_THWC[number_T]
