"""Prompts at sizes and durations that training never saw: does the model still draw what they say?"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from sora_jax.core.tree import Params
from sora_jax.data.sources.shapes_prompts import PromptCase
from sora_jax.evaluation.evaluator import Judged, judge_clips
from sora_jax.generate.job import Job
from sora_jax.generate.limits import ModelLimits
from sora_jax.generate.request import Request
from sora_jax.generate.sampler import Sampler
from sora_jax.generate.scheduler import make_all


@dataclasses.dataclass(frozen=True, kw_only=True)
class SizeScores:
    """The oracle's scores by size, with their groups, and what they were read from."""

    scores: dict[str, dict[str, Any]]
    judged: dict[str, Judged]


def judge_sizes(
    sampler: Sampler, params: Params, limits: ModelLimits, cases: Sequence[PromptCase], *, seed: int
) -> SizeScores:
    """Returns the oracle's scores on clips of prompts alone: of the usual size, and half as wide, tall, long again."""
    height, width = limits.size
    _, rows, columns = (s * p for s, p in zip(limits.stride, limits.patch, strict=True))
    longer = limits.legal(1.5 * limits.window)
    shapes = {
        "usual": (limits.frames, height, width),
        "wider": (limits.frames, height, round(1.5 * width / columns) * columns),
        "taller": (limits.frames, round(1.5 * height / rows) * rows, width),
        "longer": (longer, height, width),
    }
    jobs = {
        name: [_text(case.prompt, shape, limits, seed=seed + number) for number, case in enumerate(cases)]
        for name, shape in shapes.items()
    }
    videos = make_all(sampler, params, [job for group in jobs.values() for job in group], limits)
    found = {}
    for number, (name, (frames, tall, wide)) in enumerate(shapes.items()):
        clips = [video.clip for video in videos[number * len(cases) : (number + 1) * len(cases)]]
        found[name] = (f"{frames}x{tall}x{wide}", judge_clips(cases, clips))
    return SizeScores(
        scores={name: {"size": size, **judged.facts()} for name, (size, judged) in found.items()},
        judged={name: judged for name, (_, judged) in found.items()},
    )


def _text(prompt: str, shape: tuple[int, int, int], limits: ModelLimits, *, seed: int) -> Job:
    request = Request(prompt=(prompt,), seed=seed)
    return Job(request=request, prompts=request.prompt, negative="", size=shape[1:], fps=limits.fps, frames=shape[0])
