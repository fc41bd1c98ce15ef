"""What runs say together: the best width, the law of what was fitted, what it predicted, what would falsify it."""

import dataclasses

import numpy as np
import pytest

from sora_jax.evaluation import budgets
from sora_jax.evaluation.budgets import BudgetPoint, band, best_size, fit_of_size, hull, study_of

PARAMETERS = {48: 1.5e5, 64: 2.6e5, 96: 6e5, 128: 1e6}
UNIT = 2e12
NOISE = 0.002  # of a seed, deviation of the logarithm of its loss


@pytest.fixture(autouse=True, scope="module")
def _few_draws():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budgets, "_DRAWS", 16)
        yield


@pytest.fixture(scope="module")
def study():
    return study_of(ladder(), held_back=16)


def law(parameters, tokens):
    return 0.25 + 0.03 * (parameters / 3e5) ** -0.5 + 0.04 * (tokens / 2e6) ** -0.5


def ladder(*, widths=tuple(PARAMETERS), compute=(1, 2, 4, 8, 16), seeds=3, noise=NOISE, wrong=1.0):
    """Returns cells of that law; at the largest budget the losses are `wrong` times as large."""
    rng, cells = np.random.default_rng(0), []
    for budget in compute:
        for width in widths:
            parameters, flops = PARAMETERS[width], UNIT * budget
            tokens = flops / (6 * parameters)
            losses = law(parameters, tokens) * np.exp(noise * rng.normal(size=seeds))
            losses *= wrong if budget == max(compute) else 1.0
            shape = {"width": width, "compute": budget, "parameters": parameters, "tokens": tokens, "flops": flops}
            cells.append(BudgetPoint(**shape, losses=tuple(losses)))
    return cells


def test_the_best_width_grows_with_the_budget():
    best = hull(ladder(noise=0.0))
    assert [cell.compute for cell in best] == [1, 2, 4, 8, 16]
    assert [cell.width for cell in best] == sorted(cell.width for cell in best)
    assert len({cell.width for cell in best}) > 1
    for cell in best:
        assert cell.loss == min(one.loss for one in ladder(noise=0.0) if one.compute == cell.compute)


def test_what_was_held_back_is_predicted_within_its_band(study):
    assert [(one["law"], one.get("width")) for one in study["predicted"]] == [
        ("size", None),
        ("compute", None),
        *(("size", width) for width in PARAMETERS),
    ]
    assert all(said["low"] < said["loss"] < said["high"] for said in study["predicted"])
    for said, came in zip(study["predicted"], study["measured"], strict=True):
        assert came["inside"] == (said["low"] <= came["loss"] <= said["high"])
    by_size, by_compute, *widths = study["measured"]
    assert max(one["error"] for one in (by_size, *widths)) < 0.03
    assert by_compute["error"] < 0.1
    assert (by_size["seeds"], study["monotone"]) == (3, True)
    assert study["law"]["compute"]["runs"] == study["law"]["size"]["runs"] == 48, "the largest budget is not among them"


def test_what_was_held_back_changes_no_prediction(study):
    wrong = study_of(ladder(wrong=1.2), held_back=16)
    assert study["predicted"] == wrong["predicted"]
    assert study["law"] == wrong["law"]
    assert not any(one["inside"] for one in wrong["measured"])
    assert wrong["measured"][0]["error"] > 0.2


def test_a_loss_below_the_floor_is_no_share_off():
    below = study_of(ladder(wrong=0.3), held_back=16)
    assert below["measured"]
    assert {(one["error"], one["inside"]) for one in below["measured"]} == {(None, False)}


def test_with_two_budgets_the_law_of_size_predicts_the_best():
    study = study_of(ladder(compute=(1, 4, 16)), held_back=16)
    assert study["law"]["compute"] is None
    best, *widths = study["predicted"]
    assert ("width" in best, {one["law"] for one in study["predicted"]}) == (False, {"size"})
    assert best["loss"] == min(one["loss"] for one in widths)
    assert study["measured"][0]["error"] < 0.05


def test_of_too_few_runs_no_law_is_made():
    study = study_of(ladder(widths=(64,), compute=(1, 4)), held_back=4)
    assert study["law"] == {"compute": None, "size": None}
    assert (study["predicted"], study["measured"], study["optimum"], study["beyond"]) == ([], [], [], None)
    assert len(study["best"]) == 2
    assert band(ladder(widths=(64,), compute=(1, 4)), held_back=4) == []


def test_as_many_runs_as_a_law_has_numbers_make_no_law():
    once = ladder(widths=(64,), compute=(1, 2, 4, 8), seeds=1)
    assert study_of(once, held_back=8)["law"]["compute"] is None, "three runs, three numbers"
    assert study_of(ladder(widths=(64,), compute=(1, 2, 4, 8), seeds=2), held_back=8)["law"]["compute"] is not None


def test_the_law_of_all_budgets_says_what_would_falsify_it(study):
    beyond = study["beyond"]
    truth = min(law(n, 64 * UNIT / (6 * n)) for n in np.geomspace(1e4, 1e8, 500))
    assert (beyond["compute"], beyond["flops"], beyond["seeds"]) == (64, pytest.approx(64 * UNIT), 3)
    assert beyond["low"] < beyond["high"]
    assert beyond["loss"] == pytest.approx(truth, rel=0.03)


def test_the_best_size_is_where_both_terms_gain_equally():
    cells = ladder(noise=0.0)
    found = best_size(fit_of_size(cells), cells, 4 * UNIT)
    sizes = np.geomspace(1e4, 1e8, 5000)
    best = sizes[np.argmin(law(sizes, 4 * UNIT / (6 * sizes)))]
    assert found["parameters"] == pytest.approx(best, rel=0.1)
    assert found["parameters"] * found["tokens"] * 6 == pytest.approx(4 * UNIT, rel=0.01)


def test_the_band_goes_through_the_runs_that_were_fitted():
    cells = ladder(widths=(96,))
    shown = band(cells, held_back=16)
    for cell in cells[:4]:
        near = min(shown, key=lambda one: abs(np.log(one["flops"] / cell.flops)))
        assert near["low"] <= near["loss"] <= near["high"]
        assert near["loss"] == pytest.approx(cell.loss, rel=0.02)


def test_a_standard_error_is_of_the_mean_over_seeds():
    cell = dataclasses.replace(ladder()[0], losses=(1.0, 2.0, 3.0))
    assert (cell.loss, cell.stderr) == (2.0, pytest.approx(1 / 3**0.5))
    assert dataclasses.replace(cell, losses=(1.0,)).stderr is None
