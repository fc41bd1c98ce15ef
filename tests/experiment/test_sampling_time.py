"""A round of canvases that takes long is told before it begins: by arithmetic, then by the round before it."""

import logging
from types import SimpleNamespace

import pytest

from configs import base
from sora_jax.experiment import sampling_time
from sora_jax.experiment.loading import solver_config
from sora_jax.experiment.sampling_time import RoundsTold
from sora_jax.experiment.settings import read_settings
from sora_jax.experiment.speed import Speed
from sora_jax.generate.canvas import Canvas


def canvas(tokens, **changes):
    return Canvas(prompt="a", grid=(tokens, 1, 1), fps=8.0, seed=0, **changes)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until a test moves it."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(sampling_time.time, "monotonic", lambda: now.seconds)
    return now


@pytest.fixture
def told(caplog, monkeypatch, clock):
    """Returns what is said before a round, on a machine whose products reach 10 GFLOP/s."""
    caplog.set_level(logging.INFO, logger="absl")
    settings, asked = read_settings(base.get_config()), []

    def measured(settings, devices, *, compiled):
        asked.append(devices)
        return Speed(platform="cpu", product=1e10 * devices, host=1.0, compiled=compiled)

    monkeypatch.setattr(sampling_time, "measure_speed", measured)
    rounds = RoundsTold(SimpleNamespace(settings=settings, mesh=None), solver_config(settings))

    def say(*canvases):
        caplog.clear()
        rounds([*canvases])
        return caplog.messages

    say.asked = asked
    return say


def test_what_is_made_at_once_is_not_told_and_measures_nothing(told):
    assert told(canvas(100)) == []
    assert told.asked == []


def test_a_long_round_is_told_before_it_begins(told):
    (said,) = told(canvas(16_256))
    assert said.startswith("sampling: round 1, windows: 1, tokens: 16,256; it takes about ")
    assert told.asked == [1]


def test_later_rounds_take_as_long_as_the_one_before_for_their_work(told, clock):
    told(canvas(16_256), canvas(16_256))
    clock.seconds += 600
    assert told(canvas(16_256)) == ["sampling: round 2, windows: 1, tokens: 16,256; it takes about 5 min"]
    clock.seconds += 30
    assert told(canvas(16_256)) == ["sampling: round 3, windows: 1, tokens: 16,256; it takes about 30 s"]
    clock.seconds += 29
    assert told(canvas(16_256)) == []
    assert told.asked == [1], "the machine is measured once"


def test_more_steps_of_the_solver_take_longer(told, clock):
    told(canvas(16_256, steps=10))
    clock.seconds += 60
    (said,) = told(canvas(16_256, steps=20))
    assert said.endswith("2 min")
