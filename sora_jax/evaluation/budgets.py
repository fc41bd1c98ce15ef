"""What runs of several widths, budgets and seeds say together: laws, what they predict, and how far off they may be.

The runs of one width and one budget differ in their seed alone. Each is trained with a schedule of its own to its end
and gives one loss, so the losses of a fit are of different runs. An interval is of a bootstrap: widths and budgets are
drawn with replacement where all runs are fitted, of each the seeds are, and to a prediction what the law leaves
unexplained is added. It holds nine tenths of the draws.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from sora_jax.evaluation.laws import Law, fit_law

_DRAWS = 200  # of a bootstrap
_INTERVAL = 5.0, 95.0  # percentiles
_BEYOND = 4.0  # times the largest budget: what the law says of it would falsify it
_SIZES = 400  # that the best one is sought among, from a tenth of the smallest width's to ten times the largest's


@dataclasses.dataclass(frozen=True, kw_only=True)
class BudgetPoint:
    """The runs of one width and budget.

    Attributes:
      width: Of the transformer.
      compute: The budget, times the smallest unit of the study.
      parameters: N, of the transformer.
      tokens: D, that each run was trained on, mean over seeds.
      flops: C, model FLOP that each run took, mean over seeds.
      losses: Held-out loss by seed.
    """

    width: int
    compute: float
    parameters: float
    tokens: float
    flops: float
    losses: tuple[float, ...]

    @property
    def loss(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.losses))

    @property
    def stderr(self) -> float | None:
        """Standard error of that mean; None of one run."""
        count = len(self.losses)
        return float(np.std(self.losses, ddof=1) / count**0.5) if count > 1 else None


# How cells become a law.
Fitting = Callable[[Sequence[BudgetPoint], Law | None], Law]
# What a law, and the cells that it was fitted to, say of something.
Question = Callable[[Law, Sequence[BudgetPoint]], float]


def hull(cells: Sequence[BudgetPoint]) -> list[BudgetPoint]:
    """Returns of each budget the width with the lowest mean loss, budgets rising."""
    budgets = sorted({cell.compute for cell in cells})
    return [min((cell for cell in cells if cell.compute == one), key=lambda cell: cell.loss) for one in budgets]


def fit_of_compute(cells: Sequence[BudgetPoint], near: Law | None = None) -> Law:
    """Returns L = E + A C^-a of the best width of each budget; raises ValueError with fewer than three budgets."""
    best = [(cell.flops, loss) for cell in hull(cells) for loss in cell.losses]
    flops_R, loss_R = np.array(best).T
    # The runs of a budget are at one place.
    return fit_law(loss_R, flops_R[None], near=near)


def fit_of_size(cells: Sequence[BudgetPoint], near: Law | None = None) -> Law:
    """Returns L = E + A N^-a + B D^-b of all runs; raises ValueError with fewer than five widths and budgets."""
    each = [(cell.parameters, cell.tokens, loss) for cell in cells for loss in cell.losses]
    parameters_R, tokens_R, loss_R = np.array(each).T
    return fit_law(loss_R, np.stack([parameters_R, tokens_R]), near=near)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LawOfRuns:
    """A law and what else it could have been.

    Attributes:
      law: That of all cells.
      cells: What it was fitted to.
      drawn: The law and the cells of each draw of the bootstrap.
      residuals: Logarithm of each run's loss over the law's.
    """

    law: Law
    cells: Sequence[BudgetPoint]
    drawn: Sequence[tuple[Law, Sequence[BudgetPoint]]]
    residuals: np.ndarray

    def interval(self, asked: Question) -> tuple[float, float]:
        """Returns between which values what is asked of the law lies."""
        low, high = np.percentile([asked(law, cells) for law, cells in self.drawn], _INTERVAL)
        return float(low), float(high)

    def prediction(self, asked: Question, *, seeds: int) -> dict[str, float]:
        """Returns the loss that is asked of the law, and between which the mean over `seeds` runs should lie."""
        rng = np.random.default_rng(1)
        noise = rng.choice(self.residuals, size=(len(self.drawn), seeds)).mean(axis=1)
        values = [asked(law, cells) for law, cells in self.drawn] * np.exp(noise)
        low, high = np.percentile(values, _INTERVAL)
        return {"loss": asked(self.law, self.cells), "low": float(low), "high": float(high)}


def fitted(cells: Sequence[BudgetPoint], fit: Fitting, *, by_cell: bool) -> LawOfRuns | None:
    """Returns the law of cells with its bootstrap, which draws from the cells too where `by_cell`.

    None where there are too few, or no more runs than the law has numbers: nothing then says how far off it may be.
    """
    try:
        law = fit(cells, None)
    except ValueError:
        return None
    best = cells if by_cell else hull(cells)
    sizes = [(cell.parameters, cell.tokens) if by_cell else (cell.flops,) for cell in best]
    residuals = [np.log(np.array(one.losses) / law.loss(*size)) for one, size in zip(best, sizes, strict=True)]
    if sum(map(len, residuals)) <= 1 + 2 * len(law.scales):
        return None
    drawn = []
    for some in _draws(cells, by_cell=by_cell):
        try:
            drawn.append((fit(some, law), some))
        except ValueError:
            continue  # a draw of too few different cells
    return LawOfRuns(law=law, cells=cells, drawn=drawn, residuals=np.concatenate(residuals)) if drawn else None


def _draws(cells: Sequence[BudgetPoint], *, by_cell: bool) -> Iterator[list[BudgetPoint]]:
    rng = np.random.default_rng(0)
    for _ in range(_DRAWS):
        chosen = rng.choice(len(cells), size=len(cells)) if by_cell else range(len(cells))
        some = [cells[number] for number in chosen]
        yield [dataclasses.replace(one, losses=tuple(rng.choice(one.losses, size=len(one.losses)))) for one in some]


def study_of(cells: Sequence[BudgetPoint], *, held_back: float) -> dict[str, Any]:
    """Returns what `scaling.json` says besides its runs: law, predicted, measured, best, optimum, monotone, beyond.

    Budgets from `held_back` on are no part of `law`, which predicts them: of each the loss of the best width by the law
    of size, then by that of compute, and at last of each width that was run. `beyond` is of the law of all budgets.
    """
    early = [cell for cell in cells if cell.compute < held_back]
    late = [cell for cell in cells if cell.compute >= held_back]
    of_compute = fitted(early, fit_of_compute, by_cell=False) if early else None
    of_size = fitted(early, fit_of_size, by_cell=True) if early else None
    predicted, measured = [], []
    for cell in hull(late):
        asked = {
            "size": (of_size, of_best(early, cell.compute)),
            "compute": (of_compute, of_budget(early, cell.compute)),
        }
        for name, (found, question) in asked.items():
            if found is not None:
                said = found.prediction(question, seeds=len(cell.losses))
                predicted.append({"law": name, "compute": cell.compute, **said})
                measured.append(_measured(cell, said, found.law))
    for cell in late:
        before = [one for one in early if one.width == cell.width]
        if of_size is not None and before:
            said = of_size.prediction(of_width(before[-1], cell.compute), seeds=len(cell.losses))
            predicted.append({"law": "size", "compute": cell.compute, "width": cell.width, **said})
            measured.append(_measured(cell, said, of_size.law))
    best = hull(cells)
    return {
        "law": {"compute": _said(of_compute), "size": _said(of_size)},
        "predicted": predicted,
        "measured": measured,
        "best": [{**dataclasses.asdict(cell), "loss": cell.loss, "stderr": cell.stderr} for cell in best],
        "optimum": _optimum(of_size, best),
        "monotone": all(one.loss > other.loss for one, other in itertools.pairwise(best)),
        "beyond": _beyond(cells),
    }


def of_budget(cells: Sequence[BudgetPoint], compute: float) -> Question:
    """Returns what asks a law of compute for the loss of a budget, whose FLOP are in proportion to those of `cells`."""
    flops = _flops(cells, compute)
    return lambda law, _: float(law.loss(flops))


def of_width(cell: BudgetPoint, compute: float) -> Question:
    """Returns what asks a law of size for the loss of a cell's width at another budget, its tokens in proportion."""
    tokens = cell.tokens * compute / cell.compute
    return lambda law, _: float(law.loss(cell.parameters, tokens))


