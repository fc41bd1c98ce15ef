"""What is made of pixels to be given beside a clip: edges, blur, blocks of colour, boxes and motion."""

import dataclasses

import numpy as np
import pytest

from sora_jax.data.clips import Clip
from sora_jax.data.sources.shapes_world import ShapesWorld, WorldConfig
from sora_jax.preparation.boxes import draw_boxes, find_boxes
from sora_jax.preparation.context import made_beside
from sora_jax.preparation.controls import CONTROLS
from sora_jax.preparation.edges import find_edges, flooded
from sora_jax.preparation.flow import block_flow

WORLD = ShapesWorld(
    WorldConfig(
        seed=3,
        num_clips=60,
        sides=((48, 64),),
        frames=(9,),
        image_share=0.2,
        fps=(8.0,),
        max_objects=2,
        occluder=True,
        split="train",
    )
)


def a_clip(pixels_THWC):
    return Clip(pixels_THWC=pixels_THWC.astype(np.uint8), fps=8.0, captions=("a",), source_id="one")


def textured(frames=4, height=32, width=48, step=(0, 0)):
    """A still texture, or one that goes `step` px (row, column) with each frame."""
    rows, columns = np.indices((height, width))
    pixels = [
        120 + 50 * np.sin((rows - t * step[0]) / 3) + 50 * np.sin((columns - t * step[1]) / 4) for t in range(frames)
    ]
    return np.rint(np.stack(pixels)[..., None].repeat(3, axis=-1))


def make(name, clip, seed=0):
    return CONTROLS[name].make(clip, np.random.default_rng(seed))


@pytest.mark.parametrize("name", ["edges", "blur", "palette", "boxes", "flow"])
def test_each_has_half_the_size_and_is_a_function_of_clip_and_generator(name):
    made, drawn = make(name, WORLD[0], seed=5) or pytest.fail("there is none")
    assert made.pixels_THWC.shape == (len(WORLD[0].pixels_THWC), 24, 32, 3)
    assert made.pixels_THWC.dtype == np.uint8
    assert made.pixels_THWC.std() > 1, "it shows something"
    assert (made.captions, made.source_id, made.fps) == (WORLD[0].captions, WORLD[0].source_id, 8.0)
    again = make(name, WORLD[0], seed=5) or pytest.fail("there is none")
    np.testing.assert_array_equal(again[0].pixels_THWC, made.pixels_THWC)
    assert again[1] == drawn
    assert made_beside(WORLD[0], name, CONTROLS[name], (4, 8, 8)) is not None


def test_a_step_has_one_edge_as_strong_as_it_is_high():
    pixels = np.full((1, 16, 16, 3), 100)
    pixels[:, :, 8:] = 140
    edges_THW = find_edges(pixels.astype(np.uint8), low=39, high=39.9)
    assert edges_THW.sum() == 16, "one pixel wide"
    assert edges_THW[0, :, 7:9].any(axis=1).all()
    assert not find_edges(pixels.astype(np.uint8), low=39, high=40.1).any()


def test_edges_between_colours_of_one_luma_are_seen():
    pixels = np.full((1, 16, 16, 3), (0, 100, 0))
    pixels[:, :, 8:] = (196, 0, 0)
    assert find_edges(pixels.astype(np.uint8), low=90, high=95).any()


def test_weak_edges_stay_where_they_lead_to_strong_ones():
    pixels = np.full((2, 16, 24, 3), 100)
    pixels[:, :8] = np.linspace(110, 160, 24)[:, None]
    pixels[1, :8, 8:] = 114
    edges_THW = find_edges(pixels.astype(np.uint8), low=8, high=50)
    assert np.any(edges_THW[0, 6:10, 2:], axis=0).all()
    assert not edges_THW[1].any(), "frames are not connected"


def test_what_is_open_is_flooded_within_a_frame():
    opened = np.zeros((2, 4, 5), bool)
    opened[:, 0, :] = opened[:, 1, 4] = opened[0, 3, 0] = True
    seeds = np.zeros_like(opened)
    seeds[0, 0, 0] = True
    expected = opened.copy()
    expected[0, 3, 0] = expected[1] = False
    np.testing.assert_array_equal(flooded(seeds, opened), expected)


def test_thresholds_are_drawn_in_their_ranges_and_noted_and_used():
    found = [make("edges", WORLD[1], seed) or pytest.fail("there is none") for seed in range(12)]
    low, high = (np.array([drawn[name] for _, drawn in found]) for name in ("low", "high"))
    assert np.ptp(low) > 12
    assert ((low >= 8) & (low <= 32)).all()
    assert ((high - low >= 12) & (high - low <= 48)).all()
    step = np.full((1, 16, 16, 3), 100)
    step[:, :, 8:] = 145
    for seed in range(12):
        made, drawn = make("edges", a_clip(step), seed) or pytest.fail("there is none")
        assert made.pixels_THWC.any() == (float(drawn["high"]) <= 45)


def test_blur_takes_detail_and_keeps_the_mean():
    noise = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3))
    made, drawn = make("blur", a_clip(noise)) or pytest.fail("there is none")
    assert 0.02 <= float(drawn["blur"]) <= 0.1
    assert made.pixels_THWC.std() < 0.6 * noise.std() / 2
    assert abs(made.pixels_THWC.mean() - noise.mean()) < 2


