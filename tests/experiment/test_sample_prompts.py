"""What is sampled as training proceeds: the configured prompts, or captions of the run that fit."""

from types import SimpleNamespace

import pytest

from sora_jax.experiment.loading import limits_of
from sora_jax.experiment.sample_prompts import choose_prompts, count_prompts
from sora_jax.experiment.settings import read_settings


@pytest.fixture
def choose(toy_config):
    """Returns what is chosen of some captions, and how many the estimate takes it for, for configured prompts."""

    def chosen(prompts, *captions):
        config = toy_config()
        config.sampling.prompts = prompts
        settings = read_settings(config)
        words = SimpleNamespace(captions={text: set() for text in captions})
        return choose_prompts(settings, words, limits_of(settings)), count_prompts(settings)

    return chosen


def test_configured_prompts_are_taken_whatever_the_captions_are(choose):
    assert choose(("a red circle", "a blue square"), "other") == (("a red circle", "a blue square"), 2)
    assert choose((), "other") == ((), 0)


def test_captions_are_taken_from_the_first_clip_to_the_last(choose):
    captions = [f"clip {number}" for number in range(10)]
    assert choose(None, *captions) == (("clip 0", "clip 3", "clip 6", "clip 9"), 4)


def test_captions_that_training_cuts_are_not_taken(choose):
    assert choose(None, "word " * 30, "short", "word " * 30)[0] == ("short",)


@pytest.mark.parametrize("captions", [(), ("word " * 30,)])
def test_without_captions_nothing_is_sampled(choose, captions):
    assert choose(None, *captions)[0] == ()
