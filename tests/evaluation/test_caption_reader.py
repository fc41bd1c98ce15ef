"""What the drawn world writes is read back exactly; what is spoiled is caught, and in the part that is spoiled."""

import dataclasses
import json

import pytest

from sora_jax.core.errors import UserError
from sora_jax.data.sources import shapes_wordings
from sora_jax.data.sources.shapes_world import PALETTE, SHAPES, Scene, ShapesWorld, describe
from sora_jax.evaluation.caption_reader import CaptionContent, ToldObject, parse_caption, score_captions, truth
from tests import small

ATTRIBUTES = {"colour", "shape", "motion", "size", "background", "bar"}


def world(**overrides) -> ShapesWorld:
    values = dict(
        seed=1, num_clips=300, sides=((16, 16), (16, 28)), frames=(2,), image_share=0.2, fps=(8.0,), occluder=True
    )
    return ShapesWorld(small.world_config(**(values | overrides)))


ONE = world()
TWO = world(max_objects=2, seed=2)
SCENES = [each.scene(index) for each in (ONE, TWO) for index in range(len(each))]
PAIRS = [scene for scene in SCENES if len(scene.objects) == 2 and scene.objects[0].motion]
BARS = [scene for scene in SCENES if scene.bar is not None]
MOVING = [scene for scene in SCENES if len(scene.objects) == 1 and scene.objects[0].motion]


def without(told: CaptionContent, *, size: bool = True, background: bool = False) -> CaptionContent:
    """Returns what is told, less what some captions leave out."""
    if size:
        told = dataclasses.replace(told, objects=tuple(dataclasses.replace(one, size=None) for one in told.objects))
    return dataclasses.replace(told, background=None) if background else told


def scores(scene: Scene, text: str):
    return score_captions([(scene, text)])


def test_what_the_world_writes_is_read_back():
    assert len(PAIRS) > 50
    assert len(BARS) > 50
    for scene in SCENES:
        short, plain, reordered, detailed = map(parse_caption, describe(scene))
        assert short == without(truth(scene), background=True)
        assert plain == reordered == without(truth(scene))
        assert detailed == truth(scene)


def test_other_words_are_read_as_what_they_mean():
    for split in ("train", "heldout"):
        reworded = world(split=split, max_objects=2, num_clips=60, wordings=6)
        for index in range(len(reworded)):
            clip, scene = reworded[index], reworded.scene(index)
            assert len(clip.captions) == 4 + 6
            for caption in clip.captions[4:]:
                assert parse_caption(caption) == without(truth(scene)), caption


def test_every_word_means_one_thing():
    colours, shapes, motions, grounds = shapes_wordings.TABLES[:4]
    for table in (colours, shapes, motions, grounds):
        words = [word for name, others in table.items() for word in (name, *others)]
        assert len(words) == len(set(words))
    for name, words in motions.items():
        for word in words:
            told = parse_caption(f"a red circle {word} in front of a murky wall behind a bar")
            assert told == CaptionContent(
                objects=(ToldObject(colour="red", shape="circle", motion=name),), background="dark", bar=True
            )


def test_what_is_not_said_of_an_object_is_not_read_and_is_no_object_that_is_not_there():
    told = parse_caption("a thing and a large square moves left and a red thing staying still")
    assert told is not None
    assert told.objects == (
        ToldObject(),
        ToldObject(size="large", shape="square", motion="left"),
        ToldObject(colour="red", motion="still"),
    )
    scene = MOVING[0]
    (shown,) = scene.objects
    other = next(shape for shape in SHAPES if shape != shown.shape)
    for text, hallucinated in (
        (f"a {shown.shape}", 0),
        (f"a {other}", 1),
        ("a thing", 0),
        ("a thing and a thing", 0.5),
    ):
        found = scores(scene, text)
        assert (found.hallucinated, found.exact, found.unreadable) == (hallucinated, 0, 0)
    assert scores(scene, f"a {shown.shape}").precision == {"shape": 1.0}
    assert scores(scene, f"a {shown.shape}").recall["colour"] == 0


def test_blanks_and_case_do_not_count():
    assert parse_caption("  A Red circle\n moves LEFT ") == parse_caption("a red circle moves left") is not None


def test_no_caption_of_the_world_is_wrong():
    for number in range(4):
        found = score_captions((scene, describe(scene)[number]) for scene in SCENES)
        assert set(found.precision) == ATTRIBUTES - ({"size"} if number < 3 else set()) - (
            {"background"} if number == 0 else set()
        )
        assert set(found.precision.values()) == {1.0}
        silent = {name for name, share in found.recall.items() if share == 0}
        assert silent == ATTRIBUTES - set(found.precision)
        assert {*found.recall.values()} <= {0.0, 1.0}
        assert (found.hallucinated, found.exact, found.unreadable) == (0, 1, 0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red",
        "a red circle moves",
        "red circle moves left",
        "an red circle moves left",
        "a red circle moves left and",
        "a red circle moves left on a dark",
        "a red circle moves left moves left",
        "a red circle moves left on a dark background on a dark background",
        "on a dark background a red circle moves left on a grey background",
        "on a dark background",
        "a reddish circle moves left",
        "a red circles moves left",
        "a circle red moves left",
        "a red circle a blue square",
        "a red circle moves left behind a bar behind a bar",
        "a red circle moves left.",
        "a red circlé moves left",
    ],
)
def test_what_is_no_sentence_counts_as_wrong_in_all(text):
    assert parse_caption(text) is None
    scene = BARS[0]
    found = scores(scene, text)
    assert found.precision == found.recall == dict.fromkeys(ATTRIBUTES, 0.0)
    assert (found.hallucinated, found.exact, found.unreadable) == (1, 0, 1)


