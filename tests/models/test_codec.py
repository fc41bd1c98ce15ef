"""The codec: uint8 clips to latents and back, with frozen weights."""

import numpy as np
import pytest
from flax import nnx

from sora_jax.core.tree import abstract_model
from sora_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from sora_jax.models.codec import Codec, measure_latents

CONFIG = AutoencoderConfig(
    patch=4,
    width=4,
    multipliers=(1, 1, 1),
    space_down=(False, False),
    time_down=(True, True),
    blocks=1,
    decoder_width=4,
    decoder_blocks=1,
    channels=4,
    attention=False,
    shortcuts=True,
)


def make(*, seed=0, mean=0.0, scale=1.0, bias=0.0):
    shapes = abstract_model(lambda key: Autoencoder(CONFIG, rngs=nnx.Rngs(key)))[1]
    noise = np.random.default_rng(seed)
    params = {name: noise.normal(size=leaf.shape, scale=0.2).astype(np.float32) for name, leaf in shapes.items()}
    params["decoder.conv_out.bias"] += bias
    return Codec(CONFIG, params, mean_C=np.full(4, mean), scale_C=np.full(4, scale))


@pytest.fixture(scope="module")
def codec():
    return make()


def clip(frames, seed=0, batch=1):
    return np.random.default_rng(seed).integers(0, 256, size=(batch, frames, 8, 12, 3), dtype=np.uint8)


def test_strides_are_those_of_the_autoencoder(codec):
    assert codec.stride == (4, 4, 4)


@pytest.mark.parametrize("frames", [1, 5, 9, 13, 17])
def test_the_ladder_of_lengths_changes_no_number(codec, frames):
    pixels = clip(17)
    latent = codec.encode(pixels[:, :frames])
    assert latent.shape == (1, 1 + (frames - 1) // 4, 2, 3, 4)
    assert latent.dtype == np.float32
    np.testing.assert_allclose(latent, codec.encode(pixels)[:, : latent.shape[1]], atol=1e-5)
    assert codec.decode(latent).shape == (1, frames, 8, 12, 3)


def test_few_lengths_are_compiled():
    """Five lengths of clips, three programs: 1, 9 and 17 frames."""
    codec = make(seed=3)
    before = codec._encode._cache_size()
    for frames in (1, 5, 9, 13, 17):
        codec.encode(np.full((3, frames, 4, 4, 3), 9, np.uint8))
    assert codec._encode._cache_size() - before == 3


def test_programs_are_shared_by_codecs_of_one_shape(codec):
    other = make(seed=1)
    assert other._encode is codec._encode
    assert not np.array_equal(other.encode(clip(1)), codec.encode(clip(1))), "but not their weights"


def test_latents_are_raw_going_in_and_normalised_coming_out(codec):
    shifted = make(mean=3.0, scale=2.0)
    pixels = clip(5)
    raw = codec.encode(pixels)
    np.testing.assert_array_equal(shifted.encode(pixels), raw)
    np.testing.assert_array_equal(shifted.decode((raw - 3) / 2), codec.decode(raw))
    assert np.abs(shifted.reconstruct(pixels).astype(int) - codec.reconstruct(pixels)).max() <= 1
    np.testing.assert_array_equal(codec.reconstruct(pixels), codec.decode(raw))


@pytest.mark.parametrize(("bias", "level"), [(-50.0, 0), (50.0, 255)])
def test_pixels_are_clipped_to_bytes(bias, level):
    pixels = make(bias=bias).decode(np.ones((1, 1, 2, 3, 4), np.float32))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, level)


def test_statistics_are_those_of_all_positions_of_all_clips(codec):
    clips = [clip(5, seed=1)[0], clip(1, seed=2)[0], clip(9, seed=3)[0]]
    measured = measure_latents(codec, clips)
    values = np.concatenate([codec.encode(c[None]).reshape(-1, 4) for c in clips]).astype(np.float64)
    np.testing.assert_allclose(measured.mean_C, values.mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(measured.scale_C, values.std(axis=0), rtol=1e-9)


def test_a_fingerprint_is_of_weights_and_statistics(codec):
    assert make().fingerprint() == codec.fingerprint()
    others = [make(seed=1), make(mean=0.5), make(scale=0.5)]
    assert len({codec.fingerprint(), *(other.fingerprint() for other in others)}) == 4
