"""A longer text is refused where it loses or contradicts what a prompt says, and only there."""

import numpy as np
import pytest

from sora_jax.data.prompt_guard import find_losses, shorten


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


def test_prompts_are_shortened_as_users_write():
    generator, caption = np.random.default_rng(0), "a red circle moves right on a dark background"
    short = [shorten(caption, generator) for _ in range(200)]
    assert "red circle right" in short
    assert any("," in text for text in short)
    assert all(text and not find_losses(text, caption) for text in short)
    assert shorten("on the", generator) == "on the"
