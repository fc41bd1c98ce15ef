"""Passes: what each makes, and what cannot be read or divided."""

import pytest

from sora_jax.core.errors import UserError
from sora_jax.generate.cascade import Pass, check_refinements, plan_passes, read_refinements


def test_without_refinements_there_are_no_passes():
    assert plan_passes((), size=(32, 40), frames=9, fps=8.0) == ()


def test_passes_go_from_small_and_slow_to_what_is_wanted():
    passes = plan_passes((("space", 2), ("time", 4)), size=(32, 40), frames=9, fps=8.0)
    assert passes == (
        Pass(size=(16, 20), frames=3, fps=2.0),
        Pass(size=(32, 40), frames=3, fps=2.0),
        Pass(size=(32, 40), frames=9, fps=8.0),
    )


@pytest.mark.parametrize("frames", [1, 2, 7, 13, 14])
def test_the_last_pass_has_all_frames_and_few_more(frames):
    small, large = plan_passes((("time", 4),), size=(8, 8), frames=frames, fps=8.0)
    assert frames <= large.frames < frames + 4
    assert large.frames == 1 + 4 * (small.frames - 1)


@pytest.mark.parametrize(("text", "steps"), [("none", ()), ("space:2, time:4", (("space", 2), ("time", 4)))])
def test_refinements_are_read(text, steps):
    assert read_refinements(text) == steps


@pytest.mark.parametrize("text", ["", "space", "space:1", "colour:2", "space:2;time:2", "space:2.5"])
def test_what_is_no_refinement_is_refused(text):
    with pytest.raises(UserError, match="refine"):
        read_refinements(text)


def test_what_a_config_may_not_say_is_refused():
    with pytest.raises(UserError, match="refine has \\('space', 1\\): give 'space' or 'time'"):
        check_refinements((("time", 2), ("space", 1)))


def test_a_side_must_come_out_even():
    with pytest.raises(UserError, match="32x41 px are not 2 times a size in whole px"):
        plan_passes((("space", 2),), size=(32, 41), frames=9, fps=8.0)
