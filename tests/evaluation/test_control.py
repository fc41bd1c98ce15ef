"""Edges and boxes of clips against what was given."""

import numpy as np
import pytest

from sora_jax.data.sources.shapes_world import ObjectSpec, Scene, render
from sora_jax.evaluation.control import box_centre_error, edges_f1
from sora_jax.preparation.boxes import find_boxes


def drawn(colour="red", shape="square", shift=0.0, pair=False):
    things = [
        ObjectSpec(
            colour=colour,
            shape=shape,
            motion="right",
            size="small",
            radius=0.2,
            start=(0.3, 0.3 + shift),
            end=(0.3, 0.6 + shift),
        )
    ]
    if pair:
        things.append(
            ObjectSpec(
                colour="blue",
                shape="circle",
                motion="still",
                size=None,
                radius=0.15,
                start=(0.75, 0.5),
                end=(0.75, 0.5),
            )
        )
    return render(
        Scene(
            objects=tuple(things),
            background="grey",
            background_level=120,
            height=40,
            width=40,
            frames=5,
            fps=8.0,
            bar=None,
        )
    )


def test_edges_of_another_colour_are_the_same_and_of_another_place_or_shape_are_not():
    assert edges_f1(drawn(), drawn()) == 1
    assert (edges_f1(drawn(), drawn("purple")) or 0) > 0.97
    assert (edges_f1(drawn(), drawn(shift=0.025)) or 0) > 0.97, "1 px is within"
    assert 0 < (edges_f1(drawn(), drawn(shift=0.125)) or 0) < 0.75
    assert (edges_f1(drawn(), drawn(shape="triangle")) or 0) < 0.75


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("way", [-1, 1])
def test_one_pixel_to_any_side_is_within_and_two_are_not(axis, way):
    plain = np.full((1, 20, 20, 3), 100, np.uint8)
    plain[:, 7:13, 7:13] = 200
    assert edges_f1(plain, np.roll(plain, way, axis=axis)) == 1
    assert (edges_f1(plain, np.roll(plain, 2 * way, axis=axis)) or 0) < 0.9


def test_without_edges_there_is_nothing_to_follow():
    plain = np.full((5, 40, 40, 3), 120, np.uint8)
    assert edges_f1(plain, plain) is None
    assert edges_f1(drawn(), plain) == 0


@pytest.mark.parametrize("pair", [False, True])
def test_centres_are_off_by_what_they_are_moved(pair):
    boxes_NT4 = find_boxes(drawn(pair=pair))
    assert len(boxes_NT4) == 1 + pair
    near = box_centre_error(boxes_NT4, drawn("green", "circle", pair=pair))
    assert near.px < 0.5
    assert near.lost == 0
    moved = box_centre_error(boxes_NT4[::-1], drawn(shift=0.1, pair=pair))
    assert moved.px == pytest.approx(4 / (1 + pair), abs=0.3)


def test_what_is_not_seen_counts_a_whole_side():
    boxes_NT4 = find_boxes(drawn(pair=True))
    one_lost = box_centre_error(boxes_NT4, drawn())
    assert one_lost.lost == 0.5
    assert one_lost.px == pytest.approx(20, abs=0.3)
    assert box_centre_error(boxes_NT4[:1], np.full((5, 40, 40, 3), 120, np.uint8)) == (40, 1)
    some = drawn()
    some[3:] = 120
    gone = box_centre_error(boxes_NT4[:1], some)
    assert gone.lost == pytest.approx(0.4)
    assert gone.px == pytest.approx(0.4 * 40, abs=0.5)


def test_frames_without_a_given_box_do_not_count():
    half = np.where(np.arange(5)[None, :, None] < 3, find_boxes(drawn()), np.nan)
    some = drawn()
    some[3:] = 120
    error = box_centre_error(half, some)
    assert error.px < 0.5
    assert error.lost == 0