def test_a_caption_that_is_cut_off_is_not_exact():
    for scene in (*BARS[:12], *PAIRS[:12], *SCENES[:12]):
        for caption in describe(scene):
            words = caption.split()
            for kept in range(len(words)):
                cut = " ".join(words[:kept])
                if cut in describe(scene):
                    continue
                found = parse_caption(cut)
                whole = without(truth(scene), background=True)
                # Whole sentences that leave out a size or the ground say nothing wrong.
                right = found is not None and without(found, background=True) == whole
                assert scores(scene, cut).exact == right, cut


def wrong(scene: Scene, **changes) -> str:
    """Returns the detailed caption of a scene whose first object, or which itself, were another."""
    of_object = {name: value for name, value in changes.items() if name in ("colour", "shape", "motion", "size")}
    of_scene = {name: value for name, value in changes.items() if name not in of_object}
    objects = (dataclasses.replace(scene.objects[0], **of_object), *scene.objects[1:])
    return describe(dataclasses.replace(scene, objects=objects, **of_scene))[3]


def other(name: str, names) -> str:
    return next(one for one in names if one != name)


def test_one_wrong_word_is_found_and_blamed():
    for scene in MOVING[:60]:
        thing = scene.objects[0]
        spoiled = {
            "colour": wrong(scene, colour=other(thing.colour, PALETTE)),
            "shape": wrong(scene, shape=other(thing.shape, SHAPES)),
            "motion": wrong(scene, motion=other(str(thing.motion), ("left", "up"))),
            "size": wrong(scene, size=other(str(thing.size), ("small", "large"))),
            "background": wrong(scene, background=other(scene.background, ("dark", "light"))),
            "bar": wrong(scene, bar=0.5 if scene.bar is None else None),
        }
        assert spoiled.keys() == ATTRIBUTES
        for name, text in spoiled.items():
            found = scores(scene, text)
            assert found.exact == 0
            assert found.unreadable == 0
            assert found.hallucinated == (name in ("colour", "shape"))
            if name == "bar" and scene.bar is not None:
                assert "bar" not in found.precision
                assert found.recall["bar"] == 0
            else:
                assert found.precision[name] == 0
            assert all(share == 1 for key, share in found.precision.items() if key != name)
            assert all(share == 1 for key, share in found.recall.items() if key != name)


def test_colours_that_change_places_are_two_objects_that_are_not_there():
    for scene in PAIRS[:60]:
        first, second = scene.objects
        swapped = (dataclasses.replace(first, colour=second.colour), dataclasses.replace(second, colour=first.colour))
        found = scores(scene, describe(dataclasses.replace(scene, objects=swapped))[1])
        assert (found.hallucinated, found.exact) == (1, 0)
        moved = (dataclasses.replace(first, motion=second.motion), dataclasses.replace(second, motion=first.motion))
        found = scores(scene, describe(dataclasses.replace(scene, objects=moved))[1])
        assert found.hallucinated == 0
        assert found.precision["colour"] == found.precision["shape"] == 1
        assert found.exact == found.precision["motion"] == float(first.motion == second.motion)


def test_the_order_of_objects_does_not_count_their_number_does():
    for scene in PAIRS[:60]:
        first, second = scene.objects
        turned = describe(dataclasses.replace(scene, objects=(second, first)))[2]
        assert scores(scene, turned) == scores(scene, describe(scene)[2])
        assert scores(scene, turned).exact == 1
        lost = scores(scene, describe(dataclasses.replace(scene, objects=(second,)))[1])
        assert (lost.hallucinated, lost.exact, lost.precision["colour"], lost.recall["colour"]) == (0, 0, 1, 0.5)
        twice = scores(scene, describe(dataclasses.replace(scene, objects=(first, second, second)))[1])
        assert twice.hallucinated == pytest.approx(1 / 3)
        assert twice.exact == 0
        assert twice.precision["shape"] == pytest.approx(2 / 3)
        assert twice.recall["shape"] == 1


def test_a_motion_said_of_an_image_is_wrong():
    image = next(scene for scene in SCENES if scene.objects[0].motion is None and len(scene.objects) == 1)
    thing = image.objects[0]
    found = scores(image, f"a {thing.colour} {thing.shape} stays still")
    assert found.precision == {"colour": 1, "shape": 1, "motion": 0}
    assert "motion" not in found.recall
    assert found.exact == 0


def test_shares_are_of_all_captions_together():
    right, spoiled = MOVING[0], MOVING[1]
    found = score_captions([(right, describe(right)[1]), (spoiled, "what?"), (right, describe(right)[1])])
    assert found.precision["colour"] == found.recall["colour"] == found.exact == pytest.approx(2 / 3)
    assert found.hallucinated == found.unreadable == pytest.approx(1 / 3)
    assert json.loads(json.dumps(found.facts()))["recall"]["size"] == 0
    with pytest.raises(UserError, match="no captions"):
        score_captions([])
