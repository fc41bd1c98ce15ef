"""Distances against their definitions and against Gaussians on paper; where samples are few, and as they grow."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from sora_jax.evaluation.distances import (
    LIMIT_PARTS,
    frechet_distance,
    frechet_estimate,
    frechet_limit,
    kernel_distance,
)


def by_definition(first, second):
    """With a root of a matrix, where covariances have full rank."""
    means, covariances = zip(*((x.mean(0), np.atleast_2d(np.cov(x.T))) for x in (first, second)), strict=True)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    return np.sum((means[0] - means[1]) ** 2) + np.trace(covariances[0] + covariances[1] - 2 * root.real)


def samples(seed, count, width):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) + rng.normal(size=width)


@given(st.integers(0, 10**6), st.integers(1, 6))
def test_it_is_the_definition_where_covariances_have_full_rank(seed, width):
    first, second = samples(seed, 40, width), samples(seed + 1, 50, width)
    assert frechet_distance(first, second) == pytest.approx(by_definition(first, second).item(), rel=1e-6)


def test_gaussians_on_paper():
    """Samples of exactly these moments: of diagonal covariances the distance is that of means and of deviations."""
    corners = np.array([[a, b] for a in (-1, 1) for b in (-1, 1)]) * np.sqrt(3 / 4)  # unit covariance
    first, second = corners * (1, 2), corners * (3, 5) + (10, 0)
    assert frechet_distance(first, second) == pytest.approx(100 + (3 - 1) ** 2 + (5 - 2) ** 2)
    turned = np.array([[0.6, -0.8], [0.8, 0.6]])
    assert frechet_distance(first @ turned, second @ turned) == pytest.approx(113)


@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(2, 9))
def test_few_samples_of_many_features_are_no_trouble(seed, few, others):
    """Features that never vary add nothing, so the distance is that in the few dimensions that do."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(300, 3)))[0]
    first, second = rng.normal(size=(few, 3)), rng.normal(size=(others, 3)) + 2
    found = frechet_distance(first @ basis.T, second @ basis.T)
    assert found == pytest.approx(frechet_distance(first, second), rel=1e-9)


def test_equal_sets_in_any_order_are_at_no_distance():
    first = samples(0, 5, 400).astype(np.float32)
    assert frechet_distance(first, first[::-1]) == pytest.approx(0, abs=1e-8)
    assert frechet_distance(first, first + 1) == pytest.approx(400)


@pytest.mark.parametrize(("count", "width", "shift", "scale"), [(300, 4, 0.5, 1.5), (40, 60, 0.3, 1.4), (40, 60, 0, 1)])
def test_the_error_is_how_much_the_distance_varies_over_drawings(count, width, shift, scale):
    turn = np.random.default_rng(0).normal(size=(width, width)) / np.sqrt(width)
    values, errors = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        sets = rng.normal(size=(count, width)) @ turn, rng.normal(size=(count, width)) @ turn * scale + shift
        found = frechet_estimate(*sets)
        values.append(found.value)
        errors.append(found.stderr)
    assert values[-1] == pytest.approx(frechet_distance(*sets), rel=1e-9)
    assert frechet_estimate(*sets[::-1]) == pytest.approx(found, rel=1e-9)
    # Of sixty drawings the deviation is known to a tenth; of few samples the estimate is too large, never too small.
    assert 0.8 < np.mean(errors) / np.std(values) < (1.3 if count > width else 2)


def kernel_by_definition(first, second):
    """Sums over all pairs of different samples, one by one."""

    def mean(one, other, same):
        pairs = [(a, b) for i, a in enumerate(one) for j, b in enumerate(other) if not (same and i == j)]
        return np.mean([(a @ b / len(a) + 1) ** 3 for a, b in pairs])

    return mean(first, first, True) + mean(second, second, True) - 2 * mean(first, second, False)


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(3, 7))
def test_the_kernel_distance_and_its_error_are_those_of_sums_over_pairs(seed, width, count):
    first, second = samples(seed, count, width), samples(seed + 1, 6, width)
    found = kernel_distance(first, second)
    scale = 1 + np.abs(np.concatenate([first, second])).max() ** 6
    assert found.value == pytest.approx(kernel_by_definition(first, second), rel=1e-6, abs=1e-9 * scale)
    variance = 0
    for number, x in enumerate((first, second)):
        left = [kernel_by_definition(*(np.delete(x, i, 0), (second, first)[number])) for i in range(len(x))]
        variance += (len(x) - 1) * np.var(left)
    assert found.stderr == pytest.approx(np.sqrt(variance), rel=1e-5, abs=1e-9 * scale)


def test_the_kernel_distance_of_blocks_is_that_of_the_whole(monkeypatch):
    first, second = samples(0, 40, 3), samples(1, 30, 3)
    whole = kernel_distance(first, second)
    monkeypatch.setattr("sora_jax.evaluation.distances._ROWS_AT_ONCE", 7)
    assert kernel_distance(first, second) == pytest.approx(whole)


def test_two_halves_of_one_set_lie_within_three_errors_of_each_other_and_other_sets_do_not():
    """In 99 of 100 seeds; a distance without bias is as often below 0 as its law says, and never at it."""
    values, inside = [], 0
    for seed in range(100):
        x = np.random.default_rng(seed).normal(size=(120, 8))
        found = kernel_distance(x[:60], x[60:])
        values.append(found.value)
        inside += abs(found.value) <= 3 * found.stderr
        moved = kernel_distance(x[:60], x[60:] + 1)
        assert moved.value > 3 * moved.stderr
    assert inside >= 99
    assert abs(np.mean(values)) < 3 * np.std(values) / 10
    assert min(values) < 0 < max(values)


def test_the_limit_has_less_of_the_bias_of_few_samples():
    """Of equal distributions the limit is 0, of others it is the distance on paper: 8 x 1 of means, 8 x 1 of widths."""
    width = 8
    for shift, scale, truth in ((0, 1, 0.0), (1, 2, 16.0)):
        plain, limits = [], []
        for seed in range(8):
            rng = np.random.default_rng(seed)
            sets = rng.normal(size=(400, width)), rng.normal(size=(400, width)) * scale + shift
            plain.append(frechet_distance(*sets))
            limits.append(frechet_limit(*sets).value)
        bias = np.mean(plain) - truth
        assert bias > 0.08
        assert abs(np.mean(limits) - truth) < bias / 2 + np.std(limits) / np.sqrt(8)


def test_the_limit_of_fewer_samples_than_features_is_refused():
    with pytest.raises(AssertionError):
        frechet_limit(np.zeros((LIMIT_PARTS * 8, 8)), np.zeros((99, 8)))