def of_best(cells: Sequence[BudgetPoint], compute: float) -> Question:
    """Returns what asks a law of size for the loss of a budget at the best of the widths of `cells`."""
    widths = [of_width(cell, compute) for cell in {cell.width: cell for cell in cells}.values()]
    return lambda law, some: min(asked(law, some) for asked in widths)


def best_size(law: Law, cells: Sequence[BudgetPoint], flops: float) -> dict[str, float]:
    """Returns the parameters and tokens that a law of size gives the lowest loss for so many FLOP, and that loss.

    A token takes k N^p FLOP, as read from the cells.
    """
    known = np.log([[cell.parameters, cell.flops / cell.tokens] for cell in cells])
    several = len({cell.width for cell in cells}) > 1
    power, offset = (
        np.polyfit(known[:, 0], known[:, 1], 1) if several else (1.0, float(np.mean(known[:, 1] - known[:, 0])))
    )
    sizes_S = np.geomspace(0.1 * np.exp(known[:, 0].min()), 10 * np.exp(known[:, 0].max()), _SIZES)
    tokens_S = flops / np.exp(offset + power * np.log(sizes_S))
    loss_S = law.loss(sizes_S, tokens_S)
    best = int(loss_S.argmin())
    return {"parameters": float(sizes_S[best]), "tokens": float(tokens_S[best]), "loss": float(loss_S[best])}


