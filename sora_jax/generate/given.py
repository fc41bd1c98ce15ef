"""Images and videos that a request names: files, or arrays under a name of their own."""

import functools
import os
from collections.abc import Mapping
from typing import Any, Protocol, Unpack

import jax.numpy as jnp
import numpy as np

from sora_jax.core.errors import UserError
from sora_jax.data.clips import BadClip
from sora_jax.data.media.guarded import GuardedReader
from sora_jax.data.media.pictures import ReadOptions


class Read(Protocol):
    """Returns uint8 (T, H, W, 3) and frames per second of what a request names, as `data.media.video_io.read_clip`.

    Raises UserError where it cannot be read.
    """

    def __call__(self, name: str, **options: Unpack[ReadOptions]) -> tuple[np.ndarray, float]: ...


def read_file(name: str, **options: Unpack[ReadOptions]) -> tuple[np.ndarray, float]:
    """Returns uint8 (T, H, W, 3) and frames per second of a file; raises UserError where it cannot be read."""
    if not os.path.exists(name):  # which of a name that is too long is false
        raise UserError(f"{name} does not exist")
    try:
        return _reader().read_clip(name, **options)
    except BadClip as error:
        raise UserError(str(error)) from error


@functools.cache
def _reader() -> GuardedReader:
    """Returns the one process that decodes what requests name: it starts with the first file."""
    return GuardedReader()


class GivenArrays:
    """A `Read` of arrays by name, and of files where a name is that of none.

    Args:
      arrays: uint8 (T, H, W, 3) each.
      fps: Frames per second of all of them.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], *, fps: float):
        self._arrays, self._fps = dict(arrays), fps

    def __call__(self, name: str, **options: Unpack[ReadOptions]) -> tuple[np.ndarray, float]:
        """Returns pixels and rate; raises UserError for a file that cannot be read."""
        if name not in self._arrays:
            return read_file(name, **options)
        return self._arrays[name][: options.get("max_frames")], self._fps


def as_clip(name: str, array: np.ndarray) -> np.ndarray:
    """Returns an array of pixels as uint8 (T, H, W, 3); raises UserError for what is none.

    Takes an image (H, W, 3) and a video (T, H, W, 3) of uint8, and a mask (H, W) or (T, H, W) of bool, white where it
    is true.
    """
    array = _as_array(name, array)
    if array.dtype == np.bool_ and array.ndim in (2, 3):
        array = np.repeat(np.where(array, np.uint8(255), np.uint8(0))[..., None], 3, axis=-1)
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or array.shape[-1] != 3 or not array.size:
        raise UserError(
            f"{name} is {array.dtype} {array.shape}: give uint8 (T, H, W, 3) or (H, W, 3), or of a mask bool without "
            "the colours"
        )
    return array if array.ndim == 4 else array[None]


def as_latent(array: np.ndarray, channels: int) -> np.ndarray:
    """Returns an array as a latent, float32 (t, h, w, channels); raises UserError for what is none."""
    array = _as_array("the latent", array)
    wanted = f"give finite floats (t, h, w, {channels}), as encode returns them"
    if (
        not jnp.issubdtype(array.dtype, jnp.floating)
        or array.ndim != 4
        or array.shape[-1] != channels
        or not array.size
    ):
        raise UserError(f"the latent is {array.dtype} {array.shape}: {wanted}")
    latent_THWC = array.astype(np.float32)
    if unknown := np.count_nonzero(~np.isfinite(latent_THWC)):
        raise UserError(f"{unknown} of {latent_THWC.size} numbers of the latent are not finite: {wanted}")
    return latent_THWC


def _as_array(name: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError as error:
        raise UserError(f"{name} is no array: {error}") from error


def between(clip: np.ndarray, position_T: np.ndarray) -> np.ndarray:
    """Returns the frames of a clip, uint8, at fractional positions, blended from their neighbours."""
    low = np.floor(position_T).astype(int)
    share = (position_T - low)[:, None, None, None]
    blended = (1 - share) * clip[low] + share * clip[np.minimum(low + 1, len(clip) - 1)]
    return np.round(blended).astype(np.uint8)


def in_time(frames: np.ndarray, rate: float, fps: float) -> np.ndarray:
    """Returns frames at `rate` as `fps` shows them in the same time: each is what is shown in the middle of its own.

    One frame is an image, which has no rate, and stays one.
    """
    if len(frames) == 1:
        return frames
    count = max(1, round(len(frames) * fps / rate))
    place = np.floor((np.arange(count) + 0.5) * rate / fps).astype(int)
    return frames[np.minimum(place, len(frames) - 1)]
