"""Line charts and histograms as inline SVG: a page that holds them needs no script and no network.

Colours are CSS variables of the page (`--line-1`, `--line-2`, `--grid`, `--soft`), so that they follow its light
or dark scheme.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 440, 210  # px
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 10, 8, 26  # px, margins that hold the labels
_BINS = 24  # of a histogram
_MOST_POINTS = 500  # of a line; more than there are pixels
# A curve over more than this ratio shows its end only on a logarithmic axis.
_LOG_RATIO = 30.0


@dataclass(frozen=True, kw_only=True)
class Series:
    """One curve: `ys` over `xs` (rising); a y of None is a gap. `smooth` adds a running mean to faint values."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float | None]
    smooth: bool = False


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """Maps [low, high] to pixels, linearly or by logarithm; values beyond are drawn at the edge."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self, count: int) -> list[float]:
        if self.log:
            return _log_ticks(self.low, self.high)
        step = _round_up((self.high - self.low) / count)
        first = math.ceil(self.low / step - 1e-9)
        return [step * i for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def line_chart(title: str, series: Sequence[Series], *, unit: str, share: bool = False, zero: bool = False) -> str:
    """The HTML of a `<figure>`: the title with the last values, and the curves over the step.

    `unit` is shown beside the title; `share` draws values in [0, 1] as percent on a fixed axis; `zero` starts
    the axis at zero. Curves without a value are left out; an empty string if none has one.
    """
    series = [curve for curve in series if any(y is not None for y in curve.ys)]
    if not series:
        return ""
    y_axis = _Axis(low=0, high=1, start=_HEIGHT - _BOTTOM, end=_TOP) if share else _y_axis(series, zero=zero)
    x_axis = _x_axis(series)
    legend = ""
    for number, curve in enumerate(series, 1):
        last = next(y for y in reversed(curve.ys) if y is not None)
        shown = f"{last:.1%}" if share else compact(last)
        name = f"{escape(curve.name)} " if len(series) > 1 else ""
        legend += f'<span class="key" style="color: var(--line-{number})">{name}<b>{shown}</b></span>'
    lines = "".join(_curve(curve, number, x_axis, y_axis) for number, curve in enumerate(series, 1))
    unit = ", ".join(part for part in (unit, "log scale" if y_axis.log else "") if part)
    return (
        f'<figure class="chart"><figcaption><span>{escape(title)} <small>{escape(unit)}</small></span>'
        f"<span>{legend}</span></figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)} over steps">'
        f"{_grid(x_axis, y_axis, share=share)}{lines}</svg></figure>"
    )


def histogram(title: str, values: Sequence[float], *, unit: str) -> str:
    """The HTML of a `<figure>`: how many of the values lie where; an empty string without values.

    Bins are equally wide, or equally wide in logarithm where positive values span more than a factor of 30.
    """
    if not values:
        return ""
    low, high = min(values), max(values)
    log = low > 0 and high / low > _LOG_RATIO
    if high == low:
        low, high = low - 0.5, high + 0.5
    places = _Axis(low=low, high=high, start=0, end=_BINS, log=log)
    counts = [0] * _BINS
    for value in values:
        counts[min(int(places.at(value)), _BINS - 1)] += 1
    x_axis = _Axis(low=low, high=high, start=_LEFT, end=_WIDTH - _RIGHT, log=log)
    y_axis = _Axis(low=0, high=1.05 * max(counts), start=_HEIGHT - _BOTTOM, end=_TOP)
    step = (_WIDTH - _RIGHT - _LEFT) / _BINS
    bars = "".join(
        f'<rect class="bar" x="{_LEFT + i * step + 0.5:.1f}" y="{y_axis.at(n):.1f}" width="{step - 1:.1f}" '
        f'height="{y_axis.at(0) - y_axis.at(n):.1f}"/>'
        for i, n in enumerate(counts)
        if n
    )
    unit = ", ".join(part for part in (unit, "log scale" if log else "") if part)
    return (
        f'<figure class="chart"><figcaption><span>{escape(title)} <small>{escape(unit)}</small></span>'
        f'<span class="key">{compact(min(values))} to {compact(max(values))}</span></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="histogram of {escape(title)}">'
        f"{_grid(x_axis, y_axis, share=False, below='')}{bars}</svg></figure>"
    )


def heat_map(title: str, xs: Sequence[float], rows: Sequence[tuple[str, Sequence[float | None]]]) -> str:
    """The HTML of a `<figure>`: a row of cells over the steps `xs` for each (name, values); empty without rows.

    A cell is the darker the lower its value is among those of its row, whose last value stands at its end.
    """
    if not rows:
        return ""
    left, right, top = _LEFT + 16, _WIDTH - _LEFT, _TOP
    high, wide = min(24.0, (_HEIGHT - _TOP - _BOTTOM) / len(rows)), (right - left) / len(xs)
    parts = []
    for number, (name, values) in enumerate(rows):
        known = [value for value in values if value is not None]
        if not known:
            continue
        low, span = min(known), (max(known) - min(known)) or 1.0
        y = top + number * high
        for place, value in enumerate(values):
            if value is not None:
                parts.append(
                    f'<rect class="bar" x="{left + place * wide:.1f}" y="{y:.1f}" width="{wide:.2f}" '
                    f'height="{high - 1:.1f}" opacity="{1 - 0.85 * (value - low) / span:.2f}">'
                    f"<title>{escape(name)}, step {compact(xs[place])}: {compact(value)}</title></rect>"
                )
        middle = y + high / 2 + 4
        parts.append(f'<text x="{left - 6}" y="{middle:.1f}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<text x="{right + 4}" y="{middle:.1f}">{compact(known[-1])}</text>')
    bottom = top + len(rows) * high + 16
    ends = f"{compact(xs[0])} to {compact(xs[-1])}"
    parts.append(f'<text x="{left}" y="{bottom:.1f}">step {ends}, the darker the lower; at the end: last</text>')
    return (
        f'<figure class="chart"><figcaption><span>{escape(title)}</span></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {bottom + 8:.0f}" role="img" aria-label="{escape(title)} over steps">'
        f"{''.join(parts)}</svg></figure>"
    )


def compact(value: float) -> str:
    """The number in at most about five characters: 0.0123, 45.6, 12.3k, 4.5M."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if suffix == 'k' else limit):.3g}{suffix}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def running_mean(ys: Sequence[float | None]) -> list[float | None]:
    """Exponential mean over about a thirtieth of the curve, unbiased at its start; gaps stay gaps."""
    decay = 1 - 1 / (1 + len(ys) / 30)
    total = weight = 0.0
    smooth: list[float | None] = []
    for y in ys:
        if y is not None:
            total, weight = decay * total + y, decay * weight + 1
        smooth.append(None if y is None else total / weight)
    return smooth