def _flops(cells: Sequence[BudgetPoint], compute: float) -> float:
    return float(np.mean([cell.flops / cell.compute for cell in cells])) * compute


def _measured(cell: BudgetPoint, predicted: dict[str, float], law: Law) -> dict[str, Any]:
    """Returns how a cell came out, and how far off a prediction was: `error`, as a share of loss above the floor.

    None where nothing is above the floor.
    """
    above = cell.loss - law.floor
    return {
        "compute": cell.compute,
        "width": cell.width,
        "loss": cell.loss,
        "stderr": cell.stderr,
        "seeds": len(cell.losses),
        "inside": predicted["low"] <= cell.loss <= predicted["high"],
        "error": abs(cell.loss - predicted["loss"]) / above if above > 0 else None,
    }


def _said(found: LawOfRuns | None) -> dict[str, Any] | None:
    """Returns the numbers of a law, each with its interval."""
    if found is None:
        return None
    exponents = [
        found.interval(lambda law, _, number=number: law.exponents[number])
        for number in range(len(found.law.exponents))
    ]
    return {
        **dataclasses.asdict(found.law),
        "floor_interval": found.interval(lambda law, _: law.floor),
        "exponent_intervals": exponents,
        "runs": sum(len(cell.losses) for cell in found.cells),
        "draws": len(found.drawn),
    }


def _optimum(found: LawOfRuns | None, best: Sequence[BudgetPoint]) -> list[dict[str, float]]:
    """Returns of each budget what the law of size calls best: parameters, between `low` and `high`, tokens, loss."""
    if found is None:
        return []
    result = []
    for cell in best:
        flops = _flops(found.cells, cell.compute)
        low, high = found.interval(lambda law, _, flops=flops: best_size(law, found.cells, flops)["parameters"])
        said = best_size(found.law, found.cells, flops)
        result.append({"compute": cell.compute, "flops": flops, **said, "low": low, "high": high})
    return result


def _beyond(cells: Sequence[BudgetPoint]) -> dict[str, float] | None:
    """Returns what the law of all budgets says of a larger one, as yet unmeasured: what would falsify it."""
    found = fitted(cells, fit_of_compute, by_cell=False)
    if found is None:
        return None
    compute, seeds = _BEYOND * max(cell.compute for cell in cells), min(len(cell.losses) for cell in cells)
    said = found.prediction(of_budget(cells, compute), seeds=seeds)
    return {"compute": compute, "flops": _flops(cells, compute), "seeds": seeds, **said}


def band(cells: Sequence[BudgetPoint], *, held_back: float, points: int = 40) -> list[dict[str, float]]:
    """Returns the law of compute, of budgets below `held_back`, at FLOP from below the smallest to beyond the largest.

    Of each `flops`, `loss` and its interval, `low` to `high`; empty where there are too few budgets for a law.
    """
    found = fitted([cell for cell in cells if cell.compute < held_back], fit_of_compute, by_cell=False)
    if found is None:
        return []
    result = []
    for flops in np.geomspace(0.7 * min(c.flops for c in cells), 1.5 * max(c.flops for c in cells), points):
        low, high = found.interval(lambda law, _, flops=flops: float(law.loss(flops)))
        result.append({"flops": float(flops), "loss": float(found.law.loss(flops)), "low": low, "high": high})
    return result
