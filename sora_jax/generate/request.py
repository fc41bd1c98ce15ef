"""What a user asks for: one video to make, as flags or a line of JSON say it."""

import dataclasses
import functools
import math
import os
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from sora_jax.core.errors import UserError
from sora_jax.core.paths import expanded
from sora_jax.core.typed import typed_all
from sora_jax.data.sources.caption_tables import parse_json, read_text
from sora_jax.generate.cascade import Refinement, read_refinements

Task = Literal["text", "animate", "extend", "loop", "connect", "edit", "fill", "upscale", "interpolate"]
TASKS: tuple[Task, ...] = get_args(Task)

# Prompts, images and videos that a task takes, and whether a mask.
_PROMPTS = {"text": (1, 1), "edit": (1, 1), "connect": (0, 2)}
_IMAGES = {"animate": 1}
_VIDEOS = {"extend": 1, "loop": 1, "connect": 2, "edit": 1, "fill": 1, "upscale": 1, "interpolate": 1}
# What a given video can control: of these it is known from the start when each frame is shown.
_CONTROLLED = ("text", "animate", "edit", "fill")
# Attributes that name one file, and all that name files.
_FILES = ("image", "last_image", "mask", "boxes", "reference")
GIVEN_FILES = (*_FILES, "video", "control_video")
# How much of what is given is made anew, where that is a question.
DEFAULT_STRENGTH: dict[Task, float] = {"edit": 0.6, "loop": 0.2, "connect": 0.1, "upscale": 0.4, "interpolate": 0.4}
_DURATION = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_SEEDS = 2**32  # of 32 bits


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One video to make; raises UserError for what no model could make.

    Attributes:
      task: How it is made; `generate/tasks.py` has them all.
      prompt: What it shows; connect takes two, the second for the second video. Only text and edit need one.
      negative: What guidance leads away from; None: what the model was made with, nothing for a run of one's own.
      size: "HEIGHTxWIDTH" in px; None: of what is given, or as the run's samples have it.
      frames: Of the whole video; extend, loop and connect: to add; None: see `seconds`.
      seconds: The same in seconds; extend: "+4" forward, "-4" backward, "-4,+4" both.
      fps: Frames per second; None: of what is given, or as the run's samples have it.
      seed: Of the noise.
      image: File to animate.
      last_image: File that such a video ends with.
      video: Files, two to connect.
      mask: File with white where `fill` makes something new, an image for all frames or a video.
      at: When the image is shown, a share of the duration, in [0, 1].
      strength: How much of what is given is made anew, in [0, 1]; None: as `DEFAULT_STRENGTH`.
      scale: Of `upscale`: height and width are multiplied by it.
      refine: Of `text`: "space:2,time:4" makes it small and slow first, then larger, then faster; "none": at once.
      guidance: Scale of the guidance by text, 1 for none; None: as the run has it.
      control: Kinds of clips beside it that control it, such as "edges"; not of tasks that continue or join videos.
      control_video: Files that these are computed of, one for each kind; of the size and rate of what is made.
      boxes: File of tracks (`generate.tracks`) that things follow: a control of the kind "boxes".
      reference: File of an image of what is to be seen.
      strength_of_control: How sure they are, in [0, 1], one for all or for each, of `control`, boxes, reference: 1 less
        the noise level on them. None given: 1.
      keep_pixels: Whether given frames come back as they are, or enlarged with new details alone.
      output: File to write; None: named by task, prompt and seed.
      expansion: What is shown instead of each of `prompt`; none: the prompts themselves. No part of what is asked.
      line: Of the file of requests that it was read from, from 1 on, empty ones counted; None: of no file. No part too.
    """

    task: Task = "text"
    prompt: tuple[str, ...] = ()
    negative: str | None = None
    size: str | None = None
    frames: int | None = None
    seconds: str | None = None
    fps: float | None = None
    seed: int = 0
    image: str | None = None
    last_image: str | None = None
    video: tuple[str, ...] = ()
    mask: str | None = None
    at: float = 0.0
    strength: float | None = None
    scale: float = 2.0
    refine: str | None = None
    guidance: float | None = None
    control: tuple[str, ...] = ()
    control_video: tuple[str, ...] = ()
    boxes: str | None = None
    reference: str | None = None
    strength_of_control: tuple[float, ...] = ()
    keep_pixels: bool = False
    output: str | None = None
    expansion: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    line: int | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self):
        task = self.task
        if task not in TASKS:
            raise UserError(f"task {task!r} is none of {', '.join(TASKS)}")
        least, most = _PROMPTS.get(task, (0, 1))
        if not least <= len(self.prompt) <= most:
            wanted = "a prompt" if least else f"at most {most}"
            raise UserError(f'{len(self.prompt)} prompts for task {task}, which takes {wanted}: pass --prompt="..."')
        _count("image", [self.image] if self.image else [], _IMAGES.get(task, 0), task)
        _count("video", self.video, _VIDEOS.get(task, 0), task)
        _count("mask", [self.mask] if self.mask else [], int(task == "fill"), task)
        if self.last_image is not None and (task != "animate" or self.at > 0):
            raise UserError(f"last_image {self.last_image} is for task animate, whose image is then at 0")
        if self.frames is not None and self.seconds is not None:
            raise UserError(f"frames {self.frames} and seconds {self.seconds}: give one of them")
        if self.frames is not None and self.frames < 1:
            raise UserError(f"frames {self.frames} must be 1 or more")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise UserError(f"{self.fps:g} frames per second must be more than 0")
        if not 0 <= self.seed < _SEEDS:
            raise UserError(f"seed {self.seed} must be 0 or more and less than {_SEEDS}")
        for name, value in (("at", self.at), ("strength", self.strength)):
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"{name} {value:g} is outside [0, 1]")
        if self.strength is not None and task not in DEFAULT_STRENGTH:
            raise UserError(f"strength {self.strength:g} is for {', '.join(DEFAULT_STRENGTH)}, not for {task}")
        if self.guidance is not None and not 0 <= self.guidance < math.inf:
            raise UserError(f"guidance {self.guidance:g} is negative; 1 is no guidance")
        if not 1 <= self.scale < math.inf:
            raise UserError(f"scale {self.scale:g} must be 1 or more")
        if task == "upscale" and self.scale == 1 and (self.size, self.frames, self.fps) == (None, None, None):
            raise UserError("upscale with scale 1 enlarges nothing: pass --fps or --frames for more frames, or --size")
        if task == "interpolate" and self.frames is None and self.fps is None:
            raise UserError("interpolate makes more frames in the same time: pass --fps or --frames")
        if task == "interpolate" and self.size is not None:
            raise UserError(f"size {self.size}: interpolate keeps the size of its video, upscale with --fps does both")
        if self.refine is not None and task != "text":
            raise UserError(f"refine {self.refine} is for task text, not for {task}: upscale makes a video larger")
        self.refinements()
        self.spans()
        self._check_control()

    def _check_control(self) -> None:
        """Raises UserError where controls, their videos and their strengths are not of one another, or of the task."""
        kinds, strengths = self.beside, self.strength_of_control
        if len(self.control) != len(self.control_video) or len({*kinds}) < len(kinds):
            raise UserError(
                f"control {', '.join(kinds) or 'none'} with {len(self.control_video)} of --control_video: give each "
                "kind once, with a video of its own"
            )
        if len(strengths) not in {0, len(kinds)} | ({1} if kinds else set()):
            raise UserError(
                f"{len(strengths)} of strength_of_control for {len(kinds)} of control: give one, or one each"
            )
        for strength in strengths:
            if not 0 <= strength <= 1:
                raise UserError(f"strength_of_control {strength:g} is outside [0, 1]")
        if kinds and (self.task not in _CONTROLLED or self.at > 0 or self.last_image is not None):
            raise UserError(
                f"control {', '.join(kinds)} is for {', '.join(_CONTROLLED)}, of an image at the start alone, not for "
                f"{self.task}{' with another image' if self.task in _CONTROLLED else ''}"
            )
        if kinds and self.refinements():
            raise UserError(f"refine {self.refine} is for videos without control: leave it out")

    @property
    def shown(self) -> tuple[str, ...]:
        """The prompts as the model is told them."""
        return self.expansion or self.prompt

    @property
    def enlarges(self) -> bool:
        """Whether a given video is made larger, or faster, or both."""
        return self.task in ("upscale", "interpolate")

    @property
    def factor(self) -> float:
        """By which height and width are multiplied."""
        return self.scale if self.task == "upscale" else 1.0

    def refinements(self, default: tuple[Refinement, ...] = ()) -> tuple[Refinement, ...]:
        """Returns what `refine` asks for, of text `default` where it is left open; UserError for what is unreadable."""
        if self.refine is None:
            return default if self.task == "text" and not self.beside else ()
        return read_refinements(self.refine)

    def spans(self) -> tuple[float, float] | None:
        """Returns (seconds before, seconds after) that `seconds` asks for; None where it asks for nothing.

        Without a sign they are after. Raises UserError where they cannot be read.
        """
        if self.seconds is None:
            return None
        parts = [part.strip() for part in self.seconds.split(",")]
        values = [float(part) if _DURATION.fullmatch(part) else math.nan for part in parts]
        # Two are one of each direction, both signed: 1,5 is meant as one and a half.
        if (
            not all(0 < abs(value) < math.inf and (value > 0 or self.task == "extend") for value in values)
            or len(values) > 2
            or (len(values) == 2 and {part[0] for part in parts} != {*"+-"})
        ):
            signs = ", or -4 backward, or -4,+4 both" if self.task == "extend" else ""
            raise UserError(f"seconds {self.seconds!r} is not a duration such as 4 or 1.5, with a point{signs}")
        return max(0.0, *(-value for value in values)), max(0.0, *values)

    def files(self) -> list[str]:
        """Returns the files that are given."""
        single = [getattr(self, name) for name in _FILES]
        return [name for name in (*single, *self.video, *self.control_video) if name]

    @property
    def beside(self) -> tuple[str, ...]:
        """The kinds of all that is given beside it."""
        drawn = (("boxes", self.boxes), ("reference", self.reference))
        return (*self.control, *(kind for kind, name in drawn if name is not None))

    @property
    def levels_beside(self) -> tuple[float, ...]:
        """The noise level of each."""
        strengths = self.strength_of_control or (1.0,)
        return tuple(1 - strength for strength in strengths * (len(self.beside) if len(strengths) == 1 else 1))

    def pixels(self) -> tuple[int, int] | None:
        """Returns (height, width) of `size`; raises UserError where it cannot be read."""
        return None if self.size is None else read_size(self.size)

    def facts(self) -> dict[str, Any]:
        """Returns what was asked for, without what was left open, as JSON has it."""
        asked = dataclasses.asdict(self)
        default = {field.name: field.default for field in dataclasses.fields(self) if field.compare}
        return {name: asked[name] for name in default if asked[name] != default[name] or name in ("task", "seed")}


def make_requests(
    prompts: Sequence[str],
    *,
    task: Task = "text",
    size: Sequence[str] = (),
    frames: Sequence[int] = (),
    seconds: Sequence[str | float] = (),
    seed: Sequence[int] = (0,),
    output: Sequence[str] = (),
    **common: Any,
) -> list[Request]:
    """Returns a request for each prompt; a task with a picture or a video makes one of all prompts.

    Of the sequences one serves all requests and as many as requests go in pairs; none leaves it open. `common` are
    attributes that all share. Raises UserError for any other number, for another type, and as `Request`.
    """
    if not prompts and task == "text":
        raise UserError('nothing to sample: pass --prompt="..."')
    grouped = [(prompt,) for prompt in prompts] if task == "text" else [tuple(prompts)]
    if output and len(output) != len(grouped):
        raise UserError(f"{len(output)} --output for {len(grouped)} prompts: give one for each, or none")
    of_each = {"size": size, "frames": frames, "seconds": seconds, "seed": seed, "output": output}
    columns = [_for_each(name, list(values) or [None], len(grouped)) for name, values in of_each.items()]
    return [
        Request(**_typed({"task": task, "prompt": prompt, **dict(zip(of_each, row, strict=True)), **common}))
        for prompt, row in zip(grouped, zip(*columns, strict=True), strict=True)
    ]


def _for_each(name: str, values: list[Any], count: int) -> list[Any]:
    if len(values) == 1:
        return values * count
    if len(values) != count:
        raise UserError(f"{len(values)} --{name} for {count} prompts: give one for all, or one for each")
    return values


def read_size(text: str) -> tuple[int, int]:
    """Returns (height, width) of "HEIGHTxWIDTH"; raises UserError otherwise."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"size {text!r} is not HEIGHTxWIDTH in px, such as 32x32")
    return int(parts[0]), int(parts[1])


