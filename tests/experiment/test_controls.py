"""Which clips beside a run's model takes, and what of them makes it a refiner."""

import dataclasses
from typing import Any

import pytest
from ml_collections import ConfigDict

from sora_jax.core.errors import UserError
from sora_jax.experiment.controls import controls_of, refiner_of
from sora_jax.experiment.loading import limits_of
from sora_jax.experiment.settings import read_settings
from sora_jax.train.changes import completed
from tests import toy


def settings_of(*kinds, share="low", **low):
    c = toy.get_config()
    with c.unlocked():
        c.update(context={"kinds": kinds, "low": low})
        if kinds:
            c.update(stages={"videos": {"context": ConfigDict({"none": 0.5, share: 0.5})}})
    return read_settings(c)


def test_a_run_that_trains_with_low_clips_is_a_refiner_of_what_they_were():
    settings = settings_of("low", "grey", space=(2, 1), time=(4, 1, 4))
    refiner = refiner_of(settings)
    assert refiner is not None
    assert (refiner.space, refiner.time) == ((1, 2), (1, 4))
    assert refiner.config == settings.sampling.refiner
    assert limits_of(settings).strength("upscale") == limits_of(settings).strength("interpolate") == 0.15
    assert "1/2 smaller" in settings_of("low", space=(1, 2)).context.controls()["low"].recipe


def test_a_run_that_prepares_them_and_trains_without_is_none():
    settings = settings_of("low", "grey", share="grey")
    assert list(controls_of(settings)) == ["grey"]
    assert refiner_of(settings) is None
    assert limits_of(settings).strength("upscale") == 0.4


def test_low_clips_have_a_highest_level_of_their_own():
    context = settings_of("low", max_level=0.5).context
    assert sorted({*context.max_levels()}) == [0.05, 0.5]
    assert context.max_levels()[2] == 0.5


@pytest.mark.parametrize(
    ("low", "said"),
    [
        ({"space": (2, 3)}, r"low.space \(2, 3\) must all divide the largest"),
        ({"max_level": 1.0}, r"low.max_level 1 is outside \[0, 1\)"),
    ],
)
def test_what_cannot_be_is_refused(low, said):
    with pytest.raises(UserError, match=said):
        settings_of("low", **low)


def test_a_config_of_before_is_completed():
    tree = toy.get_config().to_dict()
    del tree["context"]["low"], tree["sampling"]["refiner"]
    read = read_settings(completed(tree))
    assert dataclasses.asdict(read) == dataclasses.asdict(read_settings(toy.get_config()))


def test_rates_are_those_that_the_config_says_of_all_clips():
    c: Any = toy.get_config()
    c.shapes.fps = (8.0, 6.0)
    assert limits_of(read_settings(c)).rates == (6.0, 8.0)
    c.data.source, c.data.path = "folder", "clips"
    assert limits_of(read_settings(c)).rates is None, "clips keep their own"
    c.data.fps = 12.0
    assert limits_of(read_settings(c)).rates == (0.0, 12.0)
