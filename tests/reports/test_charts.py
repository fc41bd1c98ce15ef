import itertools
import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_jax.reports.charts import Series, compact, histogram, line_chart, running_mean

WIDTH, HEIGHT = 440, 210
values = st.one_of(st.none(), st.floats(-1e6, 1e6), st.floats(1e-9, 1e9))


def chart(ys, **options) -> ET.Element:
    """Parsed, so that anything that is not well formed fails."""
    series = [Series(name="a", xs=list(range(len(ys))), ys=ys, smooth=options.pop("smooth", False))]
    return ET.fromstring(line_chart("Loss", series, unit="nats", **options))


def points(figure: ET.Element) -> list[list[tuple[float, float]]]:
    lines = [path.attrib["d"] for path in figure.iter("path") if "line" in path.attrib["class"]]
    return [[(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", line)] for line in lines]


@given(st.lists(values, min_size=1, max_size=80), st.booleans(), st.booleans())
def test_any_curve_stays_inside_the_picture(ys, smooth, zero):
    if all(y is None for y in ys):
        assert line_chart("Loss", [Series(name="", xs=[0.0] * len(ys), ys=ys)], unit="") == ""
        return
    for line in points(chart(ys, smooth=smooth, zero=zero)):
        assert len(line) == sum(y is not None for y in ys)
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in line)


def test_higher_values_are_higher_and_gaps_break_the_line():
    (line,) = points(chart([1.0, 3.0, None, 2.0]))
    (x0, y0), (x1, y1), (x3, y3) = line
    assert y1 < y3 < y0
    assert x1 - x0 == pytest.approx((x3 - x1) / 2, abs=0.2)
    path = next(p for p in chart([1.0, 3.0, None, 2.0]).iter("path") if "line" in p.attrib["class"])
    assert path.attrib["d"].count("M") == 2


def test_a_fall_over_decades_is_drawn_by_logarithm():
    figure = chart([10.0 ** (-i) for i in range(5)])
    (line,) = points(figure)
    falls = [b[1] - a[1] for a, b in itertools.pairwise(line)]
    assert max(falls) - min(falls) < 0.3
    assert "log scale" in "".join(figure.itertext())


def test_a_share_has_a_fixed_axis_in_percent():
    figure = chart([0.5, 0.5], share=True)
    labels = [text.text for text in figure.iter("text")]
    assert {"0%", "50%", "100%"} <= set(labels)
    bottom, top = HEIGHT - 26, 8
    assert points(figure)[0][0][1] == pytest.approx((top + bottom) / 2)


def test_constant_up_to_rounding_is_a_flat_line():
    (line,) = points(chart([0.1, 0.1 + 1e-17, 0.1 - 1e-16, 0.1]))
    assert len({y for _, y in line}) == 1


def test_long_curves_are_thinned_with_their_end():
    ys = [float(i) for i in range(20_000)]
    (line,) = points(chart(ys))
    assert len(line) < 600
    assert line[-1][0] == pytest.approx(WIDTH - 10)


def test_titles_and_names_are_escaped():
    series = [Series(name="<i>", xs=[1], ys=[2]), Series(name="&", xs=[1], ys=[2])]
    page = line_chart("<b>", series, unit="<u>")
    assert "<i>" not in page
    assert "<u>" not in page
    assert page.count("<b>") == 2  # the last values
    assert {"&lt;b&gt;", "&lt;i&gt;", "&lt;u&gt;", "&amp;"} <= set(re.findall(r"(?:&\w+;b?i?u?)+", page))


def test_running_mean_is_unbiased_keeps_gaps_and_follows():
    assert running_mean([5.0, 5.0, None, 5.0]) == [5.0, 5.0, None, 5.0]
    smooth = running_mean([0.0] * 100 + [1.0] * 100)
    assert smooth[99] == 0
    assert smooth[-1] is not None
    assert 0.99 < smooth[-1] < 1


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.012345, "0.0123"), (45.67, "45.7"), (8123.4, "8123"), (12345, "12.3k"), (4.5e6, "4.5M")],
)
def test_numbers_are_short(value, shown):
    assert compact(value) == shown
    assert compact(math.inf) == "inf"


def test_a_histogram_counts_every_value():
    chart = histogram("tokens", [1.0, 1.0, 1.0, 2.0], unit="per clip")
    heights = sorted(float(part.split('"')[0]) for part in chart.split('height="')[1:])
    assert len(heights) == 2
    assert heights[1] == pytest.approx(3 * heights[0], rel=0.02)
    assert "1 to 2" in chart
    assert histogram("tokens", [], unit="") == ""
    assert histogram("tokens", [5.0], unit="").count("<rect") == 1
    assert "log scale" in histogram("tokens", [1.0, 1000.0], unit="")
