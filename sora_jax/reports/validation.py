"""The held-out loss in a run's report: its curve, and heat maps of what it is made of."""

from collections.abc import Sequence
from typing import Any

from sora_jax.reports.charts import Series, heat_map, line_chart

# How the names of such metrics begin.
VALIDATED = "heldout_"
# Of heat maps: what their rows are, how the names of these begin, and what comes before each.
_MAPS = (
    ("by noise level", f"{VALIDATED}loss_level_", ""),
    ("by size", f"{VALIDATED}loss_size_", ""),
    ("by duration", f"{VALIDATED}loss_frames_", "frames "),
)


def heldout_charts(lines: Sequence[dict[str, Any]]) -> str:
    """The HTML of a stage's held-out loss, from its lines of metrics; an empty string where it was not measured."""
    found = [line for line in lines if isinstance(line.get(f"{VALIDATED}loss"), float)]
    if not found:
        return ""
    steps, last = [line["step"] for line in found], found[-1]
    error = last.get(f"{VALIDATED}stderr") or 0.0
    curve = Series(name="", xs=steps, ys=[line[f"{VALIDATED}loss"] for line in found])
    charts = line_chart("Held-out loss", [curve], unit=f"± {error:.2g}, standard error over clips")
    for title, start, words in _MAPS:
        keys = [key for key in last if key.startswith(start)]
        rows = [(f"{words}{key.removeprefix(start)}", [line.get(key) for line in found]) for key in keys]
        charts += heat_map(f"Held-out loss {title}", steps, rows)
    return charts
