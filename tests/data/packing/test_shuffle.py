"""A shuffle that is never written down is still a shuffle."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_jax.data.packing.shuffle import shuffle


def whole(count, *, seed=0, name="x", turn=0):
    return shuffle(np.arange(count), count, seed=seed, name=name, turn=turn)


@given(st.integers(1, 3000), st.integers(0, 5))
def test_every_number_comes_once(count, turn):
    assert sorted(whole(count, turn=turn).tolist()) == list(range(count))


@given(st.integers(1, 10**12), st.data())
def test_a_part_is_the_part_of_the_whole(count, data):
    positions = np.array(data.draw(st.lists(st.integers(0, count - 1), max_size=20)), np.int64)
    together = shuffle(positions, count, seed=1, name="x", turn=0)
    assert np.all((together >= 0) & (together < count))
    for position, one in zip(positions, together, strict=True):
        assert shuffle(position[None], count, seed=1, name="x", turn=0) == one
    assert len(set(together.tolist())) == len(set(positions.tolist()))


@pytest.mark.parametrize("change", [{"seed": 1}, {"name": "y"}, {"turn": 1}])
def test_seed_name_and_turn_each_give_another_order(change):
    same = np.mean(whole(1000) == whole(1000, **change))
    assert same < 0.01


@pytest.mark.parametrize("count", [5, 24])
def test_each_number_is_as_likely_in_each_place(count):
    turns = 3000
    orders = np.stack([whole(count, turn=turn) for turn in range(turns)])
    counts = np.stack([(orders == number).sum(axis=0) for number in range(count)])
    expected = turns / count
    # The sum of squares over (count - 1)^2 degrees of freedom; five deviations off is no accident.
    statistic, freedom = np.sum((counts - expected) ** 2 / expected), (count - 1) ** 2
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom)


def test_neighbours_do_not_stay_neighbours():
    order = whole(10_000)
    steps = np.abs(np.diff(order))
    assert np.mean(steps) == pytest.approx(10_000 / 3, rel=0.05)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