def test_blocks_have_the_mean_of_what_they_cover():
    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 48, 3))
    made, drawn = make("palette", a_clip(pixels)) or pytest.fail("there is none")
    blocks = int(drawn["blocks"])
    ends = np.rint(np.linspace(0, 16, blocks + 1)).astype(int)
    changes = 1 + np.flatnonzero(np.any(np.diff(made.pixels_THWC[0].astype(int), axis=0), axis=(1, 2)))
    assert changes.tolist() == ends[1:-1].tolist()
    width = int(np.rint(np.linspace(0, 24, round(24 / (16 / blocks)) + 1)).astype(int)[1])
    mean_C = pixels[0, : 2 * ends[1], : 2 * width].mean(axis=(0, 1))
    np.testing.assert_allclose(made.pixels_THWC[0, 0, 0], mean_C, atol=0.51)


def test_boxes_lie_around_what_is_drawn_also_behind_a_bar_and_for_neighbouring_hues():
    bars, pairs = 0, set()
    for index in range(len(WORLD)):
        scene = WORLD.scene(index)
        boxes_NT4 = find_boxes(WORLD[index].pixels_THWC)
        assert len(boxes_NT4) == len(scene.objects), index
        bars += scene.bar is not None
        pairs |= {tuple(sorted(thing.colour for thing in scene.objects))} if len(scene.objects) == 2 else set()
        for progress, frame in ((0.0, 0), (1.0, -1)):
            for thing in scene.objects:
                start, end = np.array(thing.start), np.array(thing.end)
                there = (start + progress * (end - start)) * (scene.height, scene.width)
                middles = (boxes_NT4[:, frame, :2] + boxes_NT4[:, frame, 2:]) / 2
                # A triangle's middle is not that of the box around it, and a bar may hide one side.
                assert np.abs(middles - there).max(axis=1).min() < 0.3 * thing.radius * 48 + 3, index
    assert bars > 3
    assert {("red", "yellow"), ("blue", "purple")} & pairs


def test_what_moves_before_a_still_ground_has_a_box_and_a_moving_camera_none():
    pixels = textured(frames=9)
    for frame in range(9):
        pixels[frame, 8:20, 4 * frame : 4 * frame + 8] = 255
    boxes_NT4 = find_boxes(pixels.astype(np.uint8))
    assert boxes_NT4.shape == (1, 9, 4)
    np.testing.assert_allclose(boxes_NT4[0, 4], (8, 16, 20, 24), atol=2)
    grey = np.full_like(pixels, 90)
    for frame in range(9):
        grey[frame, 8:20, 4 * frame : 4 * frame + 8] = 220
    # What has no hue is found by its motion on a plain ground as well.
    np.testing.assert_array_equal(find_boxes(grey.astype(np.uint8)), boxes_NT4)
    assert make("boxes", a_clip(textured(frames=9, step=(3, 5)))) is None
    assert make("boxes", a_clip(textured(frames=9))) is None
    assert make("boxes", a_clip(np.full((9, 32, 32, 3), 77))) is None


def test_boxes_are_filled_by_the_share_that_they_cover_and_nowhere_where_they_are_unknown():
    boxes_NT4 = np.array([[(1, 2, 4.25, 5.5), (np.nan,) * 4, (-9, 20, -8, 30)]], np.float32)
    drawn_THWC = draw_boxes(boxes_NT4, (6, 8))
    share_HW = np.outer([0, 1, 1, 1, 0.25, 0], [0, 0, 1, 1, 1, 0.5, 0, 0])
    np.testing.assert_array_equal(drawn_THWC[0], np.rint(255 * share_HW[..., None]).repeat(3, axis=-1))
    assert not drawn_THWC[1].any()
    # Beyond the rim a box still shows, as a pixel of it.
    assert np.argwhere(drawn_THWC[2, ..., 0]).tolist() == [[0, 7]]


def test_the_smaller_of_two_boxes_is_seen_on_the_larger():
    drawn_HWC = draw_boxes(np.array([[(0, 0, 6, 8)], [(2, 2, 4, 4)]], np.float32), (6, 8))[0]
    np.testing.assert_array_equal(drawn_HWC[2:4, 2:4], np.broadcast_to((255, 150, 0), (2, 2, 3)))
    assert (drawn_HWC == 255).all(axis=-1).sum() == 6 * 8 - 4


@pytest.mark.parametrize("step", [(0, 2), (-1.5, 0), (1, -3)])
def test_flow_is_how_far_blocks_go(step):
    luma_THW = textured(step=step)[..., 0]
    flow_FRK2 = block_flow(luma_THW, block=4)
    assert flow_FRK2.shape == (3, 8, 12, 2)
    inner = flow_FRK2[:, 2:-2, 2:-2]
    np.testing.assert_allclose(np.median(inner, axis=(0, 1, 2)), step, atol=0.25)


def test_flow_of_what_stands_still_is_white_and_an_image_has_none():
    made, _ = make("flow", a_clip(textured())) or pytest.fail("there is none")
    assert (made.pixels_THWC == 255).all()
    assert make("flow", a_clip(textured(frames=1))) is None


def test_colours_of_flow_tell_the_direction_and_the_speed_in_seconds():
    shown = {}
    for name, step in {"right": (0, 4), "left": (0, -4), "down": (4, 0)}.items():
        made, _ = make("flow", a_clip(textured(step=step))) or pytest.fail("there is none")
        shown[name] = np.median(made.pixels_THWC, axis=(0, 1, 2))
    assert shown["right"][0] > shown["right"][1:].max() + 30
    assert shown["left"][0] < shown["left"][1:].min() - 30
    assert shown["down"][1] > max(shown["down"][0], shown["down"][2])
    slow = dataclasses.replace(a_clip(textured(step=(0, 4))), fps=2.0)
    made, _ = make("flow", slow) or pytest.fail("there is none")
    assert np.median(made.pixels_THWC[..., 1]) > shown["right"][1] + 20
