"""The evaluator asks for held-out prompts and judges what it gets."""

import dataclasses

from sora_jax.data.sources.shapes_prompts import PromptCase, case_of, heldout_prompts
from sora_jax.data.sources.shapes_world import Attributes, ShapesWorld
from sora_jax.evaluation import shapes_oracle
from sora_jax.evaluation.evaluator import judge_clips, judge_prompts
from sora_jax.evaluation.shapes_oracle import ClipScore
from tests import small
from tests.evaluation.test_form import moving

RED = {"colour": "red", "motion": "right"}


class Draws:
    """A sampler that draws what the world shows for the prompt's attributes, or for those of the prompt before."""

    def __init__(self, *, shift=0):
        self.shift, self.canvases = shift, []

    def __call__(self, params, canvases):
        self.canvases, drawn = canvases, {}
        config = small.world_config(
            seed=0, num_clips=4000, sides=((32, 32),), frames=(9,), image_share=0.0, fps=(8.0,), split="heldout"
        )
        world = ShapesWorld(config)
        wanted = {case.prompt: case.objects for case in heldout_prompts(len(canvases))}
        index = 0
        while not {objects for objects in wanted.values()} <= drawn.keys():
            drawn.setdefault(case_of(world.scene(index)).objects, world[index].pixels_THWC)
            index += 1
        clips = [drawn[wanted[canvas.prompt]] for canvas in canvases]
        return clips[self.shift :] + clips[: self.shift]


def judged(sampler, count=12):
    return judge_prompts(sampler, {}, heldout_prompts(count), grid=(3, 4, 4), fps=8.0, seed=100)


def test_what_follows_its_prompt_scores_full_and_is_kept():
    sampler = Draws()
    result = judged(sampler)
    assert result.scores["prompts"] == 12
    for name in ("colour", "shape", "motion"):
        assert result.scores[name] >= 11 / 12, "the oracle may err once in a hundred"
    assert result.prompts == [case.prompt for case in heldout_prompts(12)]
    assert len(result.clips) == 12


def test_what_follows_another_prompt_does_not():
    assert judged(Draws(shift=1)).scores["motion"] < 0.5


def test_every_prompt_has_its_own_noise_and_the_wanted_size():
    sampler = Draws()
    judged(sampler)
    assert [canvas.seed for canvas in sampler.canvases] == list(range(100, 112))
    assert {(canvas.grid, canvas.fps) for canvas in sampler.canvases} == {((3, 4, 4), 8.0)}


def test_the_oracle_is_the_judge(monkeypatch):
    colours = iter([True, False, False, False] * 3)
    monkeypatch.setattr(
        shapes_oracle, "score_clip", lambda case, clip: ClipScore(right={"colour": next(colours)}, readings=())
    )
    assert judged(Draws()).scores == {"prompts": 12, "colour": 0.25}


def test_scores_come_by_shape_ground_and_size():
    cases = [
        PromptCase(prompt=f"{ground} {shape}", background=ground, objects=(Attributes(**RED, shape=shape),))
        for ground in ("dark", "light")
        for shape in ("circle", "square")
    ]
    sides = [(32, 32), (32, 32), (24, 40), (24, 40)]
    # Squares are asked for and circles shown.
    clips = [moving("circle", ground=case.background, side=side)[1] for case, side in zip(cases, sides, strict=True)]
    result = judge_clips(cases, clips)
    found = {(one["by"], one["group"]): (one["prompts"], one["shape"], one["clean"]) for one in result.groups}
    assert found == {
        ("shape", "circle"): (2, 1.0, 1.0),
        ("shape", "square"): (2, 0.0, 0.0),
        ("ground", "dark"): (2, 0.5, 0.5),
        ("ground", "light"): (2, 0.5, 0.5),
        ("size", "3x24x40"): (2, 0.5, 0.5),
        ("size", "3x32x32"): (2, 0.5, 0.5),
    }
    assert result.facts() == {**result.scores, "groups": result.groups}
    assert {one["by"] for one in judge_clips(cases[:2], clips[:2]).groups} == {"shape"}, "what differs"
    mixed = [cases[0], dataclasses.replace(cases[1], left_open=("shape",))]
    assert [one["group"] for one in judge_clips(mixed, clips[:2]).groups] == ["any", "circle"]
