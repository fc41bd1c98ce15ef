"""The benchmark of captioning compares two ways to the same captions."""

import time

import pytest

from sora_jax.benchmarks.captioning import RereadingWriter, Subject, captioning_figures
from tests.generate.test_captioning import CLIPS, describer
from tests.models.test_captioner import CONFIG, params_of


@pytest.mark.slow  # compiles two ways to decode
@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_captions_are_the_same_without_kept_keys(method):
    ways = {"kept": describer(method), "plain": describer(method, RereadingWriter)}
    subject = Subject(**ways, params=params_of(CONFIG), clips=CLIPS, weights="random weights")
    found = captioning_figures(subject, rounds=1, clock=time.process_time)
    figures = {figure.name: figure.value for figure in found}
    assert figures["alike"] == 1
    assert figures["clips_per_second"] > 0
    assert figures["cached_over_plain"] > 0
