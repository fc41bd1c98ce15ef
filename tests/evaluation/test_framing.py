"""How a subject lies in its frame, read from pixels, against drawn clips whose cuts are known."""

import dataclasses

import numpy as np
import pytest

from sora_jax.data.sources.shapes_world import ShapesWorld, WorldConfig, render
from sora_jax.evaluation.framing import CUT, calibrate, known_framing, read_framing

WORLD = WorldConfig(
    seed=7,
    num_clips=150,
    sides=((24, 40), (40, 24)),
    frames=(3, 5),
    image_share=0.3,
    fps=(8.0,),
    max_objects=1,
    occluder=False,
    split="train",
)
SQUARE = (24, 24)


def scene_of(shape, *, start, end=None, radius=0.26, size=(24, 40), frames=2):
    """Returns a scene whose object goes from `start` to `end`, shares of (height, width)."""
    scene = ShapesWorld(dataclasses.replace(WORLD, image_share=0.0)).scene(0)
    spec = dataclasses.replace(scene.objects[0], shape=shape, radius=radius, start=start, end=end or start)
    return dataclasses.replace(scene, objects=(spec,), height=size[0], width=size[1], frames=frames)


def degraded(pixels_THWC, generator):
    """Returns a clip that was blurred over three px each way, faded, and has noise of 8 of 255."""
    blurred = pixels_THWC.astype(np.float32)
    for axis in (1, 2):
        padded = np.pad(blurred, [(1, 1) if one == axis else (0, 0) for one in range(4)], mode="edge")
        one, two, three = (np.take(padded, np.arange(k, k + blurred.shape[axis]), axis=axis) for k in range(3))
        blurred = 0.25 * one + 0.5 * two + 0.25 * three
    faded = 120 + 0.85 * (blurred - 120) + generator.normal(0, 8, blurred.shape)
    return np.clip(faded, 0, 255).astype(np.uint8)


def test_the_truth_of_a_crop_is_the_geometry_of_its_object():
    # A circle of 6.24 px with its centre on the middle row, from the middle of the frame to its right edge.
    scene = scene_of("circle", start=(0.5, 0.5), end=(0.5, 1.0))
    truth = known_framing(scene)
    radius = 0.26 * 24
    assert truth.margin_T == pytest.approx([(12 - radius) / radius, -1.0])
    assert truth.in_view_T == pytest.approx([1.0, 0.5], abs=0.01)
    assert not truth.whole
    cropped = known_framing(scene, left=8, size=SQUARE)
    assert cropped.margin_T == pytest.approx([(12 - radius) / radius, (24 - 32) / radius - 1])
    assert cropped.in_view_T == pytest.approx([1.0, 0.0], abs=0.05)


def test_every_drawn_clip_is_whole_and_most_squares_of_them_are_cut():
    world = ShapesWorld(WORLD)
    scenes = [world.scene(index) for index in range(len(world))]
    assert all(known_framing(scene).whole for scene in scenes)
    cut = [not known_framing(s, top=(s.height - 24) // 2, left=(s.width - 24) // 2, size=SQUARE).whole for s in scenes]
    assert 0.5 < np.mean(cut) < 0.8


@pytest.mark.parametrize("shape", ["circle", "square", "triangle"])
@pytest.mark.parametrize("beyond", [0.0, 0.3, 0.6])
def test_what_an_edge_cuts_off_is_read(shape, beyond):
    # To the right edge, where the box reaches `beyond` radii over it; downwards as well, so that its size shows.
    radius = 0.32 * 24
    start, end = (1 - (1 - beyond) * radius / 40), 0.5
    scene = scene_of(shape, start=(0.4, start), end=(0.6, end), radius=0.32, frames=3)
    truth, read = known_framing(scene), read_framing(render(scene))
    assert read is not None
    assert read.margin_T == pytest.approx(truth.margin_T, abs=0.08)
    assert read.in_view_T == pytest.approx(truth.in_view_T, abs=0.05)
    assert read.whole == truth.whole == (beyond == 0.0 or truth.margin_T.min() >= -CUT)


def test_a_clip_without_a_subject_is_not_read():
    generator = np.random.default_rng(0)
    assert read_framing(np.full((2, 24, 40, 3), 120, np.uint8)) is None
    assert read_framing(generator.integers(0, 255, (2, 24, 40, 3), np.uint8)) is None


def test_the_reading_is_right_on_drawn_clips_with_known_cuts():
    found = calibrate(ShapesWorld(dataclasses.replace(WORLD, num_clips=12)))
    assert found["clips"] == 24
    assert found["right"] == 1.0
    assert 0.2 < found["cut"] < 0.45, "half of them are whole as drawn"


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [lambda clip, _: clip, degraded])
def test_the_reading_is_right_on_ninety_nine_of_a_hundred_even_if_spoiled(spoil):
    world, generator = ShapesWorld(WORLD), np.random.default_rng(0)
    right = []
    for index in range(len(world)):
        scene, clip = world.scene(index), world[index].pixels_THWC
        top, left = (scene.height - 24) // 2, (scene.width - 24) // 2
        pairs = [
            (known_framing(scene), clip),
            (known_framing(scene, top=top, left=left, size=SQUARE), clip[:, top : top + 24, left : left + 24]),
        ]
        for truth, pixels_THWC in pairs:
            # Within a quarter of a pixel of the least cut that counts, neither answer is wrong.
            if abs(truth.margin_T.min() + CUT) > 0.25 / (0.26 * 24):
                read = read_framing(spoil(pixels_THWC, generator))
                right.append(read is not None and read.whole == truth.whole)
    assert len(right) > 270
    assert np.mean(right) >= 0.99