def _x_axis(series: Sequence[Series]) -> _Axis:
    xs = [x for curve in series for x in curve.xs]
    low, high = min(xs), max(xs)
    return _Axis(low=low, high=high if high > low else low + 1, start=_LEFT, end=_WIDTH - _RIGHT)


def _y_axis(series: Sequence[Series], *, zero: bool) -> _Axis:
    """An axis for the smooth curve and all but the wildest raw values."""
    shown: list[float] = []
    for curve in series:
        values = sorted(y for y in curve.ys if y is not None)
        cut = len(values) // 50
        shown += values[cut : len(values) - cut]
        if curve.smooth:
            shown += [y for y in running_mean(curve.ys) if y is not None]
    low, high = min(shown), max(shown)
    start, end = _HEIGHT - _BOTTOM, _TOP
    if not zero and low > 0 and high / low > _LOG_RATIO:
        return _Axis(low=low, high=high, start=start, end=end, log=True)
    if zero or 0 <= low < 0.5 * high:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 1e-6 * abs(high) or high == low:
        low, high = low - abs(low) / 10 - 0.1, high + abs(high) / 10 + 0.1
    return _Axis(low=low, high=high + (high - low) / 30, start=start, end=end)


def _curve(curve: Series, number: int, x_axis: _Axis, y_axis: _Axis) -> str:
    if not curve.smooth or len(curve.ys) < 8:
        return _path(curve.xs, curve.ys, x_axis, y_axis, f"line line-{number}")
    raw = _path(curve.xs, curve.ys, x_axis, y_axis, f"line line-{number} faint")
    return raw + _path(curve.xs, running_mean(curve.ys), x_axis, y_axis, f"line line-{number}")


def _path(xs: Sequence[float], ys: Sequence[float | None], x_axis: _Axis, y_axis: _Axis, name: str) -> str:
    stride = math.ceil(len(ys) / _MOST_POINTS)
    keep = sorted({*range(0, len(ys), stride), len(ys) - 1})
    commands, pen = [], "M"
    for x, y in ((xs[i], ys[i]) for i in keep):
        if y is None:
            pen = "M"
            continue
        commands.append(f"{pen}{x_axis.at(x):.1f} {y_axis.at(y):.1f}")
        pen = "L"
    # A single point has no length; a round cap makes it a dot.
    return f'<path class="{name}" d="{"".join(commands)}{"h0" if len(commands) == 1 else ""}"/>'


def _grid(x_axis: _Axis, y_axis: _Axis, *, share: bool, below: str = "step") -> str:
    parts = [f'<text x="{_LEFT - 6}" y="{_HEIGHT - 8}" text-anchor="end">{below}</text>']
    for value in y_axis.ticks(4):
        y = y_axis.at(value)
        label = f"{value:.0%}" if share else compact(round(value, 12))
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for value in x_axis.ticks(5):
        x = x_axis.at(value)
        anchor = "end" if x > _WIDTH - 3 * _RIGHT else "middle"
        parts.append(f'<path class="grid" d="M{x:.1f} {_HEIGHT - _BOTTOM}v4"/>')
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 8}" text-anchor="{anchor}">{compact(value)}</text>')
    return "".join(parts)


def _round_up(value: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value * (1 - 1e-9))


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    decades = [10.0**power for power in powers]
    if len(decades) <= 4:
        decades = [factor * decade for decade in decades for factor in (1, 3)]
    return [value for value in decades if low <= value <= high]
