from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from sora_jax.train.clock import StepClock, device_memory_gb, peak_memory_gb
from tests.fake_time import FakeTime


@pytest.fixture
def time():
    return FakeTime()


def make_clock(time, **options) -> StepClock:
    return StepClock(**({"now": time} | options))


def run_step(clock, time, *, wait, work, tokens, capacity=4000):
    with clock.waiting():
        time.passes(wait)
    time.passes(work)
    clock.step_done(tokens=tokens, capacity=capacity)


def test_the_first_step_is_compilation_and_in_no_rate_but_its_own(time):
    clock = make_clock(time)
    assert clock.rates() == {}
    assert clock.facts().keys() == {"peak_memory_gb"}
    run_step(clock, time, wait=5.0, work=30.0, tokens=1000)
    own = {"seconds_per_step": 35.0, "tokens_per_second": 1000 / 35, "data_wait": 5 / 35, "fill": 0.25}
    assert clock.rates() == pytest.approx(own)
    assert clock.rates() == {}
    run_step(clock, time, wait=0.5, work=1.5, tokens=1000)
    run_step(clock, time, wait=0.5, work=1.5, tokens=3000)
    expected = {"seconds_per_step": 2.0, "tokens_per_second": 1000.0, "data_wait": 0.25, "fill": 0.5}
    assert clock.rates() == pytest.approx(expected)
    facts = clock.facts()
    assert facts.pop("peak_memory_gb") > 0
    assert facts == pytest.approx({"compile_seconds": 30.0, **expected})


def test_rates_are_since_the_last_call_and_facts_of_all(time):
    clock = make_clock(time)
    run_step(clock, time, wait=0.0, work=9.0, tokens=1)
    run_step(clock, time, wait=0.0, work=1.0, tokens=10, capacity=10)
    first = clock.rates()
    run_step(clock, time, wait=3.0, work=0.0, tokens=30, capacity=60)
    second = clock.rates()
    assert first == {"seconds_per_step": 1.0, "tokens_per_second": 10.0, "data_wait": 0.0, "fill": 1.0}
    assert second == {"seconds_per_step": 3.0, "tokens_per_second": 10.0, "data_wait": 1.0, "fill": 0.5}
    assert clock.rates() == {}
    facts = clock.facts()
    assert (facts["seconds_per_step"], facts["data_wait"]) == (2.0, 0.75)
    assert facts["fill"] == pytest.approx(40 / 70)


def test_model_flops_become_a_rate_and_where_the_peak_is_known_a_share_of_it(time):
    known, unknown = (make_clock(time, peak_flops=peak) for peak in (400e12, None))
    for seconds in (9.0, 2.0, 2.0):
        time.passes(seconds)
        for clock in (known, unknown):
            clock.step_done(tokens=10, capacity=10, flops=300e12)
    rates = known.rates()
    assert (rates["flops_per_second"], rates["mfu"]) == (150e12, 0.375)
    assert known.facts()["mfu"] == 0.375
    rates = unknown.rates()
    assert rates["flops_per_second"] == 150e12
    assert "mfu" not in rates


def test_a_device_that_counts_its_memory_is_asked(monkeypatch):
    assert device_memory_gb() == {}  # a CPU does not say
    devices = [SimpleNamespace(memory_stats=lambda peak=peak: {"peak_bytes_in_use": peak}) for peak in (2e9, 7e9)]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert device_memory_gb() == {"device_memory_gb": 7.0}


def test_a_pause_is_in_no_rate(time):
    clock = make_clock(time)
    with clock.paused():
        time.passes(50.0)
    run_step(clock, time, wait=0.0, work=7.0, tokens=1)
    run_step(clock, time, wait=1.0, work=1.0, tokens=8)
    with clock.paused():
        time.passes(100.0)
    rates = clock.rates()
    assert (rates["seconds_per_step"], rates["tokens_per_second"], rates["data_wait"]) == (2.0, 4.0, 0.5)
    assert clock.facts()["compile_seconds"] == 7.0
    assert clock.facts()["seconds_per_step"] == 2.0


def test_waiting_that_ends_in_an_exception_still_counts(time):
    clock = make_clock(time)
    clock.step_done(tokens=1, capacity=1)

    def end_of_data():
        time.passes(2.0)
        raise StopIteration

    with pytest.raises(StopIteration), clock.waiting():
        end_of_data()
    time.passes(2.0)
    clock.step_done(tokens=1, capacity=1)
    assert clock.rates()["data_wait"] == 0.5


def test_the_peak_of_memory_is_in_gigabytes():
    assert 0.02 < peak_memory_gb() < 1000
    held = bytearray(b"x" * 400_000_000)
    assert peak_memory_gb() >= len(held) / 1e9


def test_each_step_is_told_with_its_number_and_facts(time):
    told = []
    clock = make_clock(time, start=6, show=lambda done, facts: told.append((done, facts)))
    for loss in (0.61234, float("nan")):
        time.passes(0.5)
        clock.step_done(loss=loss, tokens=4061, capacity=4128)
    clock.back_to(6)
    clock.step_done(loss=0.5, tokens=4061, capacity=4128)
    assert told == [
        (7, "loss 0.6123"),
        (8, "loss nan, 8.12k tokens/s, padding 1.6%"),
        (7, "loss 0.5, 16.2k tokens/s, padding 1.6%"),
    ]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="counted otherwise where there is no /proc")
def test_the_memory_of_whoever_started_a_process_is_not_its_own(python):
    ballast = np.ones(2**27)  # 1 GiB here
    done = python("-c", "from sora_jax.train.clock import peak_memory_gb; print(peak_memory_gb())", fresh=True)
    assert peak_memory_gb() > ballast.nbytes / 1e9
    assert 0.01 < float(done.stdout) < 0.8, done.stderr
