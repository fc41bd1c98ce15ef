"""What a device can do at most."""

import pytest

from sora_jax.benchmarks import ceilings


def test_ceilings_are_those_of_a_call_of_each(monkeypatch):
    def seconds(calls, rounds):
        for call in calls.values():
            call()
        return dict.fromkeys(calls, 10.0)

    monkeypatch.setattr(ceilings, "fewest_seconds", seconds)
    found = {figure.name: figure.value for figure in ceilings.ceiling_figures()}
    # Ten calls in ten seconds: 512^3 multiplications and additions, 16 x 512 x 512 numbers of float32 there and back.
    assert found == pytest.approx({"product_gflops": 2 * 512**3 / 1e9, "copy_gbytes": 2 * 4 * 16 * 512**2 / 1e9})
