"""Contestants take turns, and the fewest seconds of each count."""

import itertools
import time

from sora_jax.benchmarks import turns


def test_times_are_taken_there_and_back_and_the_fewest_seconds_count(monkeypatch):
    seconds = itertools.accumulate(itertools.chain([0, 4, 0, 7, 0, 6, 0, 3, 0, 5, 0, 9], itertools.repeat(0)))
    calls = []
    contestants = {"ours": lambda: calls.append("ours"), "theirs": lambda: calls.append("theirs")}
    monkeypatch.setattr(turns.time, "perf_counter", lambda: float(next(seconds)))
    assert turns.fewest_seconds(contestants, rounds=3) == {"ours": 3.0, "theirs": 6.0}
    assert calls == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]


def test_the_process_clock_does_not_see_others():
    found = turns.fewest_seconds({"waits": lambda: time.sleep(0.2)}, rounds=1, clock="process")
    assert 0 <= found["waits"] < 0.1
    assert turns.fewest_seconds({"waits": lambda: time.sleep(0.2)}, rounds=1)["waits"] >= 0.2
