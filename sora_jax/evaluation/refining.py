"""Are small and slow videos made larger and faster: true ones, whose large form is known, and those of a prompt.

Letters: T H W C frames, rows, columns, colours of pixels, 2 row and column.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from sora_jax.core.tree import Params
from sora_jax.data.sources.shapes_prompts import PromptCase, case_of
from sora_jax.data.sources.shapes_world import Scene, ShapesWorld, render
from sora_jax.evaluation import shapes_oracle
from sora_jax.evaluation.evaluator import VideoScores
from sora_jax.evaluation.pixels import psnr
from sora_jax.evaluation.resampling import lanczos
from sora_jax.generate.cascade import plan_passes
from sora_jax.generate.job import Job
from sora_jax.generate.keeping import keeping
from sora_jax.generate.limits import ModelLimits
from sora_jax.generate.request import Request, Task
from sora_jax.generate.sampler import Sampler
from sora_jax.generate.scheduler import make_all

_SPACE = 2
# Frames left out between two that are given; fewer where the clips are short.
_TIME = 4


def judge_refining(
    sampler: Sampler, params: Params, limits: ModelLimits, world: ShapesWorld, cases: Sequence[PromptCase], *, seed: int
) -> VideoScores:
    """Returns how much better what is refined is than what is not.

    `world` draws one moving object in each clip, at the size and of the length of the run's samples. Its clips are
    halved in height and width by the mean of 2 x 2 pixels and made as large as they were: `psnr` of these against
    the true ones, mean over clips in dB, and beside it that of Lanczos, of what is given kept in them (`psnr_kept`), of
    what a refiner's weights make of Lanczos under noise (`psnr_upscale`) and, as a ceiling, of the autoencoder alone.
    Of every fourth frame (second, where there are few) the others are made: `time_px` is how far the object is from its
    place in these, mean over frames in px. `cases` are made at once and from half the height and width: `shape_gain` is
    what the share of right shapes gains by that, `one_pass` and `cascade` are all shares.
    Raises UserError where half the size of the run's samples is off the strides.
    """
    height, width = limits.size
    limits.grid(limits.first, (height // _SPACE, width // _SPACE))
    scenes = [world.scene(index) for index in range(len(world))]
    true = [render(scene) for scene in scenes]
    larger, means = _enlarged_psnr(sampler, params, limits, scenes, true)
    faster, factor = _interpolated(sampler, params, limits, scenes, true)
    one_pass, cascade = _followed(sampler, params, limits, cases, seed=seed)
    found = {name: shapes_oracle.score(cases, clips) for name, clips in (("one_pass", one_pass), ("cascade", cascade))}
    scores = {
        "clips": len(scenes),
        **means,
        "psnr_gain_lanczos": means["psnr"] - means["psnr_lanczos"],
        "psnr_gain_upscale": means["psnr"] - means["psnr_upscale"],
        "shape_gain": found["cascade"]["shape"] - found["one_pass"]["shape"],
        "time": factor,
        "time_px": float(np.mean([_misplaced(a, b, factor) for a, b in zip(true, faster, strict=True)])),
        **found,
    }
    said = [case_of(scene).prompt for scene in scenes]
    prompts = {"larger": said, "faster": said, "cascade": [case.prompt for case in cases]}
    return VideoScores(scores=scores, clips={"larger": larger, "faster": faster, "cascade": cascade}, prompts=prompts)


def _enlarged_psnr(
    sampler: Sampler, params: Params, limits: ModelLimits, scenes: Sequence[Scene], true: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], dict[str, float]]:
    """Returns clips that were halved and made large again, and the PSNR of these and of other ways, by name."""
    larger = without = _enlarged(sampler, params, limits, scenes, true)
    if limits.refiner is not None:
        without = _enlarged(sampler, params, dataclasses.replace(limits, refiner=None), scenes, true)
    ways = {
        "psnr": larger,
        "psnr_kept": [_with_given(made, clip) for made, clip in zip(larger, true, strict=True)],
        "psnr_upscale": without,
        "psnr_lanczos": [lanczos(_halved(clip), clip.shape[:3]) for clip in true],
        "psnr_autoencoder": [sampler.codec.reconstruct(clip[None])[0] for clip in true],
    }
    means = {
        name: float(np.mean([psnr(a, b) for a, b in zip(true, clips, strict=True)])) for name, clips in ways.items()
    }
    return larger, means


def _with_given(made_THWC: np.ndarray, true_THWC: np.ndarray) -> np.ndarray:
    """Returns a clip made of the half of the true one, with that kept in it."""
    found: list[np.ndarray] = []
    size = true_THWC.shape[1], true_THWC.shape[2]
    keeping(found.append, _halved(true_THWC), size=size, frames=len(true_THWC))(made_THWC)
    return found[0]


def _enlarged(
    sampler: Sampler, params: Params, limits: ModelLimits, scenes: Sequence[Scene], true: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Returns clips that were halved and made large again."""
    jobs = [
        _job("upscale", case_of(scene).prompt, limits, seed=number, frames=len(clip), clips=(_halved(clip),))
        for number, (scene, clip) in enumerate(zip(scenes, true, strict=True))
    ]
    return [made.clip for made in make_all(sampler, params, jobs, limits)]


