"""Clips whose motion is known have the scores that follow from it."""

import numpy as np
import pytest

from sora_jax.evaluation import motion

SIZE = (32, 40)


def disc(speed, frames=5):
    """Returns a clip of a soft white disc that moves right by `speed` px a frame."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    distance = np.stack([np.hypot(rows - 16, columns - 10 - speed * time) for time in range(frames)])
    return np.repeat((255 / (1 + np.exp(distance - 6)))[..., None], 3, axis=-1).astype(np.uint8)


def test_flicker_is_the_change_of_neighbours():
    clip = np.zeros((4, 8, 8, 3), np.uint8)
    assert motion.temporal_flickering(clip) == 1
    clip[1::2] = 51
    assert motion.temporal_flickering(clip) == pytest.approx(0.8)
    assert motion.temporal_flickering(clip[:1]) is None


def test_what_changes_evenly_is_smooth_and_what_flickers_is_not():
    even = np.broadcast_to(np.arange(0, 250, 50, dtype=np.uint8)[:, None, None, None], (5, 8, 8, 3))
    assert motion.smoothness_blend(even) == 1
    flickering = even.copy()
    flickering[1] += 51
    assert motion.smoothness_blend(flickering) == pytest.approx(1 - 0.2 / 2)
    assert motion.smoothness_blend(even[:2]) is None


def test_flow_is_as_long_as_the_motion():
    px = {speed: motion.dynamic_flow(disc(speed), fps=1.0) * SIZE[0] for speed in (0, 1, 2, 3)}
    assert px[0] == 0
    assert [px[speed] for speed in (1, 2, 3)] == pytest.approx([1, 2, 3], rel=0.35)
    assert motion.dynamic_flow(disc(2), fps=8.0) * SIZE[0] == pytest.approx(8 * px[2])
    assert motion.dynamic_flow(disc(1)[:1], fps=1.0) is None
    assert motion.dynamic_flow(disc(2)[[2, 0, 4, 1, 3]], fps=1.0) * SIZE[0] > 1.5 * px[2], "frames are shuffled"


def test_flow_points_where_things_go():
    first, second = (frame[..., 0].astype(np.float32) / 255 for frame in disc(1.5)[:2])
    flow = np.asarray(motion.optical_flow(first, second))
    edge = np.abs(np.gradient(first, axis=1)) > 0.05
    assert flow[edge].mean(axis=0) == pytest.approx([0, 1.5], abs=0.25)


def test_drift_sees_a_picture_fade_and_hardly_sees_a_thing_move():
    fading = np.stack([np.full((8, 8, 3), 200 - 10 * time, np.uint8) for time in range(6)])
    assert motion.drift(fading, 2) == pytest.approx(20 / 2 / 255)
    assert motion.drift(fading, 5) == pytest.approx(50 / 2 / 255)
    assert motion.drift(fading, 10) is None
    assert motion.drift(disc(2), 2) < 1e-4


def test_drift_of_latents_counts_frames_of_pixels():
    latent = np.random.default_rng(0).normal(size=(4, 3, 5, 2)).astype(np.float32)
    latent -= latent.mean(axis=(1, 2), keepdims=True)
    wandering = latent[:1] + np.array([0, 1, 2, 3])[:, None, None, None]
    # Of the four numbers of a frame, the means of two channels and their deviations, the means move.
    assert [motion.latent_drift(wandering, frames, stride=4) for frames in (5, 10)] == pytest.approx([0.5, 1.0])
    assert motion.latent_drift(wandering, 2, stride=4) is None, "less than a frame of the latent"
    assert motion.latent_drift(wandering, 20, stride=4) is None, "more than there are"
    louder = latent[:1] * np.array([1, 2, 3, 4])[:, None, None, None]
    assert motion.latent_drift(louder, 5, stride=4) == pytest.approx(latent[0].std(axis=(0, 1)).mean() / 2)
    assert motion.latent_drift(np.repeat(latent[:1], 4, axis=0), 5, stride=4) == 0
