"""The benchmark of reworded prompts asks for the same things in words that no caption has."""

import json
import re

from sora_jax.benchmarks import reworded
from sora_jax.data.sources import shapes_wordings
from sora_jax.data.sources.shapes_prompts import MOST_PROMPTS, heldout_prompts
from sora_jax.data.sources.shapes_world import ShapesWorld
from sora_jax.experiment.settings import read_settings
from tests import toy

# Of a prompt that say nothing of what is asked for.
SILENT = {"a", "to", "the"}


def words_of(text):
    return set(re.findall(r"\w+", text))


def test_no_word_that_says_something_is_a_captions():
    settings = read_settings(toy.get_config())
    world = ShapesWorld(settings.shapes.world(seed=0, split="train", num_clips=300))
    known = set().union(*(words_of(caption) for i in range(len(world)) for caption in world[i].captions))
    known |= words_of(str(shapes_wordings.TABLES))
    cases = heldout_prompts(MOST_PROMPTS)
    prompts = [reworded.in_other_words(case, turn) for turn in range(2) for case in cases]
    said = set().union(*(words_of(one.prompt) for one in prompts))
    assert said & known - SILENT == {"left", "right"}  # half of the prompts of two directions; their verbs are new
    assert len({one.prompt for one in prompts}) == 2 * len(cases)
    for case, one in zip(cases * 2, prompts, strict=True):
        assert (one.objects, one.background) == (case.objects, case.background)


def test_both_ways_of_asking_are_scored_as_a_user_runs_it(python, toy_workdir, tmp_path):
    path = tmp_path / "reworded.json"
    done = python("-m", "sora_jax.benchmarks.reworded", f"--workdir={toy_workdir}", "--prompts=2", f"--json={path}")
    assert done.returncode == 0, done.stderr
    names = {f"toy_{words}_{score}" for words in ("captions", "reworded") for score in ("colour", "motion", "shape")}
    assert set(json.loads(path.read_text())) == names
    twice = python("-m", "sora_jax.benchmarks.reworded", f"--workdir={toy_workdir}", f"--workdir={toy_workdir}")
    assert twice.returncode == 2
    assert "are not distinct" in twice.stderr
