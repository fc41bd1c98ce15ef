"""Scaling is Pillow's, up and down, by both filters."""

import numpy as np
import pytest
from PIL import Image

from sora_jax.models.resizing import scale_as_pillow


@pytest.mark.parametrize("filtering", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(9, 16), (330, 20), (61, 700)])
def test_channels_are_scaled_as_pillow_scales_floats(size, filtering):
    frame = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    planes = [Image.fromarray(frame[..., c].astype(np.float32)) for c in range(3)]
    expected = [np.asarray(plane.resize((31, 40), Image.Resampling[filtering.upper()])) for plane in planes]
    np.testing.assert_allclose(scale_as_pillow(frame[None], (40, 31), filtering)[0], np.stack(expected, -1), atol=2e-4)
