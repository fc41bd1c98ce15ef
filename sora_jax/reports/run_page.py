"""The report of a run: one self-contained HTML page, made from what lies in the workdir.

Every part is optional, so a half-finished run has a report too. Text of users (captions, file names, config) is
escaped. No script, no network: pictures are inside the page, curves are SVG.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from sora_jax.core.files import write_atomically
from sora_jax.core.metric_table import BEST, metric_of, scores_in
from sora_jax.core.printable import printable
from sora_jax.reports.charts import Series, compact, line_chart
from sora_jax.reports.pictures import picture_stages, pictures, read_object, sheets
from sora_jax.reports.style import HTML_PAGE
from sora_jax.reports.validation import VALIDATED, heldout_charts
from sora_jax.train.metrics import read_metrics

REPORT_FILE = "report.html"
_MOST_SKIPPED = 50  # names listed
_RATES = ("seconds_per_step", "tokens_per_second", "fill", "data_wait", "mfu")
# Keys of metrics that have charts of their own; the others, with few exceptions, go into the folded part.
_CHARTED = {"stage", "step", "loss", "tokens_per_second", "fill", "data_wait", "mfu"}
_NO_CURVES = {"digest"}  # it tells replicas of the weights apart, and means nothing as a number
_NAMES = {
    "seconds": "time",
    "compile_seconds": "compiling",
    "seconds_per_step": "per step",
    "tokens_per_second": "tokens/s",
    "flops_per_second": "model FLOP/s",
    "mfu": "MFU",
    "peak_memory_gb": "peak memory",
    "device_memory_gb": "peak memory of a device",
}
_CLEAN = (
    "Shares of held-out prompts, as read from pixels. Clean: one whole object of the shape that was asked for, with "
    "its outline, in every frame, of one size, and nothing else on the ground."
)

RunFacts = dict[str, Any]


def write_report(
    workdir: str | os.PathLike[str],
    advice: Sequence[str] = (),
    *,
    stages: Sequence[str] = (),
    pairs: Collection[str] = (),
) -> Path:
    """The path of WORKDIR/report.html after writing it. Missing or damaged inputs leave their part out.

    `advice` is what to change in the config, what matters most first. `stages` are those of the run, in order, besides
    which what else was done has its place; `pairs` those that show originals beside reconstructions.
    """
    path = Path(workdir).absolute()
    config, run, evaluation = (read_object(path / f"{name}.json") for name in ("config", "run", "evaluation"))
    metrics = _by_stage(read_metrics(path))
    facts = _stages(config, run, metrics, stages)
    skipped = _skipped(path)
    shown = picture_stages(path / "samples", order=list(facts))
    samples = [name for name in shown if name not in pairs]
    judged, worst = sheets(path / "samples" / "evaluation")
    sections = [
        _section("Samples", judged, "What the scores below were read from."),
        _section(
            "Samples in training",
            "".join(pictures(path, n) for n in reversed(samples)),
            "Same prompts and noise at every step; the last stage first.",
        ),
        _section("What to change first", _ordered(advice)),
        _tiles(run, facts, skipped=len(skipped)),
        _section("Evaluation", _evaluation(evaluation), _CLEAN if "clean" in json.dumps(evaluation) else ""),
        _section(
            "Reconstructions",
            "".join(pictures(path, n) for n in shown if n in pairs) + worst,
            "Original on the left, autoencoder's reconstruction on the right.",
        ),
        _section("Curves", "".join(_curves(name, lines) for name, lines in metrics.items())),
        _section("Stages", _stage_table(facts)),
        _section("Skipped clips", _skipped_list(skipped)),
        _section("Run", _facts_table({key: value for key, value in run.items() if key != "stages"})),
        _section("Config", _config(config)),
    ]
    title = path.name
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12] if config else None
    page = HTML_PAGE.format(title=escape(title), body=_head(title, digest) + "".join(sections))
    write_atomically(path / REPORT_FILE, page)
    return path / REPORT_FILE


def _ordered(sentences: Sequence[str]) -> str:
    return f"<ol>{''.join(f'<li>{escape(one)}</li>' for one in sentences)}</ol>" if sentences else ""


def _head(title: str, digest: str | None) -> str:
    line = f"<p>config <code>{digest}</code></p>" if digest else ""
    return f"<header><h1>{escape(title)}</h1>{line}</header>"


def _section(title: str, content: str, note: str = "") -> str:
    if not content:
        return ""
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{note}{content}</section>"


def _tiles(run: RunFacts, stages: dict[str, RunFacts], *, skipped: int) -> str:
    """What a glance should see, of the whole run; rates are of the last stage that trained."""
    values = list(stages.values())
    seconds = sum(_numbers(facts.get("seconds") for facts in values))
    total = next(iter(_numbers([run.get("seconds"), run.get("total_seconds")])), seconds)
    compile_seconds = sum(_numbers(facts.get("compile_seconds") for facts in values))
    memory = max(_numbers([run.get("peak_memory_gb"), *(f.get("peak_memory_gb") for f in values)]), default=None)
    trained = next((facts for facts in reversed(values) if "tokens_per_second" in facts), {})
    found = {
        "wall time": duration(total) if total else None,
        "of it compiling": duration(compile_seconds) if compile_seconds else None,
        "tokens/s": _shown("tokens_per_second", trained.get("tokens_per_second")),
        "of rows filled": _shown("fill", trained.get("fill")),
        "of the time waiting for data": _shown("data_wait", trained.get("data_wait")),
        "peak memory": _shown("peak_memory_gb", memory),
        "clips skipped": str(skipped) if skipped else None,
    }
    tiles = [(name, value) for name, value in found.items() if value]
    shown = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in tiles)
    return f'<div class="tiles">{shown}</div>'


def _stages(
    config: RunFacts, run: RunFacts, metrics: dict[str, list[RunFacts]], order: Sequence[str]
) -> dict[str, RunFacts]:
    """Facts by stage, those of the run in `order`: from run.json, and what that has not from its last metrics."""
    configured, done = config.get("stages"), run.get("stages")
    configured = configured if isinstance(configured, dict) else {}
    done = done if isinstance(done, dict) else {}
    names = dict.fromkeys([*order, *done, *metrics])
    stages: dict[str, RunFacts] = {}
    for name in names:
        settings = configured.get(name)
        settings = settings if isinstance(settings, dict) else {}
        facts = {"kind": settings["kind"]} if "kind" in settings else {}
        lines = metrics.get(name, [])
        # Of a stage that had no step left when it was started last run.json has none of these.
        facts |= {key: line[key] for line in lines for key in _RATES if line.get(key) is not None}
        if isinstance(done.get(name), dict):
            facts |= done[name]
        elif lines:
            facts["steps"] = f"{lines[-1]['step']} of {settings.get('steps', '?')}"
        stages[name] = facts
    return stages


def _stage_table(stages: dict[str, RunFacts]) -> str:
    leading = ["kind", "steps", "seconds", "compile_seconds", "seconds_per_step", "tokens_per_second", "fill"]
    found = {key for facts in stages.values() for key in facts}
    keys = [key for key in leading if key in found]
    rest = [key for key in ("data_wait", "mfu", "peak_memory_gb", "device_memory_gb") if key in found]
    others = sorted(found - {*keys, *rest})
    head = ["stage", *(_words(key) for key in keys + rest), *(["also"] if others else [])]
    rows = []
    for name, facts in stages.items():
        also = ", ".join(f"{_words(k)} {_shown(k, facts[k])}" for k in others if k in facts)
        cells = [_shown(key, facts.get(key)) or "" for key in keys + rest]
        rows.append([name, *cells, *([also] if others else [])])
    return _table(head, rows) if rows else ""


def _evaluation(evaluation: RunFacts) -> str:
    tables = []
    for group, values in evaluation.items():
        values = values if isinstance(values, dict) else {"": values}
        share, told = group.startswith(("shapes", "size_")), group == "captions"
        scores = dict(scores_in(values))
        lists = {key: _records(value, share=share) for key, value in values.items() if isinstance(value, list)}
        rows = [
            [_words(key), _shown(key, value, share=share or (told and _is_share(key))) or ""]
            for key, value in values.items()
            if key not in {**lists, **scores}
        ]
        tables.append(f"<div><h3>{escape(_words(group))}</h3>{_table([], rows)}</div>")
        tables += [f"<div><h3>{escape(_words(group))}, scores</h3>{_scores(scores)}</div>"] if scores else []
        tables += [f"<div><h3>{escape(_words(f'{group} {key}'))}</h3>{one}</div>" for key, one in lists.items() if one]
    return f'<div class="row">{"".join(tables)}</div>' if tables else ""


def _is_share(key: str) -> bool:
    row = metric_of(key)
    return row is not None and row.unit == "share"


def _scores(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each score that has an interval, with what it is."""
    head, rows = ["score", "value", "95 % from", "to", "real clips", "unit", "best", "what it is"], []
    for name, score in scores.items():
        row = metric_of(name)
        numbers = [_shown(name, score.get(key)) or "" for key in ("value", "low", "high", "real")]
        told = [row.unit, BEST[row.better], row.says] if row is not None else ["", "", ""]
        rows.append([name, *numbers, *told])
    return _table(head, rows)