def read_requests(path: str | os.PathLike) -> list[Request]:
    """Returns the requests of a JSON-lines file, one object a line with the attributes of `Request`.

    A single prompt or video need not be in a list, and seconds may be a number. Names of files that are given are
    relative to the folder of `path`. Raises UserError with the number of the line.
    """
    path = Path(path)
    try:
        # Other characters that end a line elsewhere, such as U+2028, are parts of a text.
        lines = read_text(path).split("\n")
    except OSError as error:
        raise UserError(f"the requests {path} cannot be read: {error}") from error
    requests = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                requests.append(dataclasses.replace(_read_line(line, path.parent), line=number))
            except UserError as error:
                raise UserError(f"{path}, line {number}: {error}") from error
    if not requests:
        raise UserError(f'the requests {path} are empty: write lines such as {{"prompt": "a red circle"}}')
    return requests


def _read_line(line: str, folder: Path) -> Request:
    try:
        given = parse_json(line)
    except ValueError as error:
        raise UserError(f"is not JSON: {error}") from error
    if not isinstance(given, Mapping):
        raise UserError('is not an object such as {"prompt": "a red circle"}')
    values = dict(given)
    for name in (name for name, kind in _kinds().items() if typing.get_origin(kind) is tuple):
        if name in values:
            values[name] = tuple(values[name]) if isinstance(values[name], list) else (values[name],)
    values = _typed(values, nothing="null")
    for name in GIVEN_FILES:
        if "\0" in "".join(values.get(name) or ()):
            raise UserError(f"{name} {values[name]!r} is no name of a file")
    for name in _FILES:
        if values.get(name):
            values[name] = str(folder / expanded(values[name]))
    for name in ("video", "control_video"):
        values[name] = tuple(str(folder / expanded(one)) for one in values.get(name, ()))
    return Request(**values)


@functools.cache
def _kinds() -> dict[str, Any]:
    """Returns the types of what may be asked for, by attribute; seconds may be a number."""
    hints = typing.get_type_hints(Request)
    return {field.name: hints[field.name] for field in dataclasses.fields(Request) if field.compare} | {
        "seconds": str | float | None
    }


def _typed(values: Mapping[str, Any], *, nothing: str = "None") -> dict[str, Any]:
    """Returns attributes of a request in the types that it has; raises UserError for unknown and for other ones."""
    found = typed_all(values, _kinds(), nothing=nothing)
    if found.get("seconds") is not None:
        found["seconds"] = str(found["seconds"])
    return found


def _count(name: str, given: Sequence[str], wanted: int, task: str) -> None:
    """Raises UserError where a task does not get the files that it takes."""
    if len(given) != wanted:
        remedy = f": pass --{name}=FILE{' twice' if wanted == 2 else ''}" if len(given) < wanted else ""
        raise UserError(f"{len(given)} files to --{name} for task {task}, which takes {wanted or 'none'}{remedy}")
