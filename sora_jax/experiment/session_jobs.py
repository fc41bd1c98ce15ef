"""What `Session.sample` is given, one or several of each, as jobs: texts, numbers, sizes, files and arrays."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sora_jax.core.errors import UserError
from sora_jax.core.typed import typed
from sora_jax.generate.given import GivenArrays, as_clip
from sora_jax.generate.job import Job, read_job
from sora_jax.generate.limits import ModelLimits
from sora_jax.generate.request import make_requests

# A size in px as (height, width) or "HEIGHTxWIDTH".
AskedSize = tuple[int, int] | str


def jobs_asked(limits: ModelLimits, prompt: str | Sequence[str], given: Mapping[str, Any], **asked: Any) -> list[Job]:
    """Returns the jobs of prompts; `given` are media by name, `asked` what `make_requests` takes, one or several.

    Raises UserError for what no job is made of.
    """
    if "output" in asked:
        raise UserError("clips are returned and no file is written: leave output out")
    arrays: dict[str, np.ndarray] = {}

    def named(kind: str) -> list[str]:
        names = []
        for number, one in enumerate(_several(given[kind]), start=1):
            name = f"<{kind} {number}>"
            if isinstance(one, str | os.PathLike):
                name = os.fspath(one)
            else:
                arrays[name] = as_clip(f"{kind} {number}", one)
            names.append(name)
        return names

    def one_of(kind: str) -> str | None:
        names = named(kind)
        if len(names) > 1:
            raise UserError(f"{len(names)} of {kind}: give one")
        return names[0] if names else None

    single = {kind: one_of(kind) for kind in ("image", "last_image", "mask", "reference")}
    given_videos = {"video": tuple(named("video")), "control_video": tuple(named("control_video"))}
    for name in ("control", "strength_of_control"):
        asked[name] = tuple(_several(asked.get(name)))
    for name in ("frames", "seconds", "seed"):
        asked[name] = _several(asked[name])
    asked["size"] = _sizes(asked["size"])
    requests = make_requests(_several(prompt), **single, **given_videos, **asked)
    # An array that is made larger or faster has not the rate that is asked for.
    rate = None if requests[0].enlarges else requests[0].fps
    read = GivenArrays(arrays, fps=rate or limits.fps)
    return [read_job(request, limits, read) for request in requests]


def _several(value: Any) -> list[Any]:
    """Returns a list of what is one, none or several: a sequence that is no text, or an array of one axis."""
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return list(value)
    return [] if value is None else [value]


def _sizes(size: Any) -> list[str]:
    """Returns sizes as "HEIGHTxWIDTH"; raises UserError for what is none."""
    return [] if size is None else [_size(one) for one in (size if isinstance(size, list) else [size])]


def _size(size: Any) -> str:
    if isinstance(size, str):
        return size
    sides = typed("size", tuple(_several(size)), tuple[int, ...])
    if len(sides) != 2:
        raise UserError(f"size {size} has {len(sides)} numbers: give height and width, px")
    return f"{sides[0]}x{sides[1]}"
