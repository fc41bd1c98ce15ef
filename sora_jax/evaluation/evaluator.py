"""Does the generator follow held-out prompts."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from sora_jax.core.tree import Params
from sora_jax.data.shapes_prompts import PromptCase
from sora_jax.evaluation import shapes_oracle
from sora_jax.generate.canvas import Canvas
from sora_jax.generate.run import Sampler
from sora_jax.video.shapes import Size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judged:
    """Scores, each a share in [0, 1] but `prompts`, and what they were read from."""

    scores: dict[str, float]
    prompts: list[str]
    clips: list[np.ndarray]


def judge_prompts(
    sampler: Sampler, params: Params, cases: Sequence[PromptCase], *, grid: Size, fps: float, seed: int
) -> Judged:
    """Returns the oracle's scores on what is made from the prompts; each has its own noise, from `seed` on."""
    canvases = [Canvas(prompt=case.prompt, grid=grid, fps=fps, seed=seed + number) for number, case in enumerate(cases)]
    clips = sampler(params, canvases)
    return Judged(scores=shapes_oracle.score(cases, clips), prompts=[case.prompt for case in cases], clips=clips)
