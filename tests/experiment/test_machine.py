"""A small machine gets smaller caches and fewer readers, is told so in a sentence, and runs."""

import dataclasses

import pytest

from configs import base
from sora_jax.experiment import machine
from sora_jax.experiment.machine import fit_to_machine, largest_cache, needed_memory
from sora_jax.experiment.settings import read_settings


@pytest.fixture
def settings(toy_config):
    config = toy_config()
    config.data.readers = 4
    config.stages.autoencoder.crops.cache_mb = 512
    return read_settings(config)


@pytest.fixture
def on(monkeypatch):
    """Returns a function that makes this a machine of so many cores, with so many bytes of memory free."""

    def become(*, cores=2, free=64e9):
        monkeypatch.setattr(machine, "available_cores", lambda: cores)
        monkeypatch.setattr(machine, "available_memory", lambda: free)

    return become


def test_a_machine_with_room_changes_and_says_nothing(settings, on, caplog):
    on()
    assert fit_to_machine(settings) == settings
    on(free=None)
    assert fit_to_machine(settings) == settings
    assert caplog.messages == []


def test_four_gigabytes_are_enough_for_the_base_run(on, caplog):
    settings = read_settings(base.get_config())
    on(free=3.2e9)
    assert fit_to_machine(settings) == settings
    assert caplog.messages == []


def test_one_core_has_one_reader(settings, on, caplog):
    on(cores=1)
    fitted = fit_to_machine(settings)
    assert fitted.data == dataclasses.replace(settings.data, readers=1)
    assert caplog.messages == ["there is one core: clips are decoded by one reader, not data.readers 4"]
    caplog.clear()
    assert fit_to_machine(fitted) == fitted
    assert caplog.messages == []


def test_where_memory_is_short_caches_take_what_is_left(settings, on, caplog):
    least = needed_memory(settings) - 512e6 - 3 * 0.2e9
    on(free=least + 200e6)
    fitted = fit_to_machine(settings)
    assert (fitted.data.readers, largest_cache(fitted)) == (1, pytest.approx(200, abs=1))
    assert needed_memory(fitted) <= least + 200e6 < needed_memory(settings)
    (said,) = caplog.messages
    assert said.startswith("the run takes about 3.0 GB of memory and 2.1 GB are free: it goes on with one reader and")
    assert said.endswith(" MB")


def test_where_even_that_is_too_much_it_says_so_and_goes_on(settings, on, caplog):
    on(free=0.5e9)
    fitted = fit_to_machine(settings)
    assert (fitted.data.readers, largest_cache(fitted)) == (1, 32)
    (said,) = caplog.messages
    assert said.endswith("which may still be too much: end other programs, or use a larger machine")


def test_nothing_that_was_smaller_already_grows(settings, on):
    stage = settings.stages["autoencoder"]
    small = dataclasses.replace(stage, crops=dataclasses.replace(stage.crops, cache_mb=8))
    settings = dataclasses.replace(settings, stages={**settings.stages, "autoencoder": small})
    on(free=0.5e9)
    assert largest_cache(fit_to_machine(settings)) == 8
