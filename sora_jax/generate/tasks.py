"""Every way of prompting: a task yields canvases, is sent their latents, and emits frames in their order.

A video longer than a window slides: each window begins with frames that are already there, encoded anew, as known
tokens. So memory does not grow with the video, and a window sees what training showed: a clip whose start is given.

A frame in the middle of a video is encoded with those before it. Where what comes before is not there yet, as in a
video that is extended backward, its first frame is repeated instead.

Letters: t h w token grid, T H W C pixels or latent.
"""

import math
from collections.abc import Callable, Generator

import numpy as np

from sora_jax.data.clips import covering
from sora_jax.generate.canvas import Canvas, Turn
from sora_jax.generate.enlarging import refined
from sora_jax.generate.given import between
from sora_jax.generate.keeping import keeping
from sora_jax.generate.video_builder import Making, VideoBuilder

# Strength with which what leads to given frames is made a second time.
_AGAIN = 0.7

# Power of the time of a cross-fade. Latents that look back alone lag behind what changes: an even fade arrives late
# and jumps into what comes after it (`docs/results.md`, The base run).
_FADE_POWER = 2 / 3


def text(scene: VideoBuilder) -> Making:
    """A video, or an image, of a prompt alone."""
    yield from _forward(scene, None, scene.job.frames)


def animate(scene: VideoBuilder) -> Making:
    """A video in which an image is shown at the moment `at`; before it, the video leads there.

    With a last image it goes from the one to the other, with which the last frame of tokens is filled.
    """
    image, last = scene.job.image_THWC, scene.job.last_image_THWC
    assert image is not None
    if scene.limits.shown is not None:
        yield from _shown(scene, image, scene.job.frames, last=last, own=True)
        return
    if last is not None:
        scene.emit(scene.given(image))
        gap, held = scene.job.frames - scene.limits.first - scene.limits.step, np.repeat(last, scene.limits.step, 0)
        made = yield from _bridge(scene, image, held, gap, start=_fade(image[-1], last[0], gap))
        scene.emit(made)
        scene.emit(scene.given(held, before=made))
        return
    before = round(scene.job.request.at * (scene.job.frames - 1))
    made = yield from _backward(scene, np.repeat(image, scene.limits.step, axis=0), before)
    scene.emit(made)
    scene.emit(scene.given(image, before=made))
    yield from _forward(scene, np.concatenate([made, image]), scene.job.frames - before - 1, start=before + 1)


def extend(scene: VideoBuilder) -> Making:
    """What comes before a video, and what after it."""
    (clip,) = scene.job.clips
    if scene.limits.shown is not None:
        scene.emit(scene.given(clip))
        yield from _shown(scene, clip[-1:], scene.job.frames, last=None, own=False)
        return
    made = yield from _backward(scene, clip, scene.job.before)
    scene.emit(made)
    scene.emit(scene.given(clip, before=made))
    yield from _forward(scene, clip, scene.job.frames)


def loop(scene: VideoBuilder) -> Making:
    """A video and a way back from its end to its start; notes the jump at the seam over the mean change of a frame.

    It starts from the video played backward under noise: a way back on which nothing jumps.
    """
    (clip,) = scene.job.clips
    frames = scene.job.frames
    back = between(clip, (len(clip) - 1) * (1 - (np.arange(frames) + 1) / (frames + 1)))
    made = yield from _bridge(scene, clip, clip, frames, start=back)
    given = scene.given(clip, before=made)
    scene.emit(given)
    scene.emit(made)
    whole = np.concatenate([given, made]).astype(np.float32)
    changes = np.abs(np.diff(whole, axis=0)).mean(axis=(1, 2, 3))
    scene.notes["seam"] = float(np.abs(whole[0] - whole[-1]).mean() / max(changes.mean(), 1e-6))


def connect(scene: VideoBuilder) -> Making:
    """One video, a transition, another video; the prompts are blended along the transition.

    It starts from a cross-fade under noise: what training never showed, one subject becoming another, stays gradual.
    """
    first, second = scene.job.clips
    scene.emit(scene.given(first))
    fade = _fade(first[-1], second[0], scene.job.frames)
    later = scene.job.prompts[1] if len(scene.job.prompts) > 1 else None
    made = yield from _bridge(scene, first, second, scene.job.frames, later=later, start=fade)
    scene.emit(made)
    scene.emit(scene.given(second, before=made))


def edit(scene: VideoBuilder) -> Making:
    """A video made anew from its noisy self (SDEdit, arXiv 2108.01073)."""
    (clip,) = scene.job.clips
    yield from _rework(scene, clip, strength=scene.job.strength)


