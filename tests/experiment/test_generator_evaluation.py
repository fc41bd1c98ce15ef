"""What of a run can be judged, before anything is made."""

import pytest

from sora_jax.core.errors import UserError
from sora_jax.experiment.generator_evaluation import clips_of_parts
from sora_jax.experiment.settings import read_settings
from tests import toy


@pytest.mark.parametrize(("part", "what"), [("refine", "refining"), ("expand", "expansion"), ("control", "control")])
def test_what_is_judged_on_videos_is_not_asked_of_a_run_of_images(part, what):
    config = toy.get_config()
    assert clips_of_parts(read_settings(config), part, 4, prompts=True)[part] == 4
    config.sampling.frames = 1
    with pytest.raises(UserError, match=f"{what} is judged on videos, and the samples of this run are images"):
        clips_of_parts(read_settings(config), part, 4, prompts=True)


@pytest.mark.parametrize("part", ["tasks", "refine"])
def test_one_clip_is_too_few_where_it_is_asked_for(part):
    config = toy.get_config()
    config.evaluation.clips = 1
    settings = read_settings(config)
    assert clips_of_parts(settings, part, None, prompts=True)[part] >= 2
    assert clips_of_parts(settings, part, 3, prompts=True)[part] == 3
    with pytest.raises(UserError, match=r"--clips=1 is too few to judge by: pass 2 or more"):
        clips_of_parts(settings, part, 1, prompts=True)
