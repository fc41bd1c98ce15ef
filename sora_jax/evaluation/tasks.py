"""Does each task do what it promises, on held-out clips of the drawn world.

Every score is a share of clips, in [0, 1], unless it says otherwise. The oracle reads new frames for what the subject
is, and all frames for where it is: those that were given come back through the autoencoder.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sora_jax.core.tree import Params
from sora_jax.data.sources.shapes_prompts import case_of
from sora_jax.data.sources.shapes_world import DIRECTIONS, PALETTE, STILL, Scene, ShapesWorld, render
from sora_jax.evaluation import shapes_oracle
from sora_jax.evaluation.evaluator import VideoScores
from sora_jax.generate.job import Job
from sora_jax.generate.limits import ModelLimits
from sora_jax.generate.request import DEFAULT_STRENGTH, Request, Task
from sora_jax.generate.sampler import Sampler
from sora_jax.generate.scheduler import Made, make_all

_LARGEST_JUMP = 2.0  # px from the last given frame to the first new one, of a seam that cannot be seen
_LEAST_CORRELATION = 0.8  # of positions before and after an edit
_LARGEST_CHANGE = 3.0  # from one frame to the next over the mean, along a transition
_LARGEST_ERROR = 1.0  # px, of the subject's place in given frames that came back, mean over frames

_Scores = dict[str, Any]


def judge_tasks(sampler: Sampler, params: Params, limits: ModelLimits, world: ShapesWorld) -> VideoScores:
    """Returns the scores of every task on the clips of `world`, and of connect on their pairs.

    `world`, of two clips or more, draws one moving object in each, at the size and of the length of the run's samples.
    """
    scenes = [world.scene(index) for index in range(len(world))]
    scores: dict[str, _Scores] = {}
    made: dict[str, list[np.ndarray]] = {}
    prompts: dict[str, list[str]] = {}
    for name, (plan, judge) in _JUDGES.items():
        jobs = plan(scenes, limits)
        videos = make_all(sampler, params, jobs, limits)
        scores[name] = {"clips": len(jobs), **judge(scenes, jobs, videos)}
        made[name] = [video.clip for video in videos]
        prompts[name] = [", then ".join(job.prompts) for job in jobs]
    return VideoScores(scores=scores, clips=made, prompts=prompts)


def _job(task: Task, scene: Scene, prompts: Sequence[str], *, frames: int, seed: int, **given: Any) -> Job:
    request = Request(
        task=task,
        prompt=tuple(prompts),
        image="image" if "image_THWC" in given else None,
        video=("video",) * len(given.get("clips", ())),
        seed=seed,
    )
    return Job(
        request=request,
        prompts=request.prompt,
        negative="",
        size=(scene.height, scene.width),
        fps=scene.fps,
        frames=frames,
        **given,
    )


def plain_prompt(scene: Scene, **changed: Any) -> str:
    """Returns the plain caption of a scene whose object is otherwise."""
    (spec,) = scene.objects
    other = dataclasses.replace(scene, objects=(dataclasses.replace(spec, **changed),), bar=None)
    return case_of(other).prompt


def _given_frames(limits: ModelLimits) -> int:
    """Returns how many frames of a clip are given to be extended: half of them, and two frames of tokens at least."""
    return max(limits.legal(limits.frames / 2), limits.first + limits.step)


def _new_frames(limits: ModelLimits) -> int:
    """Returns how many frames are made then: the rest of the clip, and a frame of tokens at least."""
    return max(limits.frames - _given_frames(limits), limits.step)


def _plan_animate(scenes: Sequence[Scene], limits: ModelLimits) -> list[Job]:
    return [
        _job("animate", scene, [plain_prompt(scene)], frames=limits.frames, seed=number, image_THWC=render(scene)[:1])
        for number, scene in enumerate(scenes)
    ]


def _plan_forward(scenes: Sequence[Scene], limits: ModelLimits) -> list[Job]:
    given = _given_frames(limits)
    return [
        _job(
            "extend",
            scene,
            [plain_prompt(scene)],
            frames=_new_frames(limits),
            seed=number,
            clips=(render(scene)[:given],),
        )
        for number, scene in enumerate(scenes)
    ]


def _plan_backward(scenes: Sequence[Scene], limits: ModelLimits) -> list[Job]:
    given = _given_frames(limits)
    return [
        dataclasses.replace(
            _job("extend", scene, [plain_prompt(scene)], frames=0, seed=number, clips=(render(scene)[-given:],)),
            before=_new_frames(limits),
        )
        for number, scene in enumerate(scenes)
    ]


def _between(scene: Scene, limits: ModelLimits) -> int:
    """Returns the frames of a second, as many as tokens have."""
    return max(1, round(scene.fps / limits.step)) * limits.step


def _plan_loop(scenes: Sequence[Scene], limits: ModelLimits) -> list[Job]:
    return [
        _job(
            "loop",
            scene,
            [plain_prompt(scene, motion=None)],
            frames=_between(scene, limits),
            seed=number,
            clips=(render(scene),),
            strength=DEFAULT_STRENGTH["loop"],
        )
        for number, scene in enumerate(scenes)
    ]


def _plan_connect(scenes: Sequence[Scene], limits: ModelLimits) -> list[Job]:
    half = len(scenes) // 2
    return [
        _job(
            "connect",
            first,
            [plain_prompt(first, motion=None), plain_prompt(second, motion=None)],
            frames=_between(first, limits),
            seed=number,
            clips=(render(first), render(second)),
            strength=DEFAULT_STRENGTH["connect"],
        )
        for number, (first, second) in enumerate(zip(scenes[:half], scenes[half : 2 * half], strict=True))
    ]


def opposite_colour(scene: Scene) -> str:
    """Returns the colour opposite to that of the object."""
    colours = list(PALETTE)
    return colours[(colours.index(scene.objects[0].colour) + 3) % len(colours)]


def _plan_edit(scenes: Sequence[Scene], limits: ModelLimits) -> list[Job]:
    return [
        _job(
            "edit",
            scene,
            [plain_prompt(scene, colour=opposite_colour(scene))],
            frames=scene.frames,
            seed=number,
            clips=(render(scene),),
            strength=DEFAULT_STRENGTH["edit"],
        )
        for number, scene in enumerate(scenes)
    ]


def _plan_upscale(scenes: Sequence[Scene], limits: ModelLimits) -> list[Job]:
    """Half as large again in height and width."""
    _, rows, columns = (s * p for s, p in zip(limits.stride, limits.patch, strict=True))
    size = round(1.5 * limits.size[0] / rows) * rows, round(1.5 * limits.size[1] / columns) * columns
    return [
        dataclasses.replace(
            _job(
                "upscale",
                scene,
                [plain_prompt(scene)],
                frames=scene.frames,
                seed=number,
                clips=(render(scene),),
                strength=limits.strength("upscale"),
            ),
            size=size,
        )
        for number, scene in enumerate(scenes)
    ]


def _plan_fill(scenes: Sequence[Scene], limits: ModelLimits) -> list[Job]:
    """Half of the frame is to be made anew, that in which the object ends."""
    jobs = []
    for number, scene in enumerate(scenes):
        clip = render(scene)
        mask_THW = np.zeros(clip.shape[:3], bool)
        axis = int(DIRECTIONS[scene.objects[0].motion or STILL][0] == 0)
        half = clip.shape[1 + axis] // 2
        ends_late = scene.objects[0].end[axis] > 0.5
        index = slice(half, None) if ends_late else slice(0, half)
        mask_THW[(slice(None), index) if axis == 0 else (slice(None), slice(None), index)] = True
        given = {"clips": (clip,), "mask_THW": mask_THW}
        jobs.append(_fill_job(scene, number, given))
    return jobs


def _fill_job(scene: Scene, number: int, given: dict[str, Any]) -> Job:
    request = Request(task="fill", prompt=(plain_prompt(scene),), video=("video",), mask="mask", seed=number)
    size = scene.height, scene.width
    return Job(
        request=request, prompts=request.prompt, negative="", size=size, fps=scene.fps, frames=scene.frames, **given
    )


def _judge_animate(scenes: Sequence[Scene], jobs: Sequence[Job], videos: Sequence[Made]) -> _Scores:
    return _kept(scenes, videos, seams=[1] * len(jobs), new=[slice(1, None)] * len(jobs))


def _judge_forward(scenes: Sequence[Scene], jobs: Sequence[Job], videos: Sequence[Made]) -> _Scores:
    seams = [len(job.clips[0]) for job in jobs]
    return _kept(scenes, videos, seams=seams, new=[slice(seam, None) for seam in seams])


def _judge_backward(scenes: Sequence[Scene], jobs: Sequence[Job], videos: Sequence[Made]) -> _Scores:
    seams = [job.before for job in jobs]
    return _kept(scenes, videos, seams=seams, new=[slice(0, seam) for seam in seams])


def _kept(scenes: Sequence[Scene], videos: Sequence[Made], *, seams: list[int], new: list[slice]) -> _Scores:
    """Returns how often the subject is itself in the new frames, and goes on where it was.

    `permanence`, where the world has bars: of the clips with one, how often it is seen in every frame and stays itself.
    """
    found: dict[str, list[bool]] = {"colour": [], "shape": [], "seam": [], "all": []}
    jumps, lasting = [], []
    for scene, video, seam, frames in zip(scenes, videos, seams, new, strict=True):
        (spec,) = scene.objects
        reading, whole = shapes_oracle.read(video.clip[frames]), shapes_oracle.read(video.clip)
        position_T2 = whole.position_T2
        jump = np.inf if position_T2 is None else np.linalg.norm(position_T2[seam] - position_T2[seam - 1])
        right = (reading.colour == spec.colour, reading.shape == spec.shape, bool(jump < _LARGEST_JUMP))
        for name, value in zip(found, (*right, all(right)), strict=True):
            found[name].append(value)
        jumps.append(min(float(jump), max(scene.height, scene.width)))
        if scene.bar is not None:
            lasting.append(whole.persistent and right[:2] == (True, True))
    scores = {name: float(np.mean(values)) for name, values in found.items()}
    if lasting:
        scores["permanence"] = float(np.mean(lasting))
    return {**scores, "jump_px": float(np.median(jumps))}


def _judge_loop(scenes: Sequence[Scene], jobs: Sequence[Job], videos: Sequence[Made]) -> _Scores:
    seams = [video.notes["seam"] for video in videos]
    return {"seam": float(np.mean(seams)), "largest_seam": max(seams)}


def _judge_connect(scenes: Sequence[Scene], jobs: Sequence[Job], videos: Sequence[Made]) -> _Scores:
    """`ends`: the first and last second show the subjects that were given, there; `smooth`: no jump; `all`: both."""
    ends, smooth, largest = [], [], []
    for job, video in zip(jobs, videos, strict=True):
        first, second = job.clips
        count = min(round(job.fps), len(first), len(second))
        changes = np.abs(np.diff(video.clip.astype(np.float32), axis=0)).mean(axis=(1, 2, 3))
        pairs = (video.clip[:count], first[:count]), (video.clip[-count:], second[-count:])
        ends.append(all(_is_same(made, given) for made, given in pairs))
        largest.append(float(changes.max() / max(changes.mean(), 1e-6)))
        smooth.append(largest[-1] <= _LARGEST_CHANGE)
    both = [a and b for a, b in zip(ends, smooth, strict=True)]
    shares = {"ends": ends, "smooth": smooth, "all": both}
    return {**{name: float(np.mean(value)) for name, value in shares.items()}, "change": float(np.median(largest))}


def _judge_edit(scenes: Sequence[Scene], jobs: Sequence[Job], videos: Sequence[Made]) -> _Scores:
    """`colour`: the new one; `trajectory`: the old one; `all`: both."""
    colour, trajectory = [], []
    for scene, job, video in zip(scenes, jobs, videos, strict=True):
        reading = shapes_oracle.read(video.clip)
        was = shapes_oracle.read(job.clips[0]).position_T2
        axis = int(DIRECTIONS[scene.objects[0].motion or STILL][0] == 0)
        colour.append(reading.colour == opposite_colour(scene))
        correlation = 0.0
        if reading.position_T2 is not None and was is not None and np.ptp(reading.position_T2[:, axis]) > 0:
            correlation = float(np.corrcoef(reading.position_T2[:, axis], was[:, axis])[0, 1])
        trajectory.append(correlation > _LEAST_CORRELATION)
    both = [a and b for a, b in zip(colour, trajectory, strict=True)]
    shares = {"colour": colour, "trajectory": trajectory, "all": both}
    return {name: float(np.mean(values)) for name, values in shares.items()}


def _judge_prompts(scenes: Sequence[Scene], jobs: Sequence[Job], videos: Sequence[Made]) -> _Scores:
    return shapes_oracle.score([case_of(scene) for scene in scenes], [video.clip for video in videos])


def _is_same(made: np.ndarray, given: np.ndarray) -> bool:
    """Returns whether both show the same subject at the same place."""
    found, wanted = shapes_oracle.read(made), shapes_oracle.read(given)
    if found.position_T2 is None or wanted.position_T2 is None:
        return False
    error = np.linalg.norm(found.position_T2 - wanted.position_T2, axis=1).mean()
    return (found.colour, found.shape) == (wanted.colour, wanted.shape) and bool(error < _LARGEST_ERROR)


_JUDGES: dict[str, tuple[Callable[..., list[Job]], Callable[..., _Scores]]] = {
    "animate": (_plan_animate, _judge_animate),
    "extend_forward": (_plan_forward, _judge_forward),
    "extend_backward": (_plan_backward, _judge_backward),
    "loop": (_plan_loop, _judge_loop),
    "connect": (_plan_connect, _judge_connect),
    "edit": (_plan_edit, _judge_edit),
    "fill": (_plan_fill, _judge_prompts),
    "upscale": (_plan_upscale, _judge_prompts),
}
