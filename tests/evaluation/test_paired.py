import numpy as np
import pytest

from sora_jax.evaluation.paired import gap_of, mean_of


def test_a_mean_is_of_what_could_be_judged_with_its_interval():
    values = np.array([[1.0, 1.0], [0.0, np.nan], [1.0, 0.0], [np.nan, np.nan]])
    found = mean_of(values)
    assert found["value"] == pytest.approx(3 / 5)
    assert 0 <= found["low"] < 3 / 5 < found["high"] <= 1
    assert mean_of(np.full((3, 2), np.nan)) == {"value": None, "low": None, "high": None}


def test_an_interval_is_as_wide_as_prompts_differ_however_many_samples_they_have():
    # Samples of a prompt are alike: taken for independent, they would make the interval half as wide.
    means_P1 = np.random.default_rng(5).choice([0.0, 1.0], size=(100, 1))
    found = mean_of(np.repeat(means_P1, 4, axis=1))
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * means_P1.std() / 10, rel=0.1)


def test_a_gap_is_of_pairs_and_says_whether_it_is_chance():
    generator = np.random.default_rng(0)
    one = (generator.random((24, 3)) < 0.95).astype(float)
    other = (generator.random((24, 3)) < 0.4).astype(float)
    one[0, 0] = other[1, 1] = np.nan
    found = gap_of(one, other)
    assert found["pairs"] == 70
    assert found["gap"] == pytest.approx(np.nanmean(one - other))
    assert found["low"] < found["gap"] < found["high"]
    assert found["p"] < 0.001
    turned = gap_of(other, one)
    assert (turned["gap"], turned["p"]) == (pytest.approx(-found["gap"]), found["p"])


def test_runs_that_are_alike_have_no_gap():
    same = np.ones((8, 2))
    assert gap_of(same, same) == {"gap": 0.0, "low": 0.0, "high": 0.0, "p": 1.0, "pairs": 16}
    nothing = gap_of(same, np.full((8, 2), np.nan))
    assert nothing == {"gap": None, "low": None, "high": None, "p": None, "pairs": 0}


def test_chance_is_called_so_as_often_as_it_says():
    generator = np.random.default_rng(2)
    values = [gap_of(*(generator.random((2, 16, 2)) < 0.5).astype(float))["p"] for _ in range(40)]
    assert np.mean(np.array(values) < 0.1) < 0.25
