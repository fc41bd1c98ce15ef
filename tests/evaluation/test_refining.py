"""Scores of refining: of what keeps the truth, of what blurs it, of what is drawn beside its place."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.data.sources.shapes_prompts import case_of
from sora_jax.data.sources.shapes_world import ShapesWorld, render
from sora_jax.evaluation import refining
from sora_jax.evaluation.resampling import lanczos
from sora_jax.generate.cascade import Refiner, RefinerConfig
from sora_jax.generate.scheduler import Made
from tests import small
from tests.generate.test_tasks import LIMITS as SMALL

LIMITS = dataclasses.replace(SMALL, stride=(4, 8, 8), size=(32, 32), frames=9)
WORLD = ShapesWorld(
    small.world_config(
        seed=0, num_clips=3, sides=((32, 32),), frames=(9,), image_share=0.0, fps=(8.0,), split="heldout"
    )
)
SCENES = [WORLD.scene(index) for index in range(3)]
TRUE = {case_of(scene).prompt: render(scene) for scene in SCENES}
SAMPLER: Any = SimpleNamespace(codec=SimpleNamespace(reconstruct=lambda clip_BTHWC: clip_BTHWC))


def judged(monkeypatch, make, *, refiner=None, otherwise=lambda clip: clip):
    """Returns the scores where `make(job, true)` makes the clip of a job, `otherwise` of it without a refiner."""

    def make_all(sampler, params, jobs, limits):
        made = [make(job, TRUE[job.prompts[0]]) for job in jobs]
        return [Made(clip=clip if limits.refiner is refiner else otherwise(clip), notes={}) for clip in made]

    monkeypatch.setattr(refining, "make_all", make_all)
    cases = [case_of(scene) for scene in SCENES]
    limits = dataclasses.replace(LIMITS, refiner=refiner)
    return refining.judge_refining(SAMPLER, {}, limits, WORLD, cases, seed=0).scores


def test_the_truth_gains_all_there_is(monkeypatch):
    asked: list[Any] = []

    def make(job, true):
        asked.append(job)
        return true

    scores = judged(monkeypatch, make)
    assert scores["psnr"] == scores["psnr_autoencoder"] == np.inf
    assert scores["time_px"] == 0
    assert scores["shape_gain"] == 0
    shapes = [(job.request.task, len(job.passes), *(clip.shape[:3] for clip in job.clips)) for job in asked[::3]]
    assert shapes == [("upscale", 0, (9, 16, 16)), ("interpolate", 0, (3, 32, 32)), ("text", 0), ("text", 2)]


def test_what_lanczos_does_gains_nothing(monkeypatch):
    def make(job, true):
        return lanczos(job.clips[0], true.shape[:3]) if job.request.task == "upscale" else true

    scores = judged(monkeypatch, make)
    assert scores["psnr_gain_lanczos"] == 0
    assert 15 < scores["psnr_lanczos"] < 45


def test_frames_beside_their_place_are_seen(monkeypatch):
    def make(job, true):
        return np.roll(true, 3, axis=2) if job.request.task == "interpolate" else true

    assert 2 < judged(monkeypatch, make)["time_px"] < 30


def test_a_shape_that_only_one_pass_has_is_a_loss(monkeypatch):
    def make(job, true):
        return np.full_like(true, 20) if job.passes else true

    assert judged(monkeypatch, make)["shape_gain"] == -1


def test_half_the_size_must_be_whole_tokens():
    limits = dataclasses.replace(LIMITS, size=(24, 32))
    with pytest.raises(UserError, match="12"):
        refining.judge_refining(SAMPLER, {}, limits, WORLD, [], seed=0)


def test_a_refiner_is_told_from_starting_from_noise(monkeypatch):
    """And what is given is kept: of a grey clip with the details of nothing, Lanczos is left."""
    refiner = Refiner(space=(1, 2), time=(1, 4), config=RefinerConfig(level=0.15, steps=None, tile=None))
    scores = judged(monkeypatch, lambda job, true: true, refiner=refiner, otherwise=np.zeros_like)
    assert scores["psnr_gain_upscale"] == np.inf
    scores = judged(monkeypatch, lambda job, true: np.full_like(true, 90))
    assert scores["psnr_gain_upscale"] == 0
    assert abs(scores["psnr_kept"] - scores["psnr_lanczos"]) < 1
    assert scores["psnr"] < scores["psnr_kept"] - 5
