"""A longer text is refused where it loses or contradicts what a prompt says, and only there."""

import numpy as np
import pytest

from sora_jax.data.prompt_guard import find_additions, find_losses, shorten


@pytest.mark.parametrize(
    ("prompt", "longer"),
    [
        ("red circle right", "a small red circle moves right on a dark background"),
        ("circle, red", "on a grey background a red circle moves left"),
        ("red circles moving", "a red circle moves up"),
        ("2 dogs", "two brown dogs run over a meadow"),
        ('a sign says "Open"', 'an old sign says "Open" in the rain'),
        ("blue square up red circle", "a blue square moves up and a red circle stays still"),
        ("red, circle, moves, right, blue, square", "a red circle moves right and a blue square moves left"),
        ("a car without doors", "a fast car without doors"),
        ("一只猫", "窗台上的一只猫"),
    ],
)
def test_what_keeps_a_prompt_has_no_faults(prompt, longer):
    assert find_losses(prompt, longer) == ()


@pytest.mark.parametrize(
    ("prompt", "longer", "said"),
    [
        ("red circle right", "a red circle moves up", "'right' is lost"),
        (
            "red circle right",
            "a red circle moves left, a blue square right",
            "the direction of 'circle' is left, not right",
        ),
        ("red circle right", "a red circle moves right and left", "the direction of 'circle' is left, not right"),
        ("a red circle", "a red circle and a blue circle", "the colour of 'circle' is blue, not red"),
        ("circle, red", "a blue circle on a red background", "the colour of 'circle' is blue, not red"),
        ("3 cats", "three cats and 4 cats", "the number of 'cats' is 4, not 3"),
        ("3 cats", "some cats", "'3' is lost"),
        ('a sign says "Open"', 'a sign says "open"', "the text 'Open' is lost"),
        ("a car", "no car", "'car' is denied"),
    ],
)
def test_what_is_lost_or_contradicted_is_told(prompt, longer, said):
    assert said in find_losses(prompt, longer)


SECOND = "a red circle moves right and a blue square moves left"


@pytest.mark.parametrize(
    ("prompt", "longer"),
    [
        ("red circle right", "a small red circle moving to the right over a dark background behind a bar"),
        ("circle, red", "on a grey background a red circle moves left"),
        ("red right", "a red circle moves right"),
        ("blue square up red circle", "a blue square moves up and a red circle stays still"),
        ("a red car", "A cinematic shot of a red car driving along a road, and the red car shines in the sun"),
        ("a woman", "a woman holds a cup of coffee at a table"),
        ("a man", "a man walks down a street"),
        ("dogs", "three dogs run"),
        ("a bird and a black cat", "a black and white cat watches a small bird on a branch"),
        ("一只猫", "窗台上的一只猫"),
        (SECOND, SECOND),
    ],
)
@pytest.mark.parametrize("joined", [False, True])
def test_places_and_details_are_no_additions(prompt, longer, joined):
    assert find_additions(prompt, longer, joined=joined) == ()


@pytest.mark.parametrize(
    ("prompt", "longer", "said", "joined"),
    [
        ("red circle right", SECOND, "'a blue square moves left' is added", True),
        ("red circle right", "a red circle moves right, a blue square moves left", "'a blue square moves left'", False),
        ("red circle right", "a red circle moves right a blue square moves left", "'a blue square moves left'", False),
        (
            "red circle right",
            "on a dark background a blue square and a red circle moves right",
            "'a blue square'",
            True,
        ),
        ("red circle", "a blue square behind a red circle", "'a blue square' is added", False),
        ("red circle", "a red circle moves up and a red circle moves up", "'a red circle moves up' is added", True),
        ("red right", SECOND, "'a blue square moves left' is added", True),
        ("red circle", "a red circle over a dark background a dark background", "'background' is there twice", False),
        ("red circle", "a red circle moving to the a red circle moving up", "'circle' is there twice", False),
        ("a dog", "a dog runs while a cat sleeps", "'a cat sleeps' is added", True),
        ("red circle right", "two red circles move right", "there are 2 of 'circle'", True),
    ],
)
def test_other_things_and_more_of_the_same_are_told(prompt, longer, said, joined):
    assert find_losses(prompt, longer) == ()
    assert find_additions(prompt, longer, joined=False)[0].startswith(said)
    assert bool(find_additions(prompt, longer, joined=True)) == joined


def test_prompts_are_shortened_as_users_write():
    generator, caption = np.random.default_rng(0), "a red circle moves right on a dark background"
    short = [shorten(caption, generator) for _ in range(200)]
    assert "red circle right" in short
    assert any("," in text for text in short)
    assert all(text and not find_losses(text, caption) for text in short)
    assert shorten("on the", generator) == "on the"
