"""Sizes and durations never seen are asked for beside the usual ones."""

import numpy as np

from sora_jax.data.sources.shapes_prompts import heldout_prompts
from sora_jax.evaluation import sizes
from sora_jax.generate.scheduler import Made
from tests.evaluation.test_tasks import LIMITS


def test_unseen_sizes_are_asked_for_and_scored(monkeypatch):
    asked = []

    def make(sampler, params, jobs, limits):
        asked.extend(jobs)
        return [Made(clip=np.zeros((job.frames, *job.size, 3), np.uint8), notes={}) for job in jobs]

    monkeypatch.setattr(sizes, "make_all", make)
    cases = heldout_prompts(3)
    nothing: dict = {}
    found = sizes.judge_sizes(None, nothing, LIMITS, cases, seed=5)
    scores = found.scores
    assert {name: found["size"] for name, found in scores.items()} == {
        "usual": "9x32x32",
        "wider": "9x32x48",
        "taller": "9x48x32",
        "longer": "21x32x32",
    }
    assert [job.request.seed for job in asked] == [5, 6, 7] * 4
    assert all(one["prompts"] == 3 and one["colour"] == one["clean"] == 0 for one in scores.values())
    assert {group["by"] for group in scores["wider"]["groups"]} == {"shape", "ground"}
    assert [len(one.clips) for one in found.judged.values()] == [3] * 4
