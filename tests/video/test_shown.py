"""What a model is shown: grey where nothing is given, and a mask for each frame of pixels."""

import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.video.shown import ShownConfig, greyed, join, shown_frames


@pytest.mark.parametrize(("last", "expected"), [(False, [0]), (True, [0, 16])])
def test_only_ends_are_shown_and_all_else_is_mid_grey(last, expected):
    clip = np.random.default_rng(0).integers(0, 256, (2, 17, 2, 3, 3), np.uint8)
    shown_T = shown_frames(17, last=last)
    assert np.flatnonzero(shown_T).tolist() == expected
    grey = np.concatenate(list(greyed(clip, shown_T)), axis=1)
    assert grey.dtype == np.float32
    np.testing.assert_array_equal(grey[:, ~shown_T], 0)
    np.testing.assert_allclose(grey[:, shown_T], clip[:, shown_T] / 127.5 - 1, atol=1e-6)


def test_the_mask_has_a_channel_for_each_frame_of_pixels_and_the_first_one_counts_for_all():
    latent = np.random.default_rng(1).normal(size=(3, 1, 2, 2)).astype(np.float32)
    given = join(latent, shown_frames(9, last=True), stride=4)
    assert given.shape == (3, 1, 2, 6)
    assert given[:, 0, 1, :4].tolist() == [[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(given[..., 4:], latent)


def test_an_image_is_shown_whole():
    assert join(np.zeros((1, 1, 1, 2)), shown_frames(1, last=False), stride=4).tolist() == [[[[1, 1, 1, 1, 0, 0]]]]


def test_images_have_as_many_tokens_as_are_seen():
    assert ShownConfig(channels=20, last="may").tokens == 0
    assert ShownConfig(channels=20, last="never", image_tokens=257, image_width=8).tokens == 257
    assert ShownConfig(channels=20, last="must", image_tokens=257, image_width=8).tokens == 514


def test_another_autoencoder_is_refused_with_the_numbers():
    config = ShownConfig(channels=20, last="may")
    config.check(stride=(4, 8, 8), channels=16)
    with pytest.raises(UserError, match=r"20 channels.*48 channels are 52"):
        config.check(stride=(4, 16, 16), channels=48)
