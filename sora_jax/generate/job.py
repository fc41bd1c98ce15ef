"""A request made concrete for one model: what is given is read, and sizes and durations are settled.

All that can be wrong with a request is said here, before anything compiles.

Letters: T H W C frames, rows, columns, colours of pixels.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from sora_jax.core.errors import UserError
from sora_jax.data.clips import covering
from sora_jax.data.tokens import check_prompt, clean_caption
from sora_jax.generate.cascade import Pass, plan_passes
from sora_jax.generate.control import (
    GivenControl,
    as_trained,
    check_controls,
    check_rates,
    drawn_beside,
    frames_of,
    read_controls,
)
from sora_jax.generate.given import Read, in_time, read_file
from sora_jax.generate.limits import ModelLimits
from sora_jax.generate.masks import check_mask_size, mask_as_long, mask_of_size
from sora_jax.generate.request import Request
from sora_jax.generate.showing import check_shown, size_of_area
from sora_jax.generate.tracks import read_tracks

_GB = 1e9
# Read of a video before it is made: one more than an image has.
_FRAMES_CHECKED = 2


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """One video to make.

    Attributes:
      request: What was asked for.
      prompts: Cleaned; an empty one where none was given.
      negative: Cleaned.
      size: Height and width, px.
      fps: Frames per second.
      frames: Of the whole video for text and animate, to be added after what is given otherwise.
      before: Frames to be added before it.
      strength: Where the solver starts.
      image_THWC: The image, uint8, T = 1.
      last_image_THWC: That of the end, as `image_THWC`.
      clips: The videos, uint8 (T, H, W, 3), of that size and rate; for upscale as they are.
      mask_THW: Where something new is made, bool, T that of the video.
      controls: What is given beside it.
      passes: In which it is made, small and slow ones first; empty: at once.
    """

    request: Request
    prompts: tuple[str, ...]
    negative: str
    size: tuple[int, int]
    fps: float
    frames: int
    before: int = 0
    strength: float = 1.0
    image_THWC: np.ndarray | None = None
    last_image_THWC: np.ndarray | None = None
    clips: tuple[np.ndarray, ...] = ()
    mask_THW: np.ndarray | None = None
    controls: tuple[GivenControl, ...] = ()
    passes: tuple[Pass, ...] = ()

    @property
    def enlarges(self) -> bool:
        """Whether a video that is there is made larger, or faster: a given one, or that of the pass before."""
        return bool(self.clips) and (self.request.enlarges or self.request.task == "text")


class Outcome(NamedTuple):
    """What a request comes to: whether one image, and its height and width, px."""

    image: bool
    size: tuple[int, int]


def check_request(request: Request, limits: ModelLimits, read: Read = read_file) -> Outcome:
    """Returns what comes out; raises UserError for what is known to be impossible.

    Of given videos only the first frames are read, so that many requests can be checked before any is made; what they
    do not tell, as how long a video is, `read_job` finds out.
    """
    if not request.video:
        job = read_job(request, limits, read)
        return Outcome(job.frames == 1, job.size)
    _texts(request, limits)
    clips, rates = zip(*(read(name, max_frames=_FRAMES_CHECKED) for name in request.video), strict=True)
    _check_alike(request, clips)
    if request.mask:
        check_mask_size(request.mask, read(request.mask, opaque=True, max_frames=_FRAMES_CHECKED)[0], clips[0])
    controls = read_controls(request, limits, read, max_frames=_FRAMES_CHECKED)
    size, fps = _settle_size(request, limits, clips), request.fps or rates[0]
    check_controls(controls, size=size, fps=fps, frames=1 if len(clips[0]) == 1 else None)
    tracks = None if request.boxes is None else read_tracks(request.boxes)
    # Whether the video is as long as the tracks is not known yet: they are looked at as if it were.
    longest = 1 if tracks is None or tracks.frames is None else tracks.frames
    _check_duration(longest, limits, size=size, fps=fps)
    drawn_beside(request, limits, read, tracks, size=size, fps=fps, frames=longest)
    before, frames = _settle_frames(request, limits, clips, fps, default=limits.frames)
    adds = request.task in ("extend", "loop", "connect")
    if adds:
        _check_duration(before + frames, limits, size=size, fps=fps)
    _check_knows(request, limits, slides=False)
    return Outcome(not adds and _keeps_one(request, read, clips[0], rates[0]), size)


def _keeps_one(request: Request, read: Read, clip: np.ndarray, rate: float) -> bool:
    """Returns whether one frame comes of a video that begins with `clip`; raises UserError as `_settle_rate`."""
    fps = request.fps or rate
    if fps < rate and request.frames is None and len(clip) > 1:
        # Of more frames than these at least two are kept.
        clip, _ = read(request.video[0], max_frames=math.ceil(1.5 * rate / fps) + 1)
    if request.enlarges:
        return _settle_rate(request, frames=len(clip), fps=rate)[1] == 1
    return len(in_time(clip, rate, fps)) == 1


def read_job(request: Request, limits: ModelLimits, read: Read = read_file) -> Job:
    """Returns the job of a request; raises UserError for all that the model cannot do."""
    prompts, negative = _texts(request, limits)
    image, last = (_image(name, read) for name in (request.image, request.last_image))
    videos = [read(name) for name in request.video]
    clips, rates = [clip for clip, _ in videos], [rate for _, rate in videos]
    _check_alike(request, clips)
    mask = mask_as_long(request.mask, read(request.mask, opaque=True)[0], clips[0]) if request.mask else None
    controls = read_controls(request, limits, read)
    if request.size is None and not clips and image is None:
        controls = as_trained(controls, limits)
    tracks = None if request.boxes is None else read_tracks(request.boxes)
    given = [*clips, *([] if image is None else [image]), *(control.clip_THWC for control in controls)]
    size = _settle_size(request, limits, given)
    fps = request.fps or next(iter([*rates, *(control.fps for control in controls)]), limits.fps)
    if not request.enlarges:
        clips = [covering(clip, size) for clip in clips]
        image, last = (None if one is None else covering(one, size) for one in (image, last))
        _check_room(request, limits, clips, rates, fps)
        if request.mask is not None and mask is not None:
            mask = mask_of_size(request.mask, mask, size, rate=rates[0], fps=fps)
        clips = [in_time(clip, rate, fps) for clip, rate in zip(clips, rates, strict=True)]
    before, frames = _settle_frames(request, limits, clips, fps, default=frames_of(controls, limits, tracks))
    check_controls(controls, size=size, fps=fps, frames=frames)
    if request.fps is None and not rates and frames > 1:
        check_rates(controls, limits)
    if tracks is not None:
        _check_duration(frames, limits, size=size, fps=fps)  # before so many are drawn
    controls += drawn_beside(request, limits, read, tracks, size=size, fps=fps, frames=frames)
    if request.enlarges:
        fps, frames = _settle_rate(request, frames=len(clips[0]), fps=rates[0])
    job = Job(
        request=request,
        prompts=prompts,
        negative=negative,
        size=size,
        fps=fps,
        frames=frames,
        before=before,
        strength=limits.strength(request.task) if request.strength is None else request.strength,
        image_THWC=image,
        last_image_THWC=last,
        clips=tuple(clips),
        mask_THW=mask,
        controls=controls,
    )
    _check_limits(job, limits)
    refine, grid = request.refinements(limits.refine), functools.partial(limits.grid, limits.first)
    return dataclasses.replace(job, passes=plan_passes(refine, size=size, frames=frames, fps=fps, check=grid))


def reworded(job: Job, request: Request, limits: ModelLimits) -> Job:
    """Returns a job whose request differs in how its prompts are worded alone; raises UserError as `read_job`."""
    prompts, negative = _texts(request, limits)
    return dataclasses.replace(job, request=request, prompts=prompts, negative=negative)


def _texts(request: Request, limits: ModelLimits) -> tuple[tuple[str, ...], str]:
    """Returns the prompts and the negative prompt, cleaned."""
    tokenizer, most = limits.tokenizer, limits.text_tokens
    prompts = tuple(check_prompt(prompt, tokenizer, max_tokens=most) for prompt in request.shown) or ("",)
    negative = clean_caption(limits.negative if request.negative is None else request.negative)
    if (tokens := tokenizer.count(negative)) > most:
        raise UserError(f"the negative prompt has {tokens} tokens and this model takes {most}")
    return prompts, negative


def _image(name: str | None, read: Read) -> np.ndarray | None:
    """Returns a given image, uint8 (1, H, W, 3)."""
    if name is None:
        return None
    image, _ = read(name, opaque=True)
    if len(image) > 1:
        raise UserError(f"{name} has {len(image)} frames and animate takes one image: use extend")
    return image


def _check_alike(request: Request, clips: Sequence[np.ndarray]) -> None:
    sizes = [clip.shape[1:3] for clip in clips]
    if len(set(sizes)) > 1 and request.size is None:
        (a, b), (c, d) = sizes
        raise UserError(
            f"the videos to connect are {a}x{b} and {c}x{d} px: pass --size=HEIGHTxWIDTH to make them alike"
        )


def _settle_size(request: Request, limits: ModelLimits, given: Sequence[np.ndarray]) -> tuple[int, int]:
    """Returns the size of the result; raises UserError where the strides do not divide it."""
    size = request.pixels()
    if size is None:
        size = limits.size if not given else (int(given[0].shape[1]), int(given[0].shape[2]))
        _, rows, columns = (s * p for s, p in zip(limits.stride, limits.patch, strict=True))
        if given and limits.by_area and not request.enlarges:
            size = size_of_area(limits.size, size, step=(rows, columns))
        if request.task == "upscale":
            wanted = size[0] * request.factor, size[1] * request.factor
            size = round(wanted[0] / rows) * rows, round(wanted[1] / columns) * columns
            if size != wanted:
                _say_rounded(request.video[0], wanted, size)
    try:
        limits.grid(limits.first, size)
    except UserError as error:
        if given and request.size is None:
            name = request.image or (*request.video, *request.control_video)[0]
            remedy = "pass --size=HEIGHTxWIDTH to scale and crop it"
            if request.task == "interpolate":
                remedy = "crop it first, or upscale it with --scale=1, which takes the nearest size"
            raise UserError(f"{name}: {error}; {remedy}") from error
        raise
    return size


@functools.cache  # a request is read more than once
def _say_rounded(name: str, wanted: tuple[float, float], size: tuple[int, int]) -> None:
    logging.warning("%s times the scale is %gx%g px, off the strides: it becomes %dx%d px", name, *wanted, *size)


def _settle_frames(
    request: Request, limits: ModelLimits, clips: Sequence[np.ndarray], fps: float, *, default: int
) -> tuple[int, int]:
    """Returns (frames before what is given, frames after it, or of the whole video: `default` where none are asked)."""
    spans = request.spans()
    if request.task in ("text", "animate"):
        if request.frames is not None:
            return 0, request.frames
        return 0, default if spans is None else limits.legal(spans[1] * fps)
    if request.enlarges or request.task in ("edit", "fill"):
        if spans is not None or (request.frames is not None and not request.enlarges):
            more = "; for more frames in it pass --fps or --frames" if request.enlarges else ""
            raise UserError(f"task {request.task} keeps the duration of its video: leave out frames and seconds{more}")
        return 0, len(clips[0])

    def whole(frames: float) -> int:
        return max(1, round(frames / limits.step)) * limits.step if frames else 0

    if request.frames is not None:
        # What comes after a video ends where it should, a way back or to another one between whole tokens.
        return 0, request.frames if request.task == "extend" else whole(request.frames)
    before, after = (0.0, limits.step / fps) if spans is None else spans
    return whole(before * fps), whole(after * fps)


def _check_room(
    request: Request, limits: ModelLimits, clips: Sequence[np.ndarray], rates: Sequence[float], fps: float
) -> None:
    """Raises UserError where given videos would be too large at another rate."""
    for name, clip, rate in zip(request.video, clips, rates, strict=True):
        held = clip.nbytes * fps / rate
        if limits.room is not None and fps > rate and held > limits.room:
            raise UserError(
                f"{name} has {rate:g} frames per second, and {fps:g} of them take {held / _GB:.2g} GB, of which "
                f"{limits.room / _GB:.2g} GB are free: pass a lower --fps"
            )


def _settle_rate(request: Request, *, frames: int, fps: float) -> tuple[float, int]:
    """Returns (frames per second, frames) of a video of `frames` at `fps` that keeps its duration.

    Raises UserError where several frames are asked for of one.
    """
    intervals = frames - 1
    if request.frames is not None and request.frames > 1 and not intervals:
        raise UserError(
            f"{request.video[0]} has one frame, which has no duration to keep, and {request.frames} frames are asked "
            "for: leave out --frames, or animate it"
        )
    if request.frames is not None and intervals:
        return (fps * (request.frames - 1) / intervals if request.frames > 1 else fps), request.frames
    if request.fps is not None:
        return request.fps, 1 + round(intervals * request.fps / fps)
    return fps, frames


def _check_limits(job: Job, limits: ModelLimits) -> None:
    """Raises UserError for what the model or this machine has no room for."""
    task, size = job.request.task, job.size
    least = limits.first + 2 * limits.step
    if job.last_image_THWC is not None and limits.shown is None and job.frames < least:
        raise UserError(
            f"{job.frames} frames are too few from an image to a last_image: pass --frames={least} or more, which are "
            f"{least / job.fps:.3g} s"
        )
    # Large frames that are made of small ones are made in tiles.
    refined = job.enlarges or bool(job.request.refinements(limits.refine))
    height, width = limits.refined_at_once(size) if refined else size
    if (task == "text" and job.frames <= limits.window) or job.last_image_THWC is not None:
        limits.grid(job.frames, size)
    # Token frames of what is made, beside what is given.
    whole = 1 + math.ceil((job.frames - limits.first) / limits.step)
    beside = 2 if task in ("extend", "loop", "connect") else 0
    at_once = limits.first + (min(whole + beside, limits.window_tokens((height, width))) - 1) * limits.step
    needed = limits.memory(at_once, (height, width))
    if limits.room is not None and needed > limits.room:
        raise UserError(
            f"{task} makes {at_once} frames of {height}x{width} px at once, which takes about "
            f"{needed / _GB:.2g} GB, and {limits.room / _GB:.2g} GB are free: a smaller size, or "
            "a larger machine"
        )
    _check_duration(job.before + job.frames, limits, size=size, fps=job.fps)
    shortest = limits.first + limits.step
    for name, clip in zip(job.request.video, job.clips, strict=True):
        if len(clip) < shortest and task in ("extend", "loop", "connect"):
            own = len(clip) == 1 or (job.request.fps is None and clip is job.clips[0])  # rate, or none
            way = "animate its first one" + ("" if own else f", or give a larger --fps than {job.fps:g}")
            raise UserError(f"{name} has {len(clip)} frames and {task} needs {shortest} or more: {way}")
    _check_knows(job.request, limits, slides=whole > limits.window_tokens((height, width)))


def _check_duration(frames: int, limits: ModelLimits, *, size: tuple[int, int], fps: float) -> None:
    """Raises UserError where so many frames are longer than any video may be."""
    if frames > limits.legal(limits.max_seconds * fps):
        held = frames * math.prod(size) * 3 / _GB
        raise UserError(
            f"{frames / fps:g} s of {size[0]}x{size[1]} px are {held:.2g} GB of frames and longer than the "
            f"{limits.max_seconds:g} s of sampling.max_seconds: a shorter video"
        )


def _check_knows(request: Request, limits: ModelLimits, *, slides: bool) -> None:
    """Raises UserError where a task, or a video that slides, needs what is given otherwise than the model takes it."""
    task = request.task
    if limits.shown is not None:
        check_shown(request, limits.shown, slides=slides)
    elif not limits.knows and (slides or not (request.enlarges or task in ("text", "edit"))):
        what = f"{task} of more than {limits.window} frames" if task == "text" else task
        raise UserError(
            f"{limits.name} was trained without known tokens (known.none is 1 in its stages), which {what} needs: "
            "train with a share of them, or take another workdir or model"
        )