def _curves(stage: str, lines: list[RunFacts]) -> str:
    def series(key: str, name: str = "", *, smooth: bool = False) -> Series:
        found = [line for line in lines if key in line]
        ys = [line[key] if isinstance(line[key], int | float) else None for line in found]
        return Series(name=name, xs=[line["step"] for line in found], ys=ys, smooth=smooth)

    shares = [series("fill", "rows filled"), series("data_wait", "waiting for data"), series("mfu", "MFU")]
    main = line_chart("Loss", [series("loss", smooth=True)], unit="")
    main += line_chart("Throughput", [series("tokens_per_second", smooth=True)], unit="tokens/s", zero=True)
    main += line_chart("Shares", shares, unit="", share=True)
    main += heldout_charts(lines)
    found = dict.fromkeys(key for line in lines for key in line if not key.startswith(VALIDATED))
    keys = [key for key in found if key not in _CHARTED | _NO_CURVES]
    more = "".join(
        line_chart(_words(key), [series(key, smooth="loss" in key or "norm" in key)], unit="") for key in keys
    )
    rows = dict.fromkeys(map(metric_of, keys))
    said = "; ".join(f"{row.title}: {row.says}" for row in rows if row is not None and row.part == "training")
    note = f'<p class="note">{escape(said)}</p>' if said else ""
    folded = f'<details><summary>more curves</summary><div class="row">{more}</div>{note}</details>' if more else ""
    return f'<h3>{escape(stage)}</h3><div class="row">{main}</div>{folded}' if main or more else ""


