"""The benchmark of the autoencoder measures what it says, at sizes that take seconds."""

import itertools

import numpy as np
import pytest

from sora_jax.benchmarks import autoencoder, peers
from sora_jax.core.errors import UserError


def values(figures):
    return {figure.name: figure.value for figure in figures}


def test_memory_is_compared_with_the_shortest_clip(monkeypatch):
    class Done:
        returncode = 0

        def __init__(self, command):
            frames = int(command[-1].split("=")[1])
            self.stdout = f"noise\n{1 + frames / 100}\n"

    monkeypatch.setattr(autoencoder.subprocess, "run", lambda command, **_: Done(command))
    found = values(autoencoder.memory_figures((17, 117)))
    assert found == pytest.approx({"memory_gb_17": 1.17, "memory_gb_117": 2.17, "memory_ratio_117": 2.17 / 1.17})


def test_a_clip_is_streamed_both_ways_and_weighed(monkeypatch):
    monkeypatch.setattr(autoencoder, "_MEMORY_SIDE", 16)
    monkeypatch.setattr(autoencoder, "_MEMORY_WIDTH", 2)
    assert 0.05 < autoencoder.stream_and_weigh(9) < 50


def test_times_are_taken_in_turns_and_the_fewest_seconds_count(monkeypatch):
    clock = itertools.accumulate([0, 9, 0, 9, 0, 2, 0, 6, 0, 1, 0, 7, 0, 3, 0, 5])
    monkeypatch.setattr(autoencoder.time, "perf_counter", lambda: float(next(clock)))
    calls = []
    best = autoencoder.in_turns(lambda: calls.append("ours"), lambda: calls.append("theirs"))
    assert best == (1.0, 5.0)
    assert calls == ["ours", "theirs"] * 4


def test_a_peer_that_is_not_installed_is_said():
    with pytest.raises(UserError, match=r"speed is compared with no_such_peer, which is not here: pip install -e"):
        peers.peer("no_such_peer")


@pytest.mark.parity
def test_the_peer_has_our_numbers():
    found = values(autoencoder.speed_figures(8, frames=5, side=32))
    assert found["difference_8"] < 1e-4
    assert all(value > 0 for value in found.values())


def test_the_public_shape_has_the_public_strides():
    config = autoencoder.public_shape(8)
    assert (config.time_stride, config.space_stride, config.channels) == (4, 8, 16)
    assert np.isclose(config.width, 8)
