"""Does the generator follow held-out prompts."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sora_jax.core.tree import Params
from sora_jax.data.sources.shapes_prompts import ANY, PromptCase
from sora_jax.evaluation import shapes_oracle
from sora_jax.evaluation.shapes_oracle import ClipScore
from sora_jax.generate.canvas import Canvas
from sora_jax.generate.sampler import Sampler
from sora_jax.video.shapes import Size

_KINDS: dict[str, Callable[[PromptCase, np.ndarray], str]] = {
    "shape": lambda case, clip: (
        ANY if "shape" in case.left_open else " and ".join(sorted(kind.shape for kind in case.objects))
    ),
    "ground": lambda case, clip: case.background,
    "size": lambda case, clip: "x".join(map(str, clip.shape[:3])),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judged:
    """Scores, each a share in [0, 1] but `prompts`, those of groups, and what they were read from, one by one.

    A group says what it is `by` ("shape" or "ground" that was asked for, "size" as frames x height x width) and which
    `group` it is, "any" where that is left open; there are none by what all prompts share.
    """

    scores: dict[str, float]
    groups: list[dict[str, Any]]
    prompts: list[str]
    clips: list[np.ndarray]
    verdicts: list[ClipScore]

    def facts(self) -> dict[str, Any]:
        """Returns the scores and groups, fit for JSON."""
        return {**self.scores, "groups": self.groups}


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoScores:
    """What was found, fit for JSON, and by name what was made, beside what is true or given, of which prompts."""

    scores: dict[str, Any]
    clips: dict[str, list[np.ndarray]]
    prompts: dict[str, list[str]]


def judge_clips(cases: Sequence[PromptCase], clips: Sequence[np.ndarray]) -> Judged:
    """Returns the oracle's verdict on `clips[i]`, uint8 (T, H, W, 3), as the answer to `cases[i]`."""
    verdicts = [shapes_oracle.score_clip(case, clip) for case, clip in zip(cases, clips, strict=True)]
    groups = []
    for kind, name in _KINDS.items():
        members: dict[str, list[ClipScore]] = {}
        for case, clip, verdict in zip(cases, clips, verdicts, strict=True):
            members.setdefault(name(case, clip), []).append(verdict)
        if len(members) > 1:
            groups += [{"by": kind, "group": key, **shapes_oracle.shares(members[key])} for key in sorted(members)]
    return Judged(
        scores=shapes_oracle.shares(verdicts),
        groups=groups,
        prompts=[case.prompt for case in cases],
        clips=list(clips),
        verdicts=verdicts,
    )


def judge_prompts(
    sampler: Sampler, params: Params, cases: Sequence[PromptCase], *, grid: Size, fps: float, seed: int
) -> Judged:
    """Returns the oracle's verdict on what is made from the prompts; each has its own noise, from `seed` on."""
    canvases = [Canvas(prompt=case.prompt, grid=grid, fps=fps, seed=seed + number) for number, case in enumerate(cases)]
    return judge_clips(cases, sampler(params, canvases))
