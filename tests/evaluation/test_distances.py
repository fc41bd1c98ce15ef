"""The Fréchet distance against its definition, against Gaussians on paper, and where samples are few."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from sora_jax.evaluation.distances import frechet_distance


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
