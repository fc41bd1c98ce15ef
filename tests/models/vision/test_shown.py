"""What a model is shown of clips, with a small autoencoder; with diffusers, its channels and those of the pipelines."""

import numpy as np
import pytest

from sora_jax.models.vision.clip import ImageEncoder, ImageTowerConfig
from sora_jax.models.vision.shown import Shower
from sora_jax.video.shown import ShownConfig
from tests.models.test_codec import CONFIG, make

CHANNELS = 4 + CONFIG.channels


class Means(ImageEncoder):
    """An image tower whose two tokens are the mean colour."""

    def __init__(self):
        config = ImageTowerConfig(width=3, depth=1, heads=1, mlp_width=3, patch=4, side=4, activation="gelu")
        super().__init__(config, dict)

    def encode(self, image_HWC):
        return np.repeat(image_HWC.mean(axis=(0, 1), dtype=np.float32)[None], 2, axis=0)


@pytest.fixture(scope="module")
def codec():
    return make(mean=0.5, scale=2.0)


def clip(frames=9):
    return np.random.default_rng(0).integers(0, 256, (frames, 8, 12, 3), np.uint8)


def shower(codec, last="may"):
    if last == "may":
        return Shower(ShownConfig(channels=CHANNELS, last=last), codec, None)
    return Shower(ShownConfig(channels=CHANNELS, last=last, image_tokens=2, image_width=3), codec, Means())


def test_training_and_sampling_show_the_same(codec):
    pixels = clip()
    for last in ("may", "must", "never"):
        one = shower(codec, last)
        raw_BTHWC, (image_ME,) = one.raw(pixels[None])
        shown = one.of_frames(len(pixels), pixels[0], pixels[-1] if last == "must" else None)
        np.testing.assert_allclose(shown.given_THWC[..., 4:], (raw_BTHWC[0] - 0.5) / 2.0, atol=1e-6)
        assert (shown.image_ME is None) == (image_ME is None) == (last == "may")
        if image_ME is not None:
            ends = pixels[[0, -1]] if last == "must" else pixels[:1]
            expected = np.repeat(ends.mean(axis=(1, 2)), 2, axis=0)
            np.testing.assert_allclose(image_ME, expected, rtol=1e-5)
            np.testing.assert_array_equal(image_ME, shown.image_ME)


def test_only_shown_frames_count(codec):
    pixels = clip()
    other = np.where(np.arange(9)[:, None, None, None] % 8 == 0, pixels, 255 - pixels)
    one = shower(codec, "must")
    np.testing.assert_array_equal(one.raw(pixels[None])[0], one.raw(other[None])[0])
    other[-1] = 0
    assert np.abs(one.raw(pixels[None])[0] - one.raw(other[None])[0]).max() > 1e-3
    np.testing.assert_array_equal(shower(codec).raw(pixels[None])[0], shower(codec).raw(other[None])[0])


def test_the_recipe_knows_the_way_and_the_encoder(codec):
    assert len({shower(codec, last).recipe() for last in ("may", "must", "never")}) == 3
