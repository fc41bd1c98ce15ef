"""Random features: the same on every machine, and further apart the more a clip is damaged."""

import jax
import numpy as np
import pytest

from sora_jax.evaluation.distances import frechet_distance
from sora_jax.models.random_features import FEATURES, random_features

features = jax.jit(random_features)


def moving_blobs(clips=12, frames=5, side=24):
    """Smooth clips in [-1, 1], (B, T, H, W, 3): a coloured blob that drifts over a plain ground."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), axis=-1)
    made = []
    for _ in range(clips):
        start, drift, colour = rng.uniform(4, side - 4, 2), rng.normal(size=2), rng.uniform(-1, 1, 3)
        centre_T2 = start + drift * np.arange(frames)[:, None]
        blob_THW = np.exp(-np.square(grid - centre_T2[:, None, None]).sum(-1) / 18)
        made.append(blob_THW[..., None] * colour)
    return np.stack(made).astype(np.float32)


def test_they_are_the_same_numbers_on_every_machine():
    clip = np.sin(np.arange(3 * 16 * 24 * 3, dtype=np.float32)).reshape(1, 3, 16, 24, 3)
    found = np.asarray(features(clip))[0]
    assert found.shape == (FEATURES,)
    np.testing.assert_allclose(found[[0, 100, 200, 300]], [0.317827, 0.193408, 0.104071, 0.173404], rtol=1e-4)


@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 17, 30), (4, 16, 16), (2, 6, 9)])
def test_images_and_small_clips_have_them_too(shape):
    clip = np.random.default_rng(0).uniform(-1, 1, size=(2, *shape, 3)).astype(np.float32)
    found = np.asarray(features(clip))
    assert found.shape == (2, FEATURES)
    assert (found.std(axis=0) > 0).mean() > 0.8


def blurred(clip, times):
    for _ in range(times):
        clip = (np.roll(clip, 1, axis=2) + 2 * clip + np.roll(clip, -1, axis=2)) / 4
        clip = (np.roll(clip, 1, axis=3) + 2 * clip + np.roll(clip, -1, axis=3)) / 4
    return clip


def flickering(clip, strength):
    """Each frame lighter or darker by turns: no frame is bad by itself."""
    sign = np.where(np.arange(clip.shape[1]) % 2, 1, -1)[:, None, None, None]
    return clip + strength * sign.astype(np.float32)


def noisy(clip, strength):
    return clip + strength * np.random.default_rng(3).normal(size=clip.shape).astype(np.float32)


@pytest.mark.parametrize(
    ("damage", "amounts"), [(noisy, (0.02, 0.08, 0.3)), (blurred, (1, 4, 16)), (flickering, (0.02, 0.08, 0.3))]
)
def test_worse_clips_are_further_from_the_truth(damage, amounts):
    truth = moving_blobs()
    distances = [frechet_distance(features(truth), features(damage(truth, amount))) for amount in amounts]
    assert distances[0] > 0
    assert distances[0] * 2 < distances[1] < distances[2] / 2
