"""The page of a study of framing: pairs of samples at equal seeds, how often the subject is cut, how that is known."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from sora_jax.core.files import write_atomically
from sora_jax.reports.pictures import picture_table, pictures_in, read_object
from sora_jax.reports.run_page import duration
from sora_jax.reports.style import HTML_PAGE

FRAMING_PAGE = "framing.html"
_RUNS = {"native": "native sizes", "square": "square crops"}
_WHOLE = (
    "Share of samples whose subject no edge cuts in any frame, with 95 % intervals by bootstrap over prompts; p by "
    "flipping the signs of prompts. Samples without a subject are left out; the table says how many are read."
)
_PAIRS = "The same prompts and the same noise: the first prompts, the first seed. Nothing was chosen."
_LEAST_RIGHT = 0.99


def write_framing_page(path: Path, study: Mapping[str, Any], pictures: Path) -> None:
    """Writes the page, whole, to `path`.

    Args:
      path: Of the file.
      study: What `framing.json` says.
      pictures: The folder with a folder for each size, that has one for each run and the words in prompts.json.
    """
    sections = [_section("Is the subject whole", _table_of(study), _WHOLE)]
    sections += [_section(f"Pairs at {size}", _pairs(pictures / size), _PAIRS) for size in study["by_size"]]
    sections.append(_section("How good the measure is", f"<p>{escape(_calibration(study['calibration']))}</p>"))
    sections.append(_section("Runs", _runs(study["runs"]), "They differ in data.square_crop alone."))
    title = escape(path.parent.name)
    samples = f"{study['prompts']} prompts, {study['draws']} samples of each at each size"
    head = f"<header><h1>{title}</h1><p>{escape(_verdict(study))}</p><p>{samples}</p></header>"
    write_atomically(path, HTML_PAGE.format(title=title, body=head + "".join(sections)))


def _verdict(study: Mapping[str, Any]) -> str:
    """Returns in a sentence what the study found."""
    if study["gap"] is None:
        return "No pair of samples shows a subject in both: train longer."
    shares = {name: f"{study[name]['whole']:.1%}" for name in _RUNS}
    said = (
        f"At sizes that square crops change, the subject is whole in {shares['native']} of the samples of native sizes "
        f"and in {shares['square']} of those of square crops"
    )
    chance = "more than chance" if study["p"] < 0.01 else "not more than chance may do"
    return f"{said}: a gap of {study['gap']:.3f}, p {study['p']:.1g}, {chance}."


def _section(title: str, content: str, note: str = "") -> str:
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{note}{content}</section>" if content else ""


def _table_of(study: Mapping[str, Any]) -> str:
    rows = []
    for size, one in {"all that crops change": study, **study["by_size"]}.items():
        for name, title in _RUNS.items():
            own = one[name]
            numbers = [_number(own[key]) for key in ("in_view", "margin", "margin_10")]
            rows.append([size, title, _between(own["whole"], own), *numbers, f"{own['read']:.1%} of {own['samples']}"])
        p = "" if one["p"] is None else f"p {one['p']:.1g}"
        rows.append([size, "gap", _between(one["gap"], one), "", "", p, f"{one['pairs']} pairs"])
    head = ["size", "trained on", "whole", "area in view", "margin, radii", "its 10 % quantile", "read"]
    return _cells(head, rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _between(value: float | None, interval: Mapping[str, Any]) -> str:
    return "" if value is None else f"{value:.3f} ({interval['low']:.3f} to {interval['high']:.3f})"


def _pairs(folder: Path) -> str:
    columns = {title: pictures_in(folder / name) for name, title in _RUNS.items()}
    return picture_table(columns, read_object(folder / "prompts.json"))


def _calibration(found: Mapping[str, Any]) -> str:
    said = (
        f"On {found['clips']} drawn clips, of which edges cut {found['cut']:.1%} by a known amount, the reading says "
        f"rightly whether the subject is whole in {found['right']:.1%}"
    )
    if found["right"] < _LEAST_RIGHT:
        return f"{said}: less than {_LEAST_RIGHT:.0%}, so differences as small as that mean nothing."
    return f"{said}."


def _runs(runs: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [_RUNS[name], str(run["stage"]), str(run["step"]), duration(run["seconds"]) if run["seconds"] else ""]
        for name, run in runs.items()
    ]
    return _cells(["run", "stage", "step", "time"], rows)


def _cells(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
