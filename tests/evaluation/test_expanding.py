"""Scores of prompts that are written out: of what keeps them, of what does not, and of what always adds the same."""

import numpy as np
import pytest

from sora_jax.data.sources.shapes_captions import SaidThing, compose
from sora_jax.data.sources.shapes_prompts import heldout_prompts
from sora_jax.data.sources.shapes_world import ShapesWorld
from sora_jax.evaluation.evaluator import Judged
from sora_jax.evaluation.expanding import brief_cases, count_kept, judge_expansion, terse_cases
from sora_jax.generate.expand import Expansion
from tests import small

CASES = heldout_prompts(72)
WORLD = ShapesWorld(
    small.world_config(seed=0, num_clips=2000, sides=((32, 32),), frames=(9,), image_share=0.2, fps=(8.0,))
)
DATA = [WORLD.scene(number) for number in range(len(WORLD))]
OPEN = ("background", "size", "motion")
MOVING = [scene for scene in DATA if scene.frames > 1]


def written(case, *, ground, size, motion):
    """Returns the detailed caption of what a case asks for."""
    (kind,) = case.objects
    thing = SaidThing(colour=kind.colour, shape=kind.shape, motion=kind.motion or motion, size=size)
    return compose([thing], ground=ground, bar=False)[-1]


def judged(expand):
    """Returns the scores where `expand(number, case)` is the text of a prompt, and the prompts of all videos."""
    asked = [*terse_cases(CASES), *brief_cases(CASES)]
    followed = []

    def become(prompts, seeds):
        assert prompts == [case.prompt for case in asked]
        assert len(set(seeds)) == len(asked)
        return [Expansion(prompt=case.prompt, text=expand(number, case)) for number, case in enumerate(asked)]

    def follow(cases):
        followed.append([case.prompt for case in cases])
        return Judged(scores={"all": 0.1 * len(followed)}, groups=[], prompts=[], clips=[], verdicts=[])

    return judge_expansion(become, follow, CASES, DATA, seed=7).scores, followed


def test_prompts_are_as_users_type_them():
    first, second = CASES[:2]
    (one,), (other,) = first.objects, second.objects
    terse, brief = terse_cases(CASES[:2]), brief_cases(CASES[:2])
    assert [case.prompt for case in terse] == [
        f"{one.colour} {one.shape} {one.motion}",
        f"{other.shape}, {other.colour}, {other.motion}",
    ]
    assert [case.prompt for case in brief] == [f"{one.colour} {one.shape}", f"{other.shape}, {other.colour}"]
    assert [case.objects for case in terse] == [first.objects, second.objects]
    assert brief[0].objects[0].motion is None


def as_clips_are(draw):
    """Returns what writes texts whose open attributes are those of clips that show the same."""

    def expand(number, case):
        (kind,) = case.objects
        alike = [one for one in MOVING if (one.objects[0].colour, one.objects[0].shape) == (kind.colour, kind.shape)]
        scene = alike[np.random.default_rng([draw, number]).integers(len(alike))]
        (thing,) = scene.objects
        return written(case, ground=scene.background, size=thing.size, motion=thing.motion)

    return expand


def test_what_keeps_all_has_the_best_scores():
    scores, (terse, unexpanded, detailed) = judged(as_clips_are(0))
    assert (scores["kept"], scores["contradicted"], scores["added"], scores["fallback"]) == (1, 0, 0, 0)
    assert detailed == [case.prompt for case in CASES]
    assert unexpanded == [case.prompt for case in terse_cases(CASES)]
    assert all(text.endswith("background") for text in terse)
    assert [scores[f"{name}_following"] for name in ("terse", "unexpanded", "detailed")] == pytest.approx(
        [0.1, 0.2, 0.3]
    )


def test_what_varies_as_clips_do_stays_under_chance_in_19_of_20_draws():
    under = []
    for draw in range(4):
        scores, _ = judged(as_clips_are(draw))
        under += [scores[f"distance_{name}"] <= scores[f"distance_{name}_by_chance"] for name in OPEN]
        for name in OPEN:
            shares = [(one["written"], one["clips"]) for one in scores["spread"] if one["attribute"] == name]
            np.testing.assert_allclose(np.sum(shares, axis=0), 1)
    assert np.mean(under) > 0.8


def test_what_always_adds_the_same_is_not_spread():
    scores, _ = judged(lambda number, case: written(case, ground="dark", size="small", motion="left"))
    assert scores["kept"] == 1
    assert scores["distance_background"] == pytest.approx(2 / 3, abs=0.05)
    for name in OPEN:
        assert scores[f"distance_{name}"] > 2 * scores[f"distance_{name}_by_chance"]


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("red circle right", (3, 3, 0)),
        ("a small red circle moving to the right over a grey background", (3, 3, 0)),
        ("a red circle on a dark background", (3, 2, 0)),
        ("a red circle moves left", (3, 2, 1)),
        ("a blue square moves left and a red circle moves right", (3, 3, 0)),
        ("a rlud circle moves right", (3, 0, 3)),
    ],
)
def test_attributes_are_counted_by_a_grammar(text, counts):
    case = terse_cases([case for case in heldout_prompts(24) if case.objects[0].shape == "circle"][:1])[0]
    (kind,) = case.objects
    opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}[str(kind.motion)]
    words: dict[str, str] = {"red": kind.colour, "right": str(kind.motion), "left": opposite}
    told = " ".join(words.get(word, str(word)) for word in text.split())
    if kind.motion in ("up", "down"):
        told = told.replace("moving to the ", "moving ")
    assert count_kept(case, told) == counts


def test_further_objects_and_prompts_that_stay_are_told():
    second = "a red circle moves right and a blue square moves left"
    assert judged(lambda number, case: second if number % 2 else case.prompt)[0]["added"] == 0.5
    scores, _ = judged(lambda number, case: case.prompt)
    assert scores["kept"] == 1
    assert scores["spread"] == []
    assert "distance_size" not in scores
