"""The page of a study of scale: pictures at rising compute, the law and its band, what it predicted, every run."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from sora_jax.core.files import write_atomically
from sora_jax.reports.charts import compact
from sora_jax.reports.pictures import entries, picture_table, pictures_in, read_object
from sora_jax.reports.run_page import duration
from sora_jax.reports.scatter import Dots, Trend, scatter_chart
from sora_jax.reports.style import HTML_PAGE

SCALING_PAGE = "scaling.html"
_FLOP = "model FLOP of training"
_SCORES = ("all", "shape", "motion", "clean")  # that have a chart, where the oracle judged
_FIGURE = (
    "The same prompts, the same noise, the last step of each run; of each budget the width with the lowest held-out "
    "loss, at the first seed. Nothing else was chosen."
)
_LAW = (
    "Each dot is a finished run. The line is L = E + A C^-a of the best width of each budget below those held back, "
    "the band what nine of ten bootstraps over seeds say."
)
_SIZE = "Parameters N and tokens D with the lowest loss for a budget, by L = E + A N^-a + B D^-b of all these runs."


def write_scaling_page(
    path: Path, study: Mapping[str, Any], band: Sequence[Mapping[str, float]], shown: Mapping[str, tuple[Path, str]]
) -> None:
    """Writes the page, whole, to `path`.

    Args:
      path: Of the file.
      study: What `scaling.json` says.
      band: Of the law of compute, see `evaluation.budgets.band`.
      shown: By title of its column a run's workdir, and the stage whose last samples are shown.
    """
    runs = study["runs"]
    sections = [
        _section("More compute, the same seeds", _figure(shown), _FIGURE),
        _section("Held-out loss", _losses(runs, band, study["law"]), _LAW),
        _section("Predicted before, measured after", _predictions(study), _predicted_note(study)),
        _section("Scores", _scores(runs, study["best"]), "Shares of held-out prompts, as read from pixels."),
        _section("What is best for a budget", _optimum(study), _SIZE),
        _section("What would falsify it", _falsified(study)),
        _section("Runs", _cells(runs)),
    ]
    title = path.parent.name
    count = f"{len(runs)} runs" + (f", {study['missing']} are missing" if study["missing"] else "")
    head = f"<header><h1>{escape(title)}</h1><p>{count}</p></header>"
    write_atomically(path, HTML_PAGE.format(title=escape(title), body=head + "".join(sections)))


def _section(title: str, content: str, note: str = "") -> str:
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{note}{content}</section>" if content else ""


def _figure(shown: Mapping[str, tuple[Path, str]]) -> str:
    columns, captions = {}, {}
    for title, (workdir, stage) in shown.items():
        folder = workdir / "samples" / stage
        steps = sorted((one for one in entries(folder) if one.name.isdecimal()), key=lambda one: int(one.name))
        columns[title] = pictures_in(steps[-1]) if steps else {}
        captions |= read_object(folder / "prompts.json")
    return picture_table(columns, captions)


def _by_width(runs: Sequence[Mapping[str, Any]]) -> dict[int, list[Mapping[str, Any]]]:
    return {width: [run for run in runs if run["width"] == width] for width in sorted({run["width"] for run in runs})}


def _dots(runs: Sequence[Mapping[str, Any]], value: str, *, minus: float = 0.0) -> list[Dots]:
    return [
        Dots(name=f"width {width}", xs=[run["flops"] for run in some], ys=[run[value] - minus for run in some])
        for width, some in _by_width(runs).items()
    ]


def _losses(runs: Sequence[Mapping[str, Any]], band: Sequence[Mapping[str, float]], law: Mapping[str, Any]) -> str:
    trends, above = [], ""
    if band:
        xs, ys, lows, highs = ([one[name] for one in band] for name in ("flops", "loss", "low", "high"))
        trends = [Trend(name="the law", xs=xs, ys=ys, lows=lows, highs=highs)]
        floor = law["compute"]["floor"]
        straight = [Trend(name="the law", xs=xs, ys=[y - floor for y in ys])]
        above = scatter_chart("Loss above the floor E", _dots(runs, "loss", minus=floor), straight, x_name=_FLOP)
    chart = scatter_chart("Held-out loss", _dots(runs, "loss"), trends, x_name=_FLOP)
    return f'<div class="row">{chart}{above}</div>{_laws(law)}'


def _laws(law: Mapping[str, Any]) -> str:
    """The numbers of both laws, with their intervals."""
    rows = []
    for name, what in (("compute", "L = E + A C^-a"), ("size", "L = E + A N^-a + B D^-b")):
        if (found := law[name]) is None:
            rows.append([what, "too few budgets and widths for it"])
            continue
        said = [f"E {_between(found['floor'], found['floor_interval'])}"]
        letters = zip("ab", found["exponents"], found["exponent_intervals"], strict=False)
        said += [f"{letter} {_between(value, interval)}" for letter, value, interval in letters]
        rows.append([what, ", ".join(said), f"of {found['runs']} runs"])
    return _table([], rows)


def _between(value: float, interval: Sequence[float]) -> str:
    return f"{value:.3g} ({interval[0]:.3g} to {interval[1]:.3g})"


def _predictions(study: Mapping[str, Any]) -> str:
    rows = []
    for said, came in zip(study["predicted"], study["measured"], strict=True):
        what = f"width {said['width']}" if "width" in said else f"the best width ({came['width']})"
        what += " by the law of compute" if said["law"] == "compute" else ""
        stderr = "" if came["stderr"] is None else f" ± {came['stderr']:.2g}"
        rows.append(
            [
                f"{said['compute']:g}x",
                what,
                f"{said['loss']:.4f} ({said['low']:.4f} to {said['high']:.4f})",
                f"{came['loss']:.4f}{stderr}",
                "within the band" if came["inside"] else "outside of it",
                "below the floor" if came["error"] is None else f"{came['error']:.1%}",
            ]
        )
    head = ["budget", "of", "predicted", f"measured, mean of {_seeds(study)} seeds", "", "error, share of L - E"]
    return _table(head, rows) if rows else ""


def _seeds(study: Mapping[str, Any]) -> int:
    return max((came["seeds"] for came in study["measured"]), default=0)


def _predicted_note(study: Mapping[str, Any]) -> str:
    held = sorted({run["compute"] for run in study["runs"] if run["held_back"]})
    budgets = ", ".join(f"{one:g}x" for one in held)
    return f"Runs of {budgets} compute were no part of the fit. The band is where nine of ten such means should lie."


def _scores(runs: Sequence[Mapping[str, Any]], best: Sequence[Mapping[str, Any]]) -> str:
    charts = []
    for name in _SCORES:
        some = [{**run, name: run["scores"][name]} for run in runs if name in run["scores"]]
        if not some:
            continue
        means = []
        for cell in best:
            own = [one[name] for one in some if (one["width"], one["compute"]) == (cell["width"], cell["compute"])]
            means.append((cell["flops"], sum(own) / len(own)) if own else (cell["flops"], 0.0))
        line = Trend(name="mean of the best width", xs=[x for x, _ in means], ys=[y for _, y in means])
        charts.append(scatter_chart(name, _dots(some, name), [line], x_name=_FLOP, log_y=False))
    return f'<div class="row">{"".join(charts)}</div>' if charts else ""


def _optimum(study: Mapping[str, Any]) -> str:
    found, best = study["optimum"], study["best"]
    if not found:
        return ""
    lines = [
        Trend(
            name="the law",
            xs=[one["flops"] for one in found],
            ys=[one["parameters"] for one in found],
            lows=[one["low"] for one in found],
            highs=[one["high"] for one in found],
        )
    ]
    dots = [Dots(name="best width run", xs=[c["flops"] for c in best], ys=[c["parameters"] for c in best])]
    chart = scatter_chart("Parameters", dots, lines, x_name=_FLOP)
    rows = [
        [f"{one['compute']:g}x", f"{one['flops']:.3g}", compact(one["parameters"]), compact(one["tokens"]), _text(one)]
        for one in found
    ]
    return f'<div class="row">{chart}{_table(["budget", "FLOP", "N", "D", "loss there"], rows)}</div>'


def _text(one: Mapping[str, float]) -> str:
    return f"{one['loss']:.4f}"


def _falsified(study: Mapping[str, Any]) -> str:
    return f"<p>{escape(study['falsified_by'])}</p>" if study["falsified_by"] else ""


def _cells(runs: Sequence[Mapping[str, Any]]) -> str:
    head = ["budget", "width", "blocks", "parameters", "tokens", "FLOP", "rate", "seed", "loss ± stderr", "time"]
    rows = [
        [
            f"{run['compute']:g}x",
            str(run["width"]),
            str(run["depth"]),
            compact(run["parameters"]),
            compact(run["tokens"]),
            f"{run['flops']:.3g}",
            f"{run['learning_rate']:g}",
            str(run["seed"]),
            f"{run['loss']:.4f}" + ("" if run["stderr"] is None else f" ± {run['stderr']:.2g}"),
            duration(run["seconds"]),
        ]
        for run in runs
    ]
    return f"<details><summary>each run</summary>{_table(head, rows)}</details>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = f"<thead><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr></thead>" if head else ""
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table>{top}<tbody>{body}</tbody></table></div>'
