"""Probes of a model that makes the truth, and of one that stops: scores, floors and errors by name."""

import dataclasses
import types
from collections.abc import Callable
from typing import cast

import numpy as np
import pytest

from sora_jax.data.scenes.worlds import WORLDS, WorldsSpec
from sora_jax.evaluation.probes import judge
from sora_jax.generate.job import Job
from sora_jax.generate.sampler import Sampler
from sora_jax.generate.scheduler import Made
from tests.generate.test_tasks import LIMITS as SMALL

LIMITS = dataclasses.replace(SMALL, stride=(4, 4, 4), patch=(1, 2, 2), size=(24, 40), frames=17)
SPEC = WorldsSpec(seed=0, num_clips=1, kinds=WORLDS, sides=((24, 40),), frames=(17,), fps=(8.0,), split="heldout")
# A model comes with an autoencoder that loses nothing.
SAMPLER = cast(
    Sampler, types.SimpleNamespace(codec=types.SimpleNamespace(reconstruct=lambda pixels_BTHWC: pixels_BTHWC))
)


def judged(monkeypatch, make: Callable[[judge._Case], np.ndarray]) -> judge.VideoScores:
    """Returns the scores of a model that makes of each case the new frames that `make` says, after those given."""
    seen: list[judge._Case] = []
    jobs_of = judge._job
    monkeypatch.setattr(judge, "_job", lambda case, seed: (seen.append(case), jobs_of(case, seed=seed))[1])

    def make_all(sampler, params, jobs: list[Job], limits) -> list[Made]:
        for case, job in zip(seen, jobs, strict=True):
            assert (job.prompts[0], len(job.clips[0])) == (case.scene.captions()[0], case.given)
            assert job.frames + case.given == case.frames
        return [Made(clip=make(case), notes={}) for case in seen]

    monkeypatch.setattr(judge, "make_all", make_all)
    return judge.judge_probes(SAMPLER, {}, LIMITS, SPEC, count=6, seed=0)


def lengthened(case: judge._Case) -> np.ndarray:
    return case.truth_THWC[np.minimum(np.arange(case.frames), len(case.truth_THWC) - 1)]


def stopped(case: judge._Case) -> np.ndarray:
    return case.truth_THWC[np.minimum(np.arange(case.frames), case.given - 1)]


def test_a_model_that_makes_the_truth_is_right_in_all(monkeypatch):
    found = judged(monkeypatch, lengthened)
    names = {name for name, _ in judge.READERS.values()} | {"trail_long", "physics_combined", "physics_outside"}
    assert {name for name in names if found.scores[name] == 1.0} == names
    assert {name for name in names - {"trail_long"} if found.scores[f"{name}_floor"] == 1.0} == names - {"trail_long"}
    assert found.scores["physics_velocity_error"] == found.scores["physics_velocity_error_floor"] < 1e-6
    assert (found.scores["game_actions"], found.scores["game_walls"]) == (1.0, 0.0)
    clips = {name: found.scores[f"{name}_clips"] for name in names}
    assert (clips["permanence"], clips["game"], clips["parallax"] + clips["turning"]) == (6, 6, 6)
    assert [clips[name] for name in ("physics", "physics_combined", "physics_outside", "trail_long")] == [2, 2, 2, 1]
    assert sum(row["clips"] for row in found.scores["groups"]) == sum(clips.values())
    assert found.clips.keys() == found.prompts.keys() == names
    assert found.clips["trail_long"][0].shape == (51, 24, 82, 3)
    (left, right) = found.clips["game"][0][:, :, :40], found.clips["game"][0][:, :, 42:]
    np.testing.assert_array_equal(left, right)


def test_a_model_that_stops_is_wrong_in_all_that_moves_and_the_floor_stays(monkeypatch):
    found = judged(monkeypatch, stopped)
    for name in ("permanence", "parallax", "turning", "trail", "trail_long", "eating", "game", "physics"):
        assert (name, found.scores[name]) == (name, 0.0)
        assert found.scores.get(f"{name}_floor", 1.0) == 1.0
    assert found.scores["physics_velocity_error"] == pytest.approx(1.0)
    assert found.scores["physics_velocity_error_floor"] == pytest.approx(0.0)
    assert found.scores["physics_velocity_ratio"] > 1e3
    assert found.scores["parallax_ratio_error"] == 1.0
