"""Charts of runs by what was spent on them, as inline SVG: dots, laws with their bands, a logarithmic axis below.

Like `charts`, they need no script and no network, and follow the light or dark scheme of the page.
"""

import dataclasses
import math
from collections.abc import Sequence
from html import escape
from typing import TypeVar

from sora_jax.reports.charts import compact

_WIDTH, _HEIGHT = 440, 260  # px
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 12, 8, 40  # px, margins that hold the labels
# Seen on white and on black.
_COLOURS = ("#2f6fd6", "#d0651f", "#2f9a5f", "#b04bc0", "#b08c10", "#77818d")
_FEW_TICKS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dots:
    """Points of one kind, which the legend names."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trend:
    """A line, over rising `xs`, with a band from `lows` to `highs` where there are any."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    lows: Sequence[float] = ()
    highs: Sequence[float] = ()


_Points = TypeVar("_Points", Dots, Trend)


def scatter_chart(
    title: str, dots: Sequence[Dots], trends: Sequence[Trend], *, x_name: str, unit: str = "", log_y: bool = True
) -> str:
    """Returns the HTML of a `<figure>`: dots and lines over `x_name`, an axis by logarithm, as the other unless told.

    What is not more than 0 has no place on such an axis and is left out; an empty string without dots.
    """
    dots = [one for one in (_placed(one, log_y=log_y) for one in dots) if one.xs]
    trends = [one for one in (_placed(one, log_y=log_y) for one in trends) if one.xs]
    if not dots:
        return ""
    xs = [x for one in (*dots, *trends) for x in one.xs]
    ys = [y for one in dots for y in one.ys] + [y for one in trends for y in (*one.ys, *one.lows, *one.highs)]
    across = _Scale(xs, start=_LEFT, end=_WIDTH - _RIGHT, log=True)
    up = _Scale(ys, start=_HEIGHT - _BOTTOM, end=_TOP, log=log_y)
    drawn = "".join(_trend(one, across, up) for one in trends)
    drawn += "".join(_dots(one, _COLOURS[number % len(_COLOURS)], across, up) for number, one in enumerate(dots))
    legend = "".join(
        f'<span class="key" style="color: {_COLOURS[number % len(_COLOURS)]}">{escape(one.name)}</span>'
        for number, one in enumerate(dots)
    )
    scale = ", ".join(part for part in (unit, "log scale" if log_y else "") if part)
    return (
        f'<figure class="chart"><figcaption><span>{escape(title)} <small>{escape(scale)}</small></span>'
        f"<span>{legend}</span></figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)} over {escape(x_name)}">'
        f"{_frame(across, up, x_name)}{drawn}</svg></figure>"
    )


class _Scale:
    """Maps values to pixels, with a little room at both ends."""

    def __init__(self, values: Sequence[float], *, start: float, end: float, log: bool):
        self._log = log
        low, high = min(map(self._of, values)), max(map(self._of, values))
        room = 0.04 * (high - low) or 0.5
        self._low, self._high, self._start, self._end = low - room, high + room, start, end

    def _of(self, value: float) -> float:
        return math.log(value) if self._log else value

    def at(self, value: float) -> float:
        """Returns where a value is, px."""
        share = (self._of(value) - self._low) / (self._high - self._low)
        return self._start + (self._end - self._start) * share

    def ticks(self) -> list[float]:
        """Returns round values: 1, 2, 5 times powers of ten on a logarithmic axis that spans some, else even steps."""
        low, high = (math.exp(self._low), math.exp(self._high)) if self._log else (self._low, self._high)
        if self._log:
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            found = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
            found = [value for value in found if low <= value <= high]
            if len(found) >= _FEW_TICKS:
                return found
        power = 10.0 ** math.floor(math.log10((high - low) / _FEW_TICKS))
        step = next(factor * power for factor in (5, 2, 1) if factor * power <= (high - low) / _FEW_TICKS * (1 + 1e-9))
        return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _placed(one: _Points, *, log_y: bool) -> _Points:
    """Returns the points that have a place on both axes, of a line with that of its band."""
    names = [field.name for field in dataclasses.fields(one) if field.name != "name" and getattr(one, field.name)]
    points = zip(*(getattr(one, name) for name in names), strict=True)
    kept = [point for point in points if point[0] > 0 and (not log_y or min(point) > 0)]
    return dataclasses.replace(one, **{name: [point[number] for point in kept] for number, name in enumerate(names)})


def _dots(one: Dots, colour: str, across: _Scale, up: _Scale) -> str:
    return "".join(
        f'<circle cx="{across.at(x):.1f}" cy="{up.at(y):.1f}" r="3.5" fill="{colour}" fill-opacity="0.75"/>'
        for x, y in zip(one.xs, one.ys, strict=True)
    )


def _trend(one: Trend, across: _Scale, up: _Scale) -> str:
    line = "L".join(f"{across.at(x):.1f} {up.at(y):.1f}" for x, y in zip(one.xs, one.ys, strict=True))
    band = ""
    if one.lows:
        there = [f"{across.at(x):.1f} {up.at(y):.1f}" for x, y in zip(one.xs, one.lows, strict=True)]
        back = [f"{across.at(x):.1f} {up.at(y):.1f}" for x, y in zip(one.xs, one.highs, strict=True)]
        band = f'<path d="M{"L".join([*there, *reversed(back)])}Z" fill="var(--soft)" fill-opacity="0.25"/>'
    drawn = f'<path d="M{line}" fill="none" stroke="var(--soft)" stroke-width="1.5">'
    return f"{band}{drawn}<title>{escape(one.name)}</title></path>"


def _frame(across: _Scale, up: _Scale, x_name: str) -> str:
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts = [f'<text x="{middle:.0f}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_name)}</text>']
    for value in up.ticks():
        y = up.at(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{compact(round(value, 12))}</text>')
    for value in across.ticks():
        x = across.at(value)
        parts.append(f'<path class="grid" d="M{x:.1f} {_HEIGHT - _BOTTOM}v4"/>')
        label = f"{value:.0e}".replace("e+", "e") if value >= 1e6 else compact(value)
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{label}</text>')
    return "".join(parts)
