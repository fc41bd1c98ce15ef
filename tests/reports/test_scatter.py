import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_jax.reports.scatter import Dots, Trend, scatter_chart

WIDTH, HEIGHT = 440, 260
positive = st.floats(1e-6, 1e15)


def chart(dots, trends=(), **options) -> ET.Element:
    """Parsed, so that anything that is not well formed fails."""
    return ET.fromstring(scatter_chart("Loss & more", dots, trends, x_name="FLOP", **options))


def places(figure: ET.Element) -> list[tuple[float, float]]:
    return [(float(one.attrib["cx"]), float(one.attrib["cy"])) for one in figure.iter("circle")]


def labels(figure: ET.Element) -> list[str]:
    return [one.text or "" for one in figure.iter("text")]


@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=30), st.booleans())
def test_any_dots_stay_inside_the_picture(points, log_y):
    xs, ys = zip(*points, strict=True)
    found = places(chart([Dots(name="a", xs=xs, ys=ys)], log_y=log_y))
    assert len(found) == len(points)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in found)


def test_equal_factors_are_equal_lengths_and_more_is_higher():
    (x0, y0), (x1, y1), (x2, y2) = places(chart([Dots(name="a", xs=[1e10, 1e11, 1e12], ys=[0.1, 1.0, 10.0])]))
    assert (x1 - x0, y0 - y1) == (pytest.approx(x2 - x1, abs=0.2), pytest.approx(y1 - y2, abs=0.2))
    assert (x0 < x1, y0 > y1) == (True, True)


def test_what_has_no_logarithm_is_left_out():
    dots = Dots(name="a", xs=[1.0, 2.0, 3.0], ys=[0.0, -1.0, 2.0])
    assert len(places(chart([dots]))) == 1
    assert len(places(chart([dots], log_y=False))) == 3
    assert scatter_chart("a", [Dots(name="a", xs=[0.0], ys=[1.0])], [], x_name="FLOP") == ""
    flat = Trend(name="a law without a slope, less its floor", xs=[1.0, 2.0], ys=[0.0, 0.0])
    assert len(list(chart([dots], [flat]).iter("path"))) == len(list(chart([dots]).iter("path")))
    half = Trend(name="b", xs=[1.0, 2.0, 3.0], ys=[0.0, 1.0, 2.0], lows=[-1.0, 0.5, 1.0], highs=[1.0, 2.0, 3.0])
    drawn = [path.attrib["d"] for path in chart([dots], [half]).iter("path") if path.find("title") is not None]
    assert [line.count("L") for line in drawn] == [1]


def test_axes_have_round_numbers_over_decades_and_within_one():
    over = labels(chart([Dots(name="a", xs=[1e10, 1e13], ys=[0.301, 0.352])]))
    assert {"1e10", "1e11", "1e12", "1e13"} <= set(over)
    assert {"0.31", "0.32", "0.33"} <= set(over) or {"0.32", "0.34"} <= set(over)
    assert "FLOP" in over


def test_a_band_goes_there_and_back_and_every_kind_has_a_colour_and_a_name():
    trend = Trend(name="the law", xs=[1.0, 2.0, 4.0], ys=[3.0, 2.0, 1.0], lows=[2.9, 1.9, 0.9], highs=[3.1, 2.1, 1.1])
    kinds = [Dots(name=f"width {n}", xs=[1.0, 4.0], ys=[n, n]) for n in (1, 2)]
    figure = chart(kinds, [trend])
    band = next(path.attrib["d"] for path in figure.iter("path") if "fill-opacity" in path.attrib)
    corners = [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", band)]
    assert len(corners) == 6
    assert corners[0][0] == corners[-1][0]
    assert corners[0][1] > corners[-1][1], "the lower edge first"
    assert len({one.attrib["fill"] for one in figure.iter("circle")}) == 2
    assert [one.text for one in figure.iter("span") if one.attrib.get("class") == "key"] == ["width 1", "width 2"]
