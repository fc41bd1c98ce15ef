"""The codec: uint8 clips to latents and back, with frozen weights."""

import dataclasses

import jax
import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.core.mesh import MeshConfig, make_mesh
from sora_jax.core.rng import Rngs
from sora_jax.core.tree import abstract_model, merge_model
from sora_jax.models.autoencoder import Autoencoder
from sora_jax.models.codec import Codec, CodecConfig, measure_latents
from sora_jax.video.pixels import to_float
from tests import small

CONFIG = small.AUTOENCODER


def make(*, seed=0, mean=0.0, scale=1.0, bias=0.0, config=CONFIG, **work):
    shapes = abstract_model(lambda key: Autoencoder(config, rngs=Rngs(key)))[1]
    noise = np.random.default_rng(seed)
    params = {name: noise.normal(size=leaf.shape, scale=0.2).astype(np.float32) for name, leaf in shapes.items()}
    params["decoder.head.conv.bias"] += bias
    mean_C, scale_C = np.full(config.channels, mean), np.full(config.channels, scale)
    return Codec(config, params, mean_C=mean_C, scale_C=scale_C, **work)


def moments(codec, pixels_THWC):
    structure = abstract_model(lambda key: Autoencoder(codec.config, rngs=Rngs(key)))[0]
    return jax.jit(merge_model(structure, codec.params).moments)(to_float(pixels_THWC[None]))


@pytest.fixture(scope="module")
def codec():
    return make()


def clip(frames, seed=0, batch=1):
    return np.random.default_rng(seed).integers(0, 256, size=(batch, frames, 8, 12, 3), dtype=np.uint8)


def test_strides_are_those_of_the_autoencoder(codec):
    assert codec.stride == (4, 4, 4)


@pytest.mark.parametrize("frames", [1, 5, 9, 13, 17])
def test_a_clip_encodes_to_the_start_of_a_longer_one(codec, frames):
    pixels = clip(17)
    latent = codec.encode(pixels[:, :frames])
    assert latent.shape == (1, 1 + (frames - 1) // 4, 2, 3, 4)
    assert latent.dtype == np.float32
    np.testing.assert_allclose(latent, codec.encode(pixels)[:, : latent.shape[1]], atol=1e-5)
    assert codec.decode(latent).shape == (1, frames, 8, 12, 3)


def test_few_lengths_are_compiled():
    """Five lengths of clips, two programs: the first frame and a chunk."""
    codec = make(seed=3)
    before = codec._programs.encode._cache_size()
    for frames in (1, 5, 9, 13, 17):
        codec.encode(np.full((3, frames, 4, 4, 3), 9, np.uint8))
    assert codec._programs.encode._cache_size() - before == 2


def test_programs_are_shared_by_codecs_of_one_shape(codec):
    other = make(seed=1)
    assert other._programs is codec._programs
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
    np.testing.assert_allclose(measured.variance_C, values.var(axis=0), rtol=1e-6)
    log_variance = np.concatenate([np.asarray(moments(codec, c)).reshape(-1, 8)[:, 4:] for c in clips])
    np.testing.assert_allclose(measured.noise_C / measured.count, np.exp(log_variance).mean(axis=0), rtol=1e-4)


def test_a_fingerprint_is_of_weights_and_statistics(codec):
    assert make().fingerprint() == codec.fingerprint()
    others = [make(seed=1), make(mean=0.5), make(scale=0.5)]
    assert len({codec.fingerprint(), *(other.fingerprint() for other in others)}) == 4


@pytest.mark.parametrize("chunk_frames", [4, 12])
def test_the_length_of_a_chunk_changes_no_number(codec, chunk_frames):
    other = make(work=CodecConfig(chunk_frames=chunk_frames, tile=None))
    latent = codec.encode(clip(17))
    np.testing.assert_allclose(other.encode(clip(17)), latent, atol=1e-5)
    assert np.abs(other.decode(latent).astype(int) - codec.decode(latent)).max() <= 1


@pytest.mark.parametrize("cuts", [[3, 4, 11], [1], []])
def test_a_clip_may_arrive_in_any_pieces(codec, cuts):
    pixels = clip(17)
    streamed = list(codec.encode_stream(np.split(pixels, cuts, axis=1)))
    assert [part.shape[1] for part in streamed] == [1, 2, 2]
    latent = codec.encode(pixels)
    np.testing.assert_array_equal(np.concatenate(streamed, axis=1), latent)
    parts = list(codec.decode_stream(np.split(latent, [2], axis=1)))
    assert [part.shape[1] for part in parts] == [1, 8, 8]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), codec.decode(latent))


@pytest.mark.parametrize("frames", [2, 7, 12])
def test_a_length_off_the_stride_is_refused_with_the_nearest(codec, frames):
    with pytest.raises(UserError, match=rf"frames {frames} is not 1 plus a multiple of 4 \(autoencoder\); nearest"):
        codec.encode(clip(frames))
    with pytest.raises(UserError, match=rf"frames {frames} is not"):
        list(codec.encode_stream([clip(1), clip(frames - 1)]))


def test_a_prime_side_is_refused_with_the_nearest(codec):
    with pytest.raises(UserError, match=r"width 13 is not divisible by 4 \(autoencoder\); nearest: 12, 16"):
        codec.encode(np.zeros((1, 1, 8, 13, 3), np.uint8))


@pytest.mark.parametrize(("work", "name"), [((6, None), "chunk_frames 6"), ((8, 10), "tile 10"), ((0, None), "0")])
def test_work_is_on_the_strides(work, name):
    with pytest.raises(UserError, match=rf"{name} is not a multiple of the autoencoder's stride 4"):
        make(work=CodecConfig(chunk_frames=work[0], tile=work[1]))


DEEP = dataclasses.replace(CONFIG, patch=1, multipliers=(1, 1, 2), space_down=(True, True), attention=True)


@pytest.mark.parametrize("size", [(40, 36), (4, 60), pytest.param((64, 40), marks=pytest.mark.slow)])
def test_tiles_give_the_numbers_of_whole_frames(size):
    whole = make(config=DEEP)
    tiled = make(config=DEEP, work=CodecConfig(chunk_frames=4, tile=12))
    pixels = np.random.default_rng(0).integers(0, 256, size=(1, 9, *size, 3), dtype=np.uint8)
    latent = whole.encode(pixels)
    np.testing.assert_allclose(tiled.encode(pixels), latent, atol=1e-5)
    assert np.abs(tiled.decode(latent).astype(int) - whole.decode(latent)).max() <= 1


def test_a_mesh_shares_the_work_and_changes_no_number(codec):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, sequence=2, tensor=1))
    spread = make(mesh=mesh)
    pixels = clip(9, batch=4)
    np.testing.assert_allclose(spread.encode(pixels), codec.encode(pixels), atol=1e-5)
    np.testing.assert_allclose(spread.encode(pixels[:3]), codec.encode(pixels[:3]), atol=1e-5)
    latent = codec.encode(pixels)
    assert np.abs(spread.decode(latent).astype(int) - codec.decode(latent)).max() <= 1
