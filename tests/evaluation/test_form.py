"""What is drawn is clean; lumps, bars, second peaks, notches, stains, parts and changing sizes are not."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_jax.data.sources import shapes_world as sw
from sora_jax.evaluation import shapes_oracle as oracle
from sora_jax.evaluation.form import find_faults, fit_template, steep, window_means

COLOURS = itertools.cycle(sw.PALETTE)


def moving(shape, *, side=(32, 32), radius=0.26, ground="grey", frames=3, colour="red", start=None, end=None):
    """Returns a scene of one object, which moves right through the middle by default, and its pixels."""
    reach = radius * min(side) / side[1]
    spec = sw.ObjectSpec(
        colour=colour,
        shape=shape,
        motion="right",
        size=None,
        radius=radius,
        start=start or (0.5, reach),
        end=end or (0.5, 1 - reach),
    )
    scene = sw.Scene(
        objects=(spec,),
        background=ground,
        background_level=sw.BACKGROUNDS[ground],
        height=side[0],
        width=side[1],
        frames=frames,
        fps=8.0,
        bar=None,
    )
    return scene, sw.render(scene)


def painted(contains, *, frames=3, size=32, colour="red", level=120):
    """Returns a clip of the points (row, column), from the middle in px, that `contains(row, column, t)` says."""
    fine = 4
    row, column = (np.mgrid[: size * fine, : size * fine] + 0.5) / fine - size / 2
    cover_THW = np.stack(
        [contains(row, column, t).astype(float).reshape(size, fine, size, fine).mean((1, 3)) for t in range(frames)]
    )
    colour_C = np.array(sw.PALETTE[colour], float)
    return np.round(level + cover_THW[..., None] * (colour_C - level)).astype(np.uint8)


def triangle(row, column, *, radius=8.0, right=0.0):
    return (row < radius) & ((row + radius) / 2 > abs(column - right))


@pytest.mark.parametrize("side", [(16, 16), (24, 40), (40, 24), (32, 32), (64, 64)])
@pytest.mark.parametrize("shape", sw.SHAPES)
def test_every_drawn_shape_is_read_and_clean(shape, side):
    for ground, radius in itertools.product(sw.BACKGROUNDS, (0.15, 0.22, 0.3, 0.36)):
        _, clip = moving(shape, side=side, radius=radius, ground=ground, colour=next(COLOURS))
        reading = oracle.read(clip)
        assert (reading.shape, reading.faults) == (shape, ()), (ground, radius)


@settings(max_examples=15)
@given(shape=st.sampled_from(sw.SHAPES), row=st.floats(12, 20), column=st.floats(12, 20), radius=st.floats(4, 10))
def test_the_template_is_found_where_it_was_drawn(shape, row, column, radius):
    grid = np.arange(32) + 0.5
    mask_1HW = steep(sw.coverage(shape, grid[:, None] - row, grid - column, radius=radius))[None]
    visible_HW = np.ones((32, 32), bool)
    fit = fit_template(shape, mask_1HW, visible_HW)
    np.testing.assert_allclose(fit.place_3T[:, 0], (row, column, radius), atol=0.35)
    assert fit.overlap_T[0] > 0.95
    assert find_faults(fit, mask_1HW, visible_HW) == ()


@settings(max_examples=15)
@given(phases=st.lists(st.floats(0, 6.28), min_size=2, max_size=2), first=st.integers(2, 3), second=st.integers(4, 5))
def test_a_lump_has_no_shape(phases, first, second):
    def lump(row, column, t):
        angle = np.arctan2(row, column)
        wave = np.cos(first * angle + phases[0]) + np.cos(second * angle + phases[1])
        return np.hypot(row, column) < 8 * (1 + 0.25 * wave)

    reading = oracle.read(painted(lump))
    assert (reading.colour, reading.clean) == ("red", False)
    # With four lobes at the corners of a square, phases (0, 3.4), it overlaps with one by just over the least share.
    assert reading.shape is None or (first, second, reading.shape) == (2, 4, "square")


@settings(max_examples=10)
@given(ratio=st.floats(1.5, 3), upright=st.booleans())
def test_a_bar_has_no_shape(ratio, upright):
    def bar(row, column, t):
        long, short = (row, column) if upright else (column, row)
        return (abs(long) < 6 * np.sqrt(ratio)) & (abs(short) < 6 / np.sqrt(ratio))

    assert oracle.read(painted(bar)).shape is None


@pytest.mark.parametrize("apart", [4.5, 6.0, 7.0])
def test_a_second_peak_is_not_clean(apart):
    def peaks(row, column, t):
        return triangle(row, column) | triangle(row - 1.5, column, radius=6.5, right=apart)

    reading = oracle.read(painted(peaks))
    assert "outline" in reading.faults or reading.shape is None
    assert oracle.read(painted(lambda row, column, t: triangle(row, column))).clean


def test_a_notch_is_not_clean():
    def notched(row, column, t):
        return (abs(row) < 7) & (abs(column) < 7) & ~((abs(row) < 2) & (column > 3))

    reading = oracle.read(painted(notched))
    assert (reading.shape, reading.faults) == ("square", ("outline",))


@pytest.mark.parametrize("gap", [1.0, 2.0])
def test_two_halves_are_not_one_object(gap):
    reading = oracle.read(painted(lambda row, column, t: (np.hypot(row, column) < 8) & (abs(column) > gap / 2)))
    assert reading.shape == "circle"
    assert "parts" in reading.faults


@pytest.mark.parametrize("hue", ["red", "cyan", "green"])
def test_a_stain_beside_the_object_is_seen(hue):
    scene, clip = moving("circle")
    level = scene.background_level
    tint = np.round(level + 0.25 * (np.array(sw.PALETTE[hue]) - level)).astype(np.uint8)
    stained = clip.copy()
    stained[1, :5, :5] = tint  # a corner of one frame
    assert oracle.read(clip).clean
    assert oracle.read(stained).faults == ("stain",)


def test_the_opposite_hue_around_the_object_is_a_stain():
    def ring(row, column, t):
        distance = np.hypot(row, column)
        return (distance > 8) & (distance < 14)

    halo = painted(ring, colour="cyan").astype(int) - 120
    disc = painted(lambda row, column, t: np.hypot(row, column) < 8)
    reading = oracle.read(np.clip(disc + 0.3 * halo, 0, 255).astype(np.uint8))
    assert (reading.colour, reading.shape, reading.faults) == ("red", "circle", ("stain",))
    greyer = np.clip(disc + 0.1 * halo, 0, 255).astype(np.uint8)
    assert oracle.read(greyer).clean, "an eye does not see it"


def test_another_hue_within_the_object_is_not_clean():
    _, clip = moving("square", start=(0.5, 0.5), end=(0.5, 0.5))
    clip[:, 12:20, 17:24] = sw.PALETTE["cyan"]
    assert not oracle.read(clip).clean


@pytest.mark.parametrize(("last", "clean"), [(1.0, True), (1.1, True), (1.35, False), (0.7, False)])
def test_an_object_keeps_its_size(last, clean):
    reading = oracle.read(
        painted(lambda row, column, t: np.hypot(row, column) < 8 * (1 + (last - 1) * t / 4), frames=5)
    )
    assert (reading.shape, reading.faults) == ("circle", () if clean else ("size",))


def test_a_shape_that_turns_into_another_is_not_clean():
    turned = np.concatenate([moving("square")[1], moving("triangle")[1]])
    assert not oracle.read(turned).clean


def test_an_object_is_judged_where_it_is_whole():
    _, leaving = moving("square", frames=6, end=(0.5, 1.0))
    assert oracle.read(leaving).faults == ()
    _, cut = moving("circle", frames=3, start=(0.5, 1.0), end=(0.5, 1.0))
    assert oracle.read(cut).faults == ("view",)
    _, gone = moving("circle", frames=9, end=(0.5, 1.5))
    assert "gone" in oracle.read(gone).faults


@pytest.mark.parametrize("shape", sw.SHAPES)
def test_a_little_blur_is_clean_and_much_is_not(shape):
    def blurred(clip, times):
        pixels = clip.astype(float)
        for _ in range(times):
            for axis in (1, 2):
                pixels = (np.roll(pixels, 1, axis) + 2 * pixels + np.roll(pixels, -1, axis)) / 4
        return np.round(pixels).astype(np.uint8)

    _, clip = moving(shape, start=(0.5, 0.5), end=(0.5, 0.5))
    assert [oracle.read(blurred(clip, times)).clean for times in (0, 1, 2, 12)] == [True, True, True, False]


@pytest.mark.parametrize("side", [3, 4])
def test_windows_hold_their_means(side):
    values = np.random.default_rng(0).normal(size=(2, 7, 9))
    windows = np.lib.stride_tricks.sliding_window_view(values, (side, side), axis=(1, 2))
    np.testing.assert_allclose(window_means(values, side), windows.mean(axis=(3, 4)), atol=1e-12)
