"""What of a run can be judged, before anything is made."""

import dataclasses
import re
from types import SimpleNamespace
from typing import Any

import pytest

from sora_jax.core.errors import UserError
from sora_jax.evaluation.evaluator import VideoScores
from sora_jax.experiment import generator_evaluation
from sora_jax.experiment.generator_evaluation import GeneratorJudge, clips_of_parts
from sora_jax.experiment.loading import limits_of
from sora_jax.experiment.settings import read_settings
from sora_jax.generate.cascade import Refiner, RefinerConfig
from tests import toy


@pytest.mark.parametrize(("part", "what"), [("refine", "refining"), ("expand", "expansion"), ("control", "control")])
def test_what_is_judged_on_videos_is_not_asked_of_a_run_of_images(part, what):
    config = toy.get_config()
    assert clips_of_parts(read_settings(config), part, 4, prompts=True)[part] == 4
    config.sampling.frames = 1
    with pytest.raises(UserError, match=f"{what} is judged on videos, and the samples of this run are images"):
        clips_of_parts(read_settings(config), part, 4, prompts=True)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"run": ("autoencoder",)}, "this run trains no transformer, .*: pass --part=autoencoder"),
        ({"evaluation.prompts": 0}, "evaluation.prompts is 0, .* `main` --config.evaluation.prompts=24"),
        ({"data.source": "folder", "data.path": "clips"}, "only of a drawn world .*: pass --part=heldout"),
    ],
)
def test_why_no_prompt_is_judged_is_said(changes, why):
    config = toy.get_config()
    config.update_from_flattened_dict(changes)
    settings = read_settings(config)
    assert generator_evaluation.prompt_sets(settings) == {}
    assert re.fullmatch(why, generator_evaluation.without_prompts(settings))


@pytest.mark.parametrize("part", ["tasks", "refine"])
def test_one_clip_is_too_few_where_it_is_asked_for(part):
    config = toy.get_config()
    config.evaluation.clips = 1
    settings = read_settings(config)
    assert clips_of_parts(settings, part, None, prompts=True)[part] >= 2
    assert clips_of_parts(settings, part, 3, prompts=True)[part] == 3
    with pytest.raises(UserError, match=r"--clips=1 is too few to judge by: pass 2 or more"):
        clips_of_parts(settings, part, 1, prompts=True)


@pytest.mark.parametrize(
    ("context_steps", "refiner_steps", "control", "refine"),
    [(None, None, "euler 2", "euler 2"), (3, None, "euler 3", "euler 3"), (3, 5, "euler 3", "euler 5")],
)
def test_the_steps_that_are_told_are_those_where_clips_are_beside(
    tmp_path, monkeypatch, context_steps, refiner_steps, control, refine
):
    config = toy.get_config()
    config.sampling.solver, config.sampling.context_steps = "euler", context_steps
    settings = read_settings(config)
    solvers = []

    def judged(sampler, *_, **__):
        solvers.append(sampler)
        return VideoScores(scores={"right": 1.0}, clips={}, prompts={})

    monkeypatch.setattr(generator_evaluation, "judge_control", judged)
    monkeypatch.setattr(generator_evaluation, "judge_refining", judged)
    models: Any = SimpleNamespace(
        params={}, sampler=lambda solver: solver, facts=lambda: {"step": 8}, workdir=SimpleNamespace(path=tmp_path)
    )
    judge, limits = GeneratorJudge(models, settings), limits_of(settings)
    assert judge.control([], limits, count=2) == {"right": 1.0, "step": 8, "solver": control}
    assert judge.refining([], limits, count=2)["solver"] == "euler 2", "no refiner, nothing beside"
    refiner = Refiner(space=(1, 2), time=(1,), config=RefinerConfig(level=0.0, steps=refiner_steps, tile=None))
    assert judge.refining([], dataclasses.replace(limits, refiner=refiner), count=2)["solver"] == refine
    assert {(solver.steps, solver.context_steps) for solver in solvers} == {(2, context_steps)}