def _interpolated(
    sampler: Sampler, params: Params, limits: ModelLimits, scenes: Sequence[Scene], true: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], int]:
    """Returns clips that were made of every n-th of their frames, and n."""
    intervals = min(map(len, true)) - 1
    factor = next(n for n in (_TIME, 2, 1) if intervals % n == 0 and intervals >= n)
    jobs = [
        _job("interpolate", case_of(scene).prompt, limits, seed=number, frames=len(clip), clips=(clip[::factor],))
        for number, (scene, clip) in enumerate(zip(scenes, true, strict=True))
    ]
    return [made.clip for made in make_all(sampler, params, jobs, limits)], factor


def _followed(
    sampler: Sampler, params: Params, limits: ModelLimits, cases: Sequence[PromptCase], *, seed: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns clips of prompts that were made at once, and from half the height and width."""
    passes = plan_passes((("space", _SPACE),), size=limits.size, frames=limits.frames, fps=limits.fps)
    at_once = [
        _job("text", case.prompt, limits, seed=seed + number, frames=limits.frames) for number, case in enumerate(cases)
    ]
    jobs = at_once + [dataclasses.replace(job, passes=passes) for job in at_once]
    clips = [made.clip for made in make_all(sampler, params, jobs, limits)]
    return clips[: len(cases)], clips[len(cases) :]


def _job(task: Task, prompt: str, limits: ModelLimits, *, seed: int, frames: int, **given: Any) -> Job:
    request = Request(
        task=task,
        prompt=(prompt,),
        video=("video",) * len(given.get("clips", ())),
        frames=frames,
        seed=seed,
    )
    return Job(
        request=request,
        prompts=request.prompt,
        negative="",
        size=limits.size,
        fps=limits.fps,
        frames=frames,
        strength=limits.strength(task),
        **given,
    )


def _halved(clip_THWC: np.ndarray) -> np.ndarray:
    """Returns means of 2 x 2 pixels, uint8."""
    frames, height, width, colours = clip_THWC.shape
    blocks = clip_THWC.reshape(frames, height // _SPACE, _SPACE, width // _SPACE, _SPACE, colours)
    return np.rint(blocks.mean(axis=(2, 4))).astype(np.uint8)


def _misplaced(true_THWC: np.ndarray, made_THWC: np.ndarray, factor: int) -> float:
    """Returns how far the object is from its place in the frames that were not given, mean in px.

    Where none is read, by a whole side.
    """
    there_T2, found_T2 = (shapes_oracle.read(clip).position_T2 for clip in (true_THWC, made_THWC))
    unseen_T = np.arange(len(true_THWC)) % factor != 0
    if there_T2 is None or found_T2 is None or not unseen_T.any():
        return float(max(true_THWC.shape[1:3])) if unseen_T.any() else 0.0
    return float(np.linalg.norm(found_T2 - there_T2, axis=1)[unseen_T].mean())
