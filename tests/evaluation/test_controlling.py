"""Scores of control: of what follows and of what does not."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.data.sources.shapes_prompts import case_of, heldout_prompts
from sora_jax.data.sources.shapes_world import PALETTE, ShapesWorld, coverage, render
from sora_jax.evaluation import controlling
from sora_jax.evaluation.tasks import opposite_colour
from sora_jax.generate.control import MadeControl
from sora_jax.generate.scheduler import Made
from sora_jax.preparation.boxes import draw_boxes
from tests import small
from tests.generate.test_tasks import LIMITS as SMALL


class Beside:
    """A control at half the size."""

    scale = 2

    def __init__(self, kind):
        self.kind = kind

    def __call__(self, pixels_THWC, fps, *, as_is=False):
        assert as_is == (self.kind == "boxes")
        return MadeControl(pixels_THWC if as_is else pixels_THWC[:, ::2, ::2], fps, self.kind, 2)


KINDS = {kind: Beside(kind) for kind in ("edges", "boxes")}
LIMITS = dataclasses.replace(SMALL, stride=(4, 8, 8), size=(32, 32), frames=9, controls=KINDS, draw_boxes=draw_boxes)
WORLD = ShapesWorld(
    small.world_config(
        seed=0, num_clips=3, sides=((32, 32),), frames=(9,), image_share=0.0, fps=(8.0,), split="heldout"
    )
)
SCENES = [WORLD.scene(index) for index in range(3)]
CASES = heldout_prompts(4)
SAMPLER: Any = SimpleNamespace(codec=SimpleNamespace(reconstruct=lambda clip_BTHWC: clip_BTHWC))


def recoloured(scene):
    (spec,) = scene.objects
    return render(dataclasses.replace(scene, objects=(dataclasses.replace(spec, colour=opposite_colour(scene)),)))


def followed(number, shift=0.0):
    """Returns a circle in the boxes of a case, moved by `shift` px."""
    (boxes_T4,) = controlling.curved_track(CASES[number], number, LIMITS)
    offset = np.arange(32) + 0.5
    pixels_THWC = np.full((9, 32, 32, 3), 40, np.float32)
    for frame_HWC, (top, left, bottom, right) in zip(pixels_THWC, boxes_T4, strict=True):
        rows, columns = offset - (top + bottom) / 2, offset - (left + right) / 2 - shift
        cover_HW = coverage("circle", rows[:, None], columns[None], radius=(bottom - top) / 2)
        frame_HWC += cover_HW[..., None] * (np.array(PALETTE["red"], np.float32) - frame_HWC)
    return np.rint(pixels_THWC).astype(np.uint8)


def judged(monkeypatch, edges=recoloured, boxes=followed, limits=LIMITS):
    asked = []

    def make_all(sampler, params, jobs, limits):
        asked.append(jobs)
        make = [lambda n: edges(SCENES[n]), boxes][jobs[0].controls[0].kind == "boxes"]
        return [Made(clip=make(number), notes={}) for number in range(len(jobs))]

    monkeypatch.setattr(controlling, "make_all", make_all)
    return controlling.judge_control(SAMPLER, {}, limits, WORLD, CASES, seed=7), asked


def test_what_follows_has_all_there_is(monkeypatch):
    found, (edges, boxes) = judged(monkeypatch)
    assert found.scores["edges_f1"] > 0.95
    assert (found.scores["edges_f1_ceiling"], found.scores["colour"]) == (1, 1)
    assert found.scores["boxes_px"] < 0.3
    assert 0 < found.scores["boxes_px_floor"] < 0.5, "drawn clips, which this autoencoder leaves as they are"
    assert found.scores["boxes_lost"] == 0
    assert [job.request.seed for job in edges] == [7, 8, 9]
    for scene, job in zip(SCENES, edges, strict=True):
        assert opposite_colour(scene) in job.prompts[0] != case_of(scene).prompt
        np.testing.assert_array_equal(job.controls[0].clip_THWC, render(scene))
    assert [job.prompts[0] for job in boxes] == [case.prompt for case in CASES]
    assert boxes[0].controls[0].clip_THWC.shape == (9, 16, 16, 3)
    assert [clip.shape for clip in found.clips["boxes"]] == [(9, 32, 64, 3)] * 4, "beside what is given"


def test_what_shows_the_clip_itself_has_the_wrong_colour(monkeypatch):
    assert judged(monkeypatch, edges=render)[0].scores["colour"] == 0


def test_what_is_elsewhere_or_gone_is_told(monkeypatch):
    far = judged(monkeypatch, boxes=lambda number: followed(number, shift=3.0))[0].scores
    assert far["boxes_px"] == pytest.approx(3, abs=0.4)
    none = judged(monkeypatch, boxes=lambda number: np.full((9, 32, 32, 3), 40, np.uint8))[0].scores
    assert (none["boxes_px"], none["boxes_lost"]) == (32, 1)


def test_curves_stay_in_the_frame_and_bend():
    for size in ((32, 32), (24, 40), (40, 24)):
        limits = dataclasses.replace(LIMITS, size=size, frames=13)
        for number, case in enumerate(heldout_prompts(16)):
            (boxes_T4,) = controlling.curved_track(case, number, limits)
            assert boxes_T4.min() >= 0
            assert (boxes_T4[:, 2:] <= size).all()
            across_T = boxes_T4[:, 0 if case.objects[0].motion in ("left", "right") else 1]
            assert np.ptp(across_T) > 0.15 * min(size)


def test_only_what_the_model_knows_is_judged(monkeypatch):
    only = dataclasses.replace(LIMITS, controls={"boxes": KINDS["boxes"], "low": KINDS["edges"]})
    assert judged(monkeypatch, limits=only)[0].scores.keys() == {"clips", "boxes_px", "boxes_px_floor", "boxes_lost"}
    none = dataclasses.replace(LIMITS, controls={"low": KINDS["edges"]})
    with pytest.raises(UserError, match=r"this run was trained with low beside clips: train configs/control\.py"):
        judged(monkeypatch, limits=none)