def fill(scene: VideoBuilder) -> Making:
    """A video with something new where the mask is white."""
    (clip,), mask_THW = scene.job.clips, scene.job.mask_THW
    assert mask_THW is not None
    # What is to go must not shine through the encoder's margin.
    plain = np.where(mask_THW[..., None], clip[~mask_THW].mean(axis=0) if not mask_THW.all() else 127, clip)
    yield from _rework(scene, plain.astype(np.uint8), strength=1.0, mask_THW=mask_THW, original=clip)


def upscale(scene: VideoBuilder) -> Making:
    """A video made anew at a larger size, or rate, or both.

    A model that was trained for it is given the video beside; others start from its enlarged, interpolated self under
    some noise.
    """
    job, (clip,) = scene.job, scene.job.clips
    if job.request.enlarges and job.request.keep_pixels:
        scene = scene.part(job, keeping(scene.emit, clip, size=job.size, frames=job.frames))
    if scene.limits.refiner is not None:
        yield from refined(scene, clip, scene.limits.refiner)
        return
    enlarged = covering(between(clip, np.linspace(0, len(clip) - 1, job.frames)), job.size)
    yield from _rework(scene, enlarged, strength=job.strength)


MAKERS: dict[str, Callable[[VideoBuilder], Making]] = {
    "text": text,
    "animate": animate,
    "extend": extend,
    "loop": loop,
    "connect": connect,
    "edit": edit,
    "fill": fill,
    "upscale": upscale,
    "interpolate": upscale,
}


def _fade(from_HWC: np.ndarray, to_HWC: np.ndarray, frames: int) -> np.ndarray:
    """Returns the frames of a cross-fade between two that are not among them, faster at its start."""
    share_T = ((np.arange(frames) + 1)[:, None, None, None] / (frames + 1)) ** _FADE_POWER
    return np.round((1 - share_T) * from_HWC + share_T * to_HWC).astype(np.uint8)


def _shown(scene: VideoBuilder, image: np.ndarray, frames: int, *, last: np.ndarray | None, own: bool) -> Making:
    """Emits `frames` frames of a model that is shown the first one; that counts among them where it is its `own`.

    Each further window is shown the end of the one before it, and the last one what the video should end with.
    """
    made, first = 0, image
    while made < frames:
        again = int(made > 0 or not own)
        count = min(_tokens(scene, again + frames - made), scene.window)
        ends = scene.limits.first + (count - 1) * scene.limits.step >= again + frames - made
        clip = scene.decode((yield scene.showing(count, first, last if ends else None)))
        fresh = clip[again:][: frames - made]
        if scene.job.request.keep_pixels and not again:
            fresh = np.concatenate([image, fresh[1:]])
        scene.emit(fresh)
        made += len(fresh)
        first = fresh[-1:]


def _forward(scene: VideoBuilder, past: np.ndarray | None, frames: int, *, start: int = 0) -> Making:
    """Emits `frames` frames that follow `past`; the first of them is frame `start` of the whole video."""
    step, patch = scene.limits.step, scene.limits.patch[0]
    made = 0
    while made < frames:
        kept, head = scene.opening(past)
        of_head = 0 if head is None else len(head) // patch
        wanted = math.ceil((frames - made) / step) if past is not None else _tokens(scene, frames)
        canvas = scene.canvas(min(of_head + wanted, scene.window), head=head, start=start + made - kept)
        clip = scene.decode((yield canvas))
        fresh = clip[kept:][: frames - made]
        scene.emit(fresh)
        made += len(fresh)
        past = fresh if past is None else np.concatenate([past, fresh])[-scene.overlap :]


