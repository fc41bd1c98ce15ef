"""The benchmark of judging measures what it says."""

import pytest

from sora_jax.benchmarks.judging import judging_figures


@pytest.mark.slow
def test_a_blurred_set_is_further_away():
    found = {figure.name: figure.value for figure in judging_figures(16, frames=3, side=16)}
    assert found["seconds"] > 0
    assert found["fvd_random_mirrored"] < found["fvd_random_blurred"]
