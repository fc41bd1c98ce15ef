"""Boxes along tracks that a user draws: key points in a file, straight lines or smooth curves between them.

Letters: N tracks, T frames, K key points, 4: top, left, bottom, right in px.
"""

import dataclasses
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sora_jax.core.errors import UserError
from sora_jax.data.sources.caption_tables import parse_json, read_text

# Boxes have so many colours.
_MOST_TRACKS = 3
_WAYS = ("linear", "smooth")
_LARGEST = 2**53  # up to which whole numbers are floats, too
_EXAMPLE = '{"tracks": [{"between": "smooth", "keys": [{"frame": 0, "box": [4, 4, 20, 20]}, ...]}]}'


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Track:
    """The box of one thing at some frames: frame_K rising, whole numbers from 0, boxes_K4 there.

    `smooth`: between them it goes along a curve through all of them, and otherwise along straight lines.
    """

    frame_K: np.ndarray
    boxes_K4: np.ndarray
    smooth: bool

    def boxes(self, frames: int) -> np.ndarray:
        """Returns boxes_T4; before the first key point and after the last one the box stays where it is there."""
        there_T = np.clip(np.arange(frames), self.frame_K[0], self.frame_K[-1]).astype(np.float64)
        if not self.smooth or len(self.frame_K) < 3:
            return np.stack([np.interp(there_T, self.frame_K, side_K) for side_K in self.boxes_K4.T], axis=-1)
        # A cubic for each piece, with slopes of the parabola through a point and its neighbours.
        slope_K4 = np.gradient(self.boxes_K4, self.frame_K.astype(np.float64), axis=0, edge_order=2)
        piece_T = np.clip(np.searchsorted(self.frame_K, there_T, side="right") - 1, 0, len(self.frame_K) - 2)
        start_T, length_T = self.frame_K[piece_T], np.diff(self.frame_K)[piece_T]
        u_T1 = ((there_T - start_T) / length_T)[:, None]
        rise_T4 = self.boxes_K4[piece_T + 1] - self.boxes_K4[piece_T]
        first_T4, last_T4 = slope_K4[piece_T] * length_T[:, None], slope_K4[piece_T + 1] * length_T[:, None]
        bend_T4 = (1 - u_T1) * (first_T4 - rise_T4) - u_T1 * (last_T4 - rise_T4)
        return self.boxes_K4[piece_T] + u_T1 * rise_T4 + u_T1 * (1 - u_T1) * bend_T4


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tracks:
    """What a file says: `tracks` in px of frames of `size`, height and width, or where that is None of the video."""

    name: str
    tracks: tuple[Track, ...]
    size: tuple[int, int] | None

    @property
    def frames(self) -> int | None:
        """Frames up to the last key point; None where there is one key point alone, that says nothing of time."""
        last = max(int(track.frame_K[-1]) for track in self.tracks)
        return last + 1 if last else None

    def boxes(self, frames: int, size: tuple[int, int]) -> np.ndarray:
        """Returns boxes_NT4 float64 in a video of so many frames of `size`.

        Raises UserError where a box leaves the frame, or a key point comes after the last one.
        """
        if self.frames is not None and self.frames > frames:
            raise UserError(
                f"{self.name} goes on to frame {self.frames - 1} and the video has {frames} frames, the last of which "
                f"is frame {frames - 1}: end it there, or pass --frames={self.frames} or more"
            )
        height, width = self.size or size
        scale_4 = np.array([size[0] / height, size[1] / width] * 2)
        boxes_NT4 = np.stack([track.boxes(frames) for track in self.tracks])
        sides_4 = np.array([height, width] * 2)
        outside_NT = ((boxes_NT4 < -0.5) | (boxes_NT4 > sides_4 + 0.5)).any(axis=-1)
        if outside_NT.any():
            track, frame = np.argwhere(outside_NT)[0]
            box = ", ".join(f"{side:g}" for side in np.round(boxes_NT4[track, frame], 1))
            raise UserError(
                f"{self.name}: the box of track {track + 1} is [{box}] at frame {frame}, outside of {height}x{width} px"
                ": move its key points, or give the height and width that they are of as size"
            )
        return boxes_NT4 * scale_4


def read_tracks(path: str) -> Tracks:
    """Returns the tracks of a JSON file; raises UserError for what is none (docs/sampling.md)."""
    if not os.path.exists(path):  # which of a name that is too long is false
        raise UserError(f"{path} does not exist")
    try:
        said = parse_json(read_text(Path(path)))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    try:
        return _tracks(path, said)
    except UserError as error:
        raise UserError(f"{path}: {error}; write such as {_EXAMPLE}") from error


def _tracks(name: str, said: Any) -> Tracks:
    listed = said.get("tracks") if isinstance(said, Mapping) else None
    if not isinstance(said, Mapping) or not isinstance(listed, list) or not 1 <= len(listed) <= _MOST_TRACKS:
        raise UserError(f"it must be an object with 1 to {_MOST_TRACKS} tracks")
    _check_keys("the file", said, "tracks", "size")
    size = said.get("size")
    if size is not None and (not _are_numbers(size, 2) or min(size) <= 0 or any(side % 1 for side in size)):
        raise UserError(f"size {size!r} is not [height, width] in px")
    tracks = tuple(_track(number, one) for number, one in enumerate(listed, start=1))
    return Tracks(name=name, tracks=tracks, size=None if size is None else (int(size[0]), int(size[1])))


def _track(number: int, said: Any) -> Track:
    keys = said.get("keys") if isinstance(said, Mapping) else None
    if not isinstance(said, Mapping) or not isinstance(keys, list) or not keys:
        raise UserError(f"track {number} has no keys")
    _check_keys(f"track {number}", said, "keys", "between")
    if (between := said.get("between", "linear")) not in _WAYS:
        raise UserError(f"track {number} has between {between!r}, which is none of {', '.join(_WAYS)}")
    frames, boxes = [], []
    for place, key in enumerate(keys, start=1):
        what = f"key {place} of track {number}"
        if not isinstance(key, Mapping) or not _are_numbers([key.get("frame")], 1) or key["frame"] % 1:
            raise UserError(f"{what} has no frame, a whole number from 0")
        _check_keys(what, key, "frame", "box")
        box = key.get("box")
        if box is None or not _are_numbers(box, 4) or not (box[0] < box[2] and box[1] < box[3]):
            raise UserError(f"{what} has the box {box!r}, which is not [top, left, bottom, right] in px")
        frames.append(int(key["frame"]))
        boxes.append(box)
    if frames[0] < 0 or any(after <= before for before, after in itertools.pairwise(frames)):
        raise UserError(f"the frames of track {number} are {frames} and must rise from 0 or more")
    return Track(frame_K=np.array(frames), boxes_K4=np.array(boxes, np.float64), smooth=between == "smooth")


def _check_keys(what: str, said: Mapping[str, Any], *known: str) -> None:
    if unknown := sorted(said.keys() - {*known}):
        raise UserError(f"{what} has {', '.join(map(repr, unknown))}, which is none of {', '.join(known)}")


def _are_numbers(value: Any, count: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == count
        and all(isinstance(one, int | float) and not isinstance(one, bool) and abs(one) < _LARGEST for one in value)
    )
