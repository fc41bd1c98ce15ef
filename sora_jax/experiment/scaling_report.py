"""What a study of scale came to, written into its folder: scaling.json, scaling.html."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sora_jax.core.files import write_atomically
from sora_jax.evaluation.budgets import band, study_of
from sora_jax.experiment.children import Study
from sora_jax.experiment.scaling import Rung, cells_of, results_of, scaling_of
from sora_jax.experiment.stage_settings import TEXT_TO_VIDEO
from sora_jax.reports.scaling_page import SCALING_PAGE, write_scaling_page

SCALING_FILE = "scaling.json"


def write_study(study: Study, rungs: Sequence[Rung], *, missing: int) -> dict[str, Any]:
    """Returns what finished runs say together, after writing both files and printing what matters of it.

    `runs` are as of `experiment.scaling.results_of`, the rest as of `evaluation.budgets.study_of`; `scores` are means
    over seeds of the best width of each budget, `scores_monotone` whether the share of all that was asked for never
    falls, `falsified_by` a sentence; `missing` is how many runs are not made yet.
    """
    settings = study.settings()
    held_back = scaling_of(settings).first_held_back
    runs = results_of(study, rungs)
    cells = cells_of(runs)
    found = study_of(cells, held_back=held_back)
    scores = [_mean_scores(runs, best) for best in found["best"]]
    asked = [one["all"] for one in scores if "all" in one]
    result = {
        "runs": runs,
        **found,
        "scores": scores,
        "scores_monotone": asked == sorted(asked) if asked else None,
        "falsified_by": _falsified_by(found["beyond"]),
        "missing": missing,
    }
    write_atomically(study.folder / SCALING_FILE, json.dumps(result, indent=2))
    stage = settings.stages_of(TEXT_TO_VIDEO)[-1]
    shown = {
        f"{one['compute']:g}x compute, width {one['width']}": _shown(study, rungs, one, stage) for one in found["best"]
    }
    page = study.folder / SCALING_PAGE
    write_scaling_page(page, result, band(cells, held_back=held_back), shown)
    print("\n".join(_lines(result)), flush=True)
    print(f"report: {page}", flush=True)
    return result


def _mean_scores(runs: Sequence[Mapping[str, Any]], best: Mapping[str, Any]) -> dict[str, float]:
    """Returns the scores of a budget's best width, means over its seeds."""
    own = [run["scores"] for run in runs if (run["width"], run["compute"]) == (best["width"], best["compute"])]
    names = [name for name in own[0] if all(name in scores for scores in own)]
    return {name: statistics.fmean(scores[name] for scores in own) for name in names}


def _shown(study: Study, rungs: Sequence[Rung], best: Mapping[str, Any], stage: str) -> tuple[Path, str]:
    """Returns the workdir and the stage whose samples stand for a budget: those of the first seed."""
    own = [rung for rung in rungs if (rung.width, rung.compute) == (best["width"], best["compute"])]
    return study.workdir(own[0].child).path, stage


def _falsified_by(beyond: Mapping[str, float] | None) -> str | None:
    """Returns the sentence that says which result would show the law to be wrong."""
    if beyond is None:
        return None
    return (
        f"The law of all budgets is wrong if runs of {beyond['compute']:g}x compute ({beyond['flops']:.2g} FLOP), each "
        f"a finished schedule at the best width, come to a held-out loss, mean of {beyond['seeds']}, outside "
        f"{beyond['low']:.4f} to {beyond['high']:.4f}; it says {beyond['loss']:.4f}."
    )


def _lines(result: Mapping[str, Any]) -> list[str]:
    """Returns what matters of a study, line by line."""
    lines = []
    for best, scores in zip(result["best"], result["scores"], strict=True):
        judged = f", all that was asked for in {scores['all']:.1%}" if "all" in scores else ""
        lines.append(f"{best['compute']:g}x: width {best['width']}, loss {best['loss']:.4f}{judged}")
    for said, came in zip(result["predicted"], result["measured"], strict=True):
        what = f"width {said['width']}" if "width" in said else f"the best width by the law of {said['law']}"
        off = "below the floor of the law"
        if came["error"] is not None:
            off = f"off by {came['error']:.1%} of what is above the floor"
        lines.append(
            f"predicted for {what} at {said['compute']:g}x: {said['loss']:.4f} ({said['low']:.4f} to "
            f"{said['high']:.4f}), measured {came['loss']:.4f}, {off}"
        )
    if none := [name for name in ("compute", "size") if result["law"][name] is None]:
        lines.append(f"too few budgets and widths for a law of {' and of '.join(none)}")
    return lines + ([result["falsified_by"]] if result["falsified_by"] else [])