def _skipped(workdir: Path) -> list[tuple[str, str]]:
    """(name, reason) of every clip that curation or preparation left out, held-out ones among them."""
    lines = []
    folders = ("curation", "prepared", "heldout")
    for path in sorted(path for name in folders for path in workdir.glob(f"{name}/**/skipped.jsonl")):
        lines += path.read_text(encoding="utf-8", errors="replace").splitlines()
    found = []
    for line in lines:
        try:
            clip = json.loads(line)
            found.append((printable(str(clip["source_id"])), str(clip["reason"])))
        except (ValueError, KeyError, TypeError):
            continue  # the line that an interruption cut short
    return found


def _skipped_list(skipped: list[tuple[str, str]]) -> str:
    if not skipped:
        return ""
    count = f"{len(skipped)} clips" + (f", the first {_MOST_SKIPPED}" if len(skipped) > _MOST_SKIPPED else "")
    table = _table(["clip", "reason"], skipped[:_MOST_SKIPPED])
    return f"<details><summary>{count}</summary>{table}</details>"


def _config(config: RunFacts) -> str:
    text = escape(json.dumps(config, indent=2, ensure_ascii=False))
    return f"<details><summary>show</summary><pre>{text}</pre></details>" if config else ""


def _records(records: Sequence[Any], *, share: bool = False) -> str:
    """A row for each record, a column for each key that one of them has."""
    known = [record for record in records if isinstance(record, dict)]
    names = list(dict.fromkeys(name for record in known for name in record))
    rows = [[_shown(name, record.get(name), share=share) or "" for name in names] for record in known]
    return _table([_words(name) for name in names], rows) if rows else ""


def _facts_table(facts: RunFacts) -> str:
    return _table([], [[_words(key), _shown(key, value) or ""] for key, value in facts.items()]) if facts else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"

    top = f"<thead>{row(head, 'th')}</thead>" if head else ""
    return f'<div class="wide"><table>{top}<tbody>{"".join(row(cells, "td") for cells in rows)}</tbody></table></div>'


def _shown(key: str, value: Any, *, share: bool = False) -> str | None:
    """A value as a reader wants it, by its name; None stays None."""
    row = metric_of(key)
    if row is not None and row.part == "captions" and isinstance(value, dict):
        return ", ".join(f"{_words(name)} {_shown(key, one, share=True)}" for name, one in value.items())
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None if value is None else _text(value)
    if key in ("fill", "data_wait", "mfu") or (share and isinstance(value, float) and 0 <= value <= 1):
        return f"{value:.1%}"
    if row is not None and row.unit == "dB":
        return f"{value:.2f} dB"
    if key.endswith("memory_gb"):
        return f"{value:.2f} GB"
    if "seconds" in key:
        return duration(value)
    return f"{value:,}" if isinstance(value, int) else compact(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def duration(seconds: float) -> str:
    """Seconds in words: 0.31 s, 42 s, 3 min 05 s, 2 h 07 min."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _words(key: str) -> str:
    row = metric_of(str(key))
    if key in _NAMES:
        return _NAMES[key]
    return row.title if row is not None and row.name == key else str(key).replace("_", " ")


def _numbers(values: Iterable[Any]) -> list[float]:
    return [value for value in values if isinstance(value, int | float)]


def _by_stage(lines: list[RunFacts]) -> dict[str, list[RunFacts]]:
    stages: dict[str, list[RunFacts]] = {}
    for line in lines:
        stages.setdefault(str(line["stage"]), []).append(line)
    return {name: sorted(found, key=lambda line: line["step"]) for name, found in stages.items()}
