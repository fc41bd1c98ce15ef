"""What is sampled as training proceeds: the configured prompts, or captions of prepared clips that fit."""

from types import SimpleNamespace

import numpy as np
import pytest

from sora_jax.core.errors import DataError
from sora_jax.experiment.loading import limits_of
from sora_jax.experiment.sample_prompts import Example, choose_examples, configured_examples, count_examples
from sora_jax.experiment.settings import read_settings

LONG = "word " * 30


class Clips:
    """Prepared clips: (frames, rows, columns) of each latent and its captions; one without captions is damaged."""

    def __init__(self, *clips):
        self.grid_N3 = np.array([grid for grid, _ in clips], np.int32)
        self.captions = [captions for _, captions in clips]

    def __len__(self):
        return len(self.captions)

    def raw(self, number):
        if not self.captions[number]:
            raise DataError("damaged")
        return SimpleNamespace(captions=self.captions[number])


@pytest.fixture
def choose(toy_config):
    """Returns what is chosen of some clips, and how many the estimate takes it for, for configured prompts."""

    def chosen(prompts, *clips, frames=5):
        config = toy_config()
        config.sampling.prompts = prompts
        settings = read_settings(config)
        assert settings.stride[1:] == (4, 4)
        found = choose_examples(settings, lambda: Clips(*clips), limits_of(settings), frames=frames)
        return found, count_examples(settings)

    return chosen


def test_configured_prompts_are_taken_and_no_clip_is_opened(toy_config):
    config = toy_config()
    config.sampling.prompts, config.sampling.size = ("a red circle", "a blue square"), (16, 24)
    settings = read_settings(config)
    found = choose_examples(settings, lambda: pytest.fail("opened"), limits_of(settings), frames=5)
    assert found == [Example("a red circle", (16, 24)), Example("a blue square", (16, 24))]
    assert found == configured_examples(settings)
    assert count_examples(settings) == 2


def test_captions_are_taken_from_the_first_clip_to_the_last_at_the_sizes_of_their_clips(choose):
    found, count = choose(None, *(((2, 4, 4 + number), (f"clip {number}", "other")) for number in range(10)))
    assert count == 4
    assert found == [Example(f"clip {number}", (16, 16 + 4 * number)) for number in (0, 3, 6, 9)]


def test_of_many_clips_a_few_are_looked_at_and_the_last_is_one_of_them(choose):
    found, _ = choose(None, *(((2, 4, 4), (f"clip {number}",)) for number in range(1000)))
    assert [example.prompt for example in found][::3] == ["clip 0", "clip 999"]


def test_captions_that_training_cuts_that_are_empty_or_damaged_or_there_twice_are_not_taken(choose):
    clips = [((2, 4, 4), captions) for captions in ((LONG,), ("short", LONG), ("",), (), ("short",))]
    assert choose(None, *clips)[0] == [Example("short", (16, 16))]
    assert choose(None, clips[0])[0] == []


def test_videos_are_made_of_captions_of_videos_where_there_are_any(choose):
    still, moving = ((1, 4, 4), ("an image",)), ((2, 4, 8), ("a video",))
    assert choose(None, still, moving)[0] == [Example("a video", (16, 32))]
    assert choose(None, still)[0] == [Example("an image", (16, 16))]
    assert [one.prompt for one in choose(None, still, moving, frames=1)[0]] == ["an image", "a video"]
