import hashlib

import numpy as np
import pytest

from sora_jax.models.interop import variants
from sora_jax.models.interop.variants import VARIANTS

TEXT_DIM = 4096  # of UMT5-XXL


def _parameters(variant):
    """Counts those of the public transformer of these shapes, by its parts."""
    width, hidden, patch = variant.width, variant.mlp_width, np.prod(variants.PATCH)
    attention = 4 * (width**2 + width) + 2 * width
    block = 2 * attention + 2 * width + (2 * width * hidden + hidden + width) + 6 * width
    rest = variant.in_channels * patch * width + width + 2 * width + width * variant.out_channels * patch
    rest += variant.out_channels * patch + (TEXT_DIM + 1) * width + (width + 1) * width
    rest += (variants.FREQUENCY_DIM + 1) * width + (width + 1) * width + (width + 1) * 6 * width
    if variant.image_dim is not None:
        image = variant.image_dim
        block += 2 * (width**2 + width) + width
        rest += 4 * image // 2 + (image + 1) * image + (image + 1) * width + 2 * width
        rest += (variant.image_positions or 0) * image
    return int(block * variant.depth + rest)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("t2v_1_3b", 1_418_996_800),
        ("t2v_14b", 14_288_491_584),
        ("i2v_14b_480p", 16_394_878_784),
        ("i2v_14b_720p", 16_394_878_784),
        ("flf2v_14b", 16_395_536_704),
        ("t2v_a14b", 14_288_491_584),
        ("i2v_a14b", 14_288_901_184),
        ("ti2v_5b", 4_999_787_712),
    ],
)
def test_the_shapes_have_the_public_numbers_of_parameters(name, count):
    assert _parameters(VARIANTS[name]) == count


def test_the_negative_prompts_are_those_of_the_public_code():
    digests = {name: hashlib.sha256(one.negative.encode()).hexdigest()[:8] for name, one in VARIANTS.items()}
    assert digests["t2v_14b"] == digests["t2v_a14b"] == digests["i2v_a14b"] == digests["ti2v_5b"] == "ce96e032"
    assert digests["i2v_14b_480p"] == digests["i2v_14b_720p"] == "412753d0"
    assert digests["flf2v_14b"] == "43885bed"


def test_every_variant_can_be_sampled_as_it_says():
    for variant in VARIANTS.values():
        stride = 16 if variant.out_channels == 48 else 8
        assert variant.frames % 4 == 1
        assert all(side % (2 * stride) == 0 for size in variant.sizes for side in size)
        assert variant.time_rate == variant.fps / 4
        assert (variant.boundary is None) == (variant.experts == 1)
        assert variant.width == variant.heads * variants.HEAD_DIM


@pytest.mark.parity
def test_statistics_of_latents_are_those_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    config = diffusers.AutoencoderKLWan(base_dim=8, num_res_blocks=1).config
    found = variants.public_statistics(16)
    assert found is not None
    np.testing.assert_array_equal(found, np.array((config.latents_mean, config.latents_std)))


def test_statistics_are_known_for_the_public_channels_alone():
    for channels in (16, 48):
        found = variants.public_statistics(channels)
        assert found is not None
        assert found[0].shape == found[1].shape == (channels,)
        assert (found[1] > 0.3).all()
    assert variants.public_statistics(12) is None
