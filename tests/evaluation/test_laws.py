"""A law is found again from losses that follow it, with its floor, whatever single runs do."""

import numpy as np
import pytest

from sora_jax.evaluation.laws import fit_law

SIZES_2R = np.array([(n, d) for n in (1e5, 3e5, 1e6) for d in (1e6, 4e6, 1.6e7)]).T


def by_compute(flops, *, floor=0.3, exponent=0.4):
    return floor + 0.1 * (np.asarray(flops) / 1e12) ** -exponent


def by_size(sizes_2R):
    return 0.25 + 0.04 * (sizes_2R[0] / 3e5) ** -0.35 + 0.06 * (sizes_2R[1] / 4e6) ** -0.5


def test_a_law_of_compute_is_found_again_and_holds_beyond_what_it_was_fitted_to():
    flops_R = 1e12 * np.array([1.0, 2, 4, 8])
    law = fit_law(by_compute(flops_R), flops_R[None])
    assert law.floor == pytest.approx(0.3, abs=1e-3)
    assert law.exponents[0] == pytest.approx(0.4, rel=0.01)
    np.testing.assert_allclose(law.loss(64e12), by_compute(64e12), rtol=1e-3)


def test_a_law_of_two_sizes_is_found_again():
    law = fit_law(by_size(SIZES_2R), SIZES_2R)
    assert (law.floor, *law.exponents) == pytest.approx((0.25, 0.35, 0.5), rel=0.02)
    beyond_2R = np.array([[3e6], [6e7]])
    np.testing.assert_allclose(law.loss(*beyond_2R), by_size(beyond_2R), rtol=2e-3)


def test_a_run_that_went_wrong_counts_little():
    flops_R = np.repeat(1e12 * np.array([1.0, 2, 4, 8]), 3)
    loss_R = by_compute(flops_R)
    loss_R[4] *= 1.5
    law = fit_law(loss_R, flops_R[None])
    np.testing.assert_allclose(law.loss(flops_R), by_compute(flops_R), rtol=2e-3)


def test_neither_floor_nor_scales_are_negative():
    flops_R = 1e12 * np.array([1.0, 2, 4, 8])
    steeper = fit_law(1.0 - 0.1 * np.log2(flops_R / 1e12), flops_R[None])
    rising = fit_law(by_compute(flops_R)[::-1], flops_R[None])
    assert steeper.floor >= 0
    assert min(steeper.scales) > 0
    assert rising.scales == (0.0,)
    assert rising.floor == pytest.approx(float(np.median(by_compute(flops_R))), rel=0.1)


def test_a_law_near_a_known_one_is_the_same():
    noisy_R = by_size(SIZES_2R) * np.exp(np.random.default_rng(0).normal(scale=1e-3, size=SIZES_2R.shape[1]))
    law = fit_law(noisy_R, SIZES_2R)
    again = fit_law(noisy_R, SIZES_2R, near=law)
    np.testing.assert_allclose(again.loss(*SIZES_2R), law.loss(*SIZES_2R), rtol=1e-3)


@pytest.mark.parametrize("sizes_VR", [np.array([[1.0, 1, 2, 2]]), SIZES_2R[:, :4]])
def test_too_few_sizes_make_no_law(sizes_VR):
    with pytest.raises(ValueError, match="different sizes: a law of"):
        fit_law(np.ones(sizes_VR.shape[1]), sizes_VR)