def _backward(scene: VideoBuilder, future: np.ndarray, frames: int) -> Generator[Canvas, np.ndarray, np.ndarray]:
    """Returns `frames` frames that lead to `future`."""
    step, first = scene.limits.step, scene.limits.first
    pieces: list[np.ndarray] = []
    made = 0
    while made < frames:
        kept = _kept_later(scene, future)
        count = min(_tokens(scene, frames - made) + kept // step, scene.window)
        tail = scene.encode_later(future[:kept])
        clip = scene.decode((yield scene.canvas(count, tail=tail)))
        # Once more, now that what comes before is there to encode the end with.
        whole = scene.encode(np.concatenate([clip[:-kept], future[:kept]]))
        again = scene.canvas(count, tail=whole[-len(tail) :], content=whole, strength=_AGAIN)
        clip = scene.decode((yield again))
        fresh = clip[:-kept][-(frames - made) :]
        pieces.insert(0, fresh)
        made += len(fresh)
        # However little a window made and shares, the next one ends with a whole token of it.
        future = np.concatenate([fresh, future[: first + max(step, scene.overlap)]])
    return np.concatenate([future[:0], *pieces])


def _bridge(
    scene: VideoBuilder,
    past: np.ndarray,
    future: np.ndarray,
    frames: int,
    *,
    start: np.ndarray,
    later: str | None = None,
) -> Generator[Canvas, np.ndarray, np.ndarray]:
    """Returns `frames` frames, a multiple of `step`, from `past` to `future`.

    The solver begins with the frames `start` under noise; `later` is the prompt of `future`.
    """
    step, patch = scene.limits.step, scene.limits.patch[0]
    pieces: list[np.ndarray] = []
    # In the last window there is room for both sides and for something new.
    kept_later = min(_kept_later(scene, future), max(1, (scene.window - 1) // 2) * step)
    of_tail = kept_later // step
    made, tokens = 0, frames // step
    while made < tokens:
        kept = scene.kept(len(past))
        free = scene.window - of_tail - (tokens - made)
        last = free >= 1
        if last:
            kept = min(kept, scene.limits.first + (free - 1) * step)
        head = scene.encode(past[-kept:])
        of_head = len(head) // patch
        count = tokens - made if last else min(scene.window - of_head, tokens - made - 1)
        turn = None
        if later is not None:
            number_t = np.arange(-of_head, count + (of_tail if last else 0)) + made + 1
            turn = Turn(prompt=later, share_t=np.clip(number_t / (tokens + 1), 0, 1).astype(np.float32))
        part = start[made * step : (made + count) * step]
        content = scene.encode(np.concatenate([past[-kept:], part, future[: kept_later if last else 0]]))
        canvas = scene.canvas(
            of_head + count + (of_tail if last else 0),
            head=head,
            tail=scene.encode_later(future[:kept_later]) if last else None,
            content=content,
            strength=scene.job.strength,
            turn=turn,
        )
        fresh = scene.decode((yield canvas))[kept : kept + count * step]
        pieces.append(fresh)
        made += count
        past = np.concatenate([past, fresh])[-scene.overlap :]
    return np.concatenate(pieces)


def _rework(
    scene: VideoBuilder,
    source: np.ndarray,
    *,
    strength: float,
    mask_THW: np.ndarray | None = None,
    original: np.ndarray | None = None,
) -> Making:
    """Emits `source` made anew: from noise of `strength`; with a mask, where that is true and nowhere else."""
    limits, frames = scene.limits, len(source)
    held = scene.filled(source)
    done: np.ndarray | None = None
    made = 0
    while made < frames:
        kept, head = scene.opening(done)
        start = made - kept
        length = min(limits.first + (scene.window - 1) * limits.step, scene.longer(frames - start))
        part = held[start : start + length]
        known = None if mask_THW is None else ~_token_mask(mask_THW, start, length, scene)
        canvas = scene.canvas(
            1 + (length - limits.first) // limits.step,
            head=head,
            content=scene.encode(part),
            known_thw=known,
            strength=strength,
            start=start,
        )
        fresh = scene.decode((yield canvas))[kept:][: frames - made]
        if original is not None and mask_THW is not None and scene.job.request.keep_pixels:
            here = slice(made, made + len(fresh))
            fresh = np.where(mask_THW[here, ..., None], fresh, original[here])
        scene.emit(fresh)
        made += len(fresh)
        done = fresh if done is None else np.concatenate([done, fresh])[-scene.overlap :]


def _token_mask(mask_THW: np.ndarray, start: int, length: int, scene: VideoBuilder) -> np.ndarray:
    """Returns mask_thw: the tokens of a window in which some pixel is masked."""
    limits = scene.limits
    number_T = np.minimum(np.arange(start, start + length), len(mask_THW) - 1)
    # The first token frame has fewer frames than the others: those before it are as the first.
    padded_THW = mask_THW[np.concatenate([np.repeat(number_T[:1], limits.step - limits.first), number_T])]
    _, rows, columns = (s * p for s, p in zip(limits.stride, limits.patch, strict=True))
    t, h, w = len(padded_THW) // limits.step, padded_THW.shape[1] // rows, padded_THW.shape[2] // columns
    return np.asarray(padded_THW.reshape(t, limits.step, h, rows, w, columns).any(axis=(1, 3, 5)))


def _tokens(scene: VideoBuilder, frames: int) -> int:
    """Returns the token frames that hold `frames` frames from the start of a canvas."""
    return 1 + (scene.longer(frames) - scene.limits.first) // scene.limits.step


def _kept_later(scene: VideoBuilder, future: np.ndarray) -> int:
    """Returns how many frames of `future` a window ends with, a multiple of `step`."""
    step = scene.limits.step
    return max(step, min(len(future), scene.overlap - scene.limits.first) // step * step)
