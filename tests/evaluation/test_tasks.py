"""Scores of tasks: what is right scores 1, what is wrong does not."""

import dataclasses

import numpy as np
import pytest

from sora_jax.data.sources.shapes_world import ShapesWorld, render
from sora_jax.evaluation import tasks
from sora_jax.generate.scheduler import Made
from tests import small
from tests.generate.test_tasks import LIMITS as SMALL

LIMITS = dataclasses.replace(SMALL, stride=(4, 8, 8), size=(32, 32), frames=9)
WORLD = ShapesWorld(
    small.world_config(
        seed=0, num_clips=8, sides=((32, 32),), frames=(9,), image_share=0.0, fps=(8.0,), split="heldout"
    )
)
SCENES = [WORLD.scene(index) for index in range(8)]


def judged(name, change=lambda clip, scene, job: clip, notes=None, scenes=SCENES):
    """Returns the scores of a task whose videos are the truth, changed."""
    plan, judge = tasks._JUDGES[name]
    jobs = plan(scenes, LIMITS)
    pairs = zip(scenes, jobs, strict=False)  # connect makes half as many
    videos = [Made(clip=change(render(scene), scene, job), notes=notes or {}) for scene, job in pairs]
    return judge(scenes, jobs, videos), jobs


@pytest.mark.parametrize("name", ["animate", "extend_forward", "extend_backward"])
def test_the_truth_keeps_its_subject(name):
    scores, jobs = judged(name)
    assert {scores[key] for key in ("colour", "shape", "seam", "all")} == {1.0}
    assert 1 < scores["jump_px"] < 2, "as far as it moves in a frame"
    for job in jobs:
        given = 1 if name == "animate" else len(job.clips[0])
        assert (job.frames + job.before + given if name != "animate" else job.frames) == 9


@pytest.mark.parametrize("name", ["extend_forward", "extend_backward"])
def test_another_colour_in_the_new_frames_is_seen(name):
    def recoloured(clip, scene, job):
        new = slice(len(job.clips[0]), None) if name == "extend_forward" else slice(0, job.before)
        clip = clip.copy()
        clip[new] = clip[new][..., [1, 2, 0]]
        return clip

    scores, _ = judged(name, recoloured)
    assert scores["colour"] == 0
    assert scores["all"] == 0


def test_a_jump_at_the_seam_is_seen():
    def jumping(clip, scene, job):
        seam = len(job.clips[0])
        return np.concatenate([clip[:seam], np.roll(clip[seam:], 6, axis=1)])

    scores, _ = judged("extend_forward", jumping)
    assert scores["colour"] == 1
    assert scores["seam"] < 0.5
    assert scores["jump_px"] > 2


def test_what_does_not_come_out_from_behind_a_bar_is_not_permanent():
    world = ShapesWorld(dataclasses.replace(WORLD.config, occluder=True, num_clips=16))
    scenes = [world.scene(index) for index in range(16)]
    behind = [scene.bar is not None for scene in scenes]
    assert 0 < sum(behind) < 16

    def gone(clip, scene, job):
        seam = len(job.clips[0])
        empty = np.broadcast_to(clip[:, :1, :1], clip.shape)  # a corner is of the background
        return clip if scene.bar is None else np.concatenate([clip[: seam + 1], empty[seam + 1 :]])

    assert "permanence" not in judged("extend_forward")[0], "there is no bar"
    assert judged("extend_forward", scenes=scenes)[0]["permanence"] == 1
    assert judged("animate", scenes=scenes)[0]["permanence"] == 1
    assert judged("extend_forward", gone, scenes=scenes)[0]["permanence"] == 0


def test_a_fade_connects_and_a_cut_does_not():
    def joined(frames):
        def join(_, scene, job):
            first, second = job.clips
            share = ((np.arange(frames) + 1) / (frames + 1))[:, None, None, None]
            return np.concatenate([first, np.round((1 - share) * first[-1] + share * second[0]), second]).astype(
                np.uint8
            )

        return join

    faded, jobs = judged("connect", joined(8))
    assert len(jobs) == 4
    assert (faded["ends"], faded["smooth"], faded["all"]) == (1, 1, 1)
    cut, _ = judged("connect", joined(0))
    assert cut["ends"] == 1
    assert cut["smooth"] < 0.5
    assert cut["change"] > faded["change"]
    other, _ = judged("connect", lambda clip, scene, job: joined(8)(clip, scene, job)[::-1])
    assert other["ends"] == 0


def test_an_edit_changes_the_colour_and_keeps_the_way():
    def edited(clip, scene, job):
        spec = dataclasses.replace(scene.objects[0], colour=tasks.opposite_colour(scene))
        return render(dataclasses.replace(scene, objects=(spec,)))

    scores, jobs = judged("edit", edited)
    assert (scores["colour"], scores["trajectory"], scores["all"]) == (1, 1, 1)
    assert all(tasks.opposite_colour(scene) in job.prompts[0] for scene, job in zip(SCENES, jobs, strict=True))
    untouched, _ = judged("edit")
    assert (untouched["colour"], untouched["trajectory"], untouched["all"]) == (0, 1, 0)
    backward, _ = judged("edit", lambda *given: edited(*given)[::-1])
    assert (backward["colour"], backward["trajectory"]) == (1, 0)


def test_a_fill_is_judged_as_a_prompt_is_and_hides_where_the_subject_ends():
    scores, jobs = judged("fill")
    assert scores["all"] == 1
    for scene, job in zip(SCENES, jobs, strict=True):
        row, column = (int(32 * place) for place in scene.objects[0].end)
        assert job.mask_THW[:, row, column].all()
        assert job.mask_THW.mean() == 0.5


def test_an_enlarged_clip_is_judged_as_a_prompt_is():
    def enlarged(clip, scene, job):
        return render(dataclasses.replace(scene, height=48, width=48))

    scores, jobs = judged("upscale", enlarged)
    assert scores["all"] == 1
    assert {(job.size, job.clips[0].shape) for job in jobs} == {((48, 48), (9, 32, 32, 3))}


def test_the_seam_of_loops_is_their_mean():
    scores, jobs = judged("loop", notes={"seam": 1.25})
    assert scores == {"seam": 1.25, "largest_seam": 1.25}
    assert {job.frames for job in jobs} == {8}, "a second"


def test_an_odd_clip_is_left_out_of_the_pairs():
    assert len(tasks._plan_connect(SCENES[:5], LIMITS)) == 2
