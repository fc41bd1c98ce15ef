"""The benchmark of judging measures what it says."""

import pytest

from sora_jax.benchmarks.judging import judging_figures


@pytest.mark.slow
def test_a_blurred_set_is_further_away():
    """Of fewer or smaller clips, what two sets of the same scenes differ by is more than what a small blur adds."""
    found = {figure.name: figure.value for figure in judging_figures(64, frames=5, side=32)}
    assert found["seconds"] > 0
    assert found["fvd_random_mirrored"] < found["fvd_random_blurred"]
    assert found["fid_random_mirrored"] < found["fid_random_blurred"]
