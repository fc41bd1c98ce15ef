"""The benchmark of attention: its contestants compute the same, and its FLOPs are those of the segments."""

import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.benchmarks import attention
from sora_jax.core.errors import UserError

SHAPE = (1, 40, 2, 8)


def test_a_row_is_cut_into_uneven_parts():
    lengths = attention.cut(2_048, 16)
    assert (len(lengths), sum(lengths), min(lengths) >= 1) == (16, 2_048, True)
    assert len(set(lengths)) > 8
    assert attention.cut(2_048, 16) == lengths
    assert attention.cut(7, 1) == [7]
    assert attention.cut(3, 3) == [1, 1, 1]
    with pytest.raises(UserError, match="3 tokens cannot be cut into 4 segments: --segments=3 or fewer"):
        attention.cut(3, 4)


def test_every_way_gives_the_same():
    lengths = attention.cut(SHAPE[1], 3)
    generator = np.random.default_rng(0)
    arrays = [jnp.asarray(generator.normal(size=SHAPE), jnp.float32) for _ in range(3)]
    ways = attention.ours(SHAPE, lengths)
    expected = np.asarray(ways.pop("plain")(*arrays))
    assert set(ways) == {"dense", "blocked"}
    for name, way in ways.items():
        np.testing.assert_allclose(np.asarray(way(*arrays)), expected, atol=1e-5, err_msg=name)


def test_flops_are_those_of_pairs_within_segments(monkeypatch):
    def two_seconds(calls, rounds, clock):
        assert (rounds, clock) == (1, "wall")
        return dict.fromkeys(calls, 2.0)

    monkeypatch.setattr(attention, "fewest_seconds", two_seconds)
    figures = attention.attention_figures(SHAPE, [10, 30], rounds=1, with_torch=False)
    found = {figure.name: figure.value for figure in figures}
    forward = 4 * 2 * 8 * (10**2 + 30**2)
    assert found["plain_forward_2_ms"] == found["blocked_both_2_ms"] == 2_000
    assert found["dense_forward_2_gflops"] == pytest.approx(forward / 2 / 1e9)
    assert found["plain_both_2_gflops"] == pytest.approx(3 * forward / 2 / 1e9)


def test_scores_that_would_not_fit_are_not_held():
    assert set(attention.ours((1, 65_536, 2, 8), [65_536])) == {"blocked"}


@pytest.mark.parity
def test_torch_runs_segment_by_segment():
    figures = attention.attention_figures(SHAPE, [10, 30], rounds=1, with_torch=True)
    found = {figure.name: figure.value for figure in figures}
    assert {"torch_forward_2_ms", "torch_both_2_ms", "plain_both_2_gflops"} <= found.keys()
    assert all(value > 0 for value in found.values())
