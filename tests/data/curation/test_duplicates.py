"""The same clip under another encoding is the same; another clip is not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sora_jax.data.curation.duplicates import find_duplicates, perceptual_hash, pixel_digest
from sora_jax.data.media.video_io import read_clip
from sora_jax.data.media.writer import write_clip


def hash_distance(one: str, other: str) -> int:
    """Returns in how many of 256 bits two hashes differ; those of different pictures in some 128."""
    return (int(one, 16) ^ int(other, 16)).bit_count()


def scene(seed: int, *, frames: int = 8, size: tuple[int, int] = (96, 160)) -> np.ndarray:
    """Returns blobs that move to the right."""
    noise = np.random.default_rng(seed).integers(30, 220, (9, 15, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(size[::-1], Image.Resampling.BICUBIC)
    return np.stack([np.roll(np.asarray(image), 2 * t, axis=1) for t in range(frames)])


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webp"])
def test_a_reencoded_clip_is_alike(tmp_path, suffix):
    pixels = scene(0)
    write_clip(tmp_path / f"a{suffix}", pixels, fps=8.0)
    again, _ = read_clip(tmp_path / f"a{suffix}")
    assert hash_distance(perceptual_hash(pixels), perceptual_hash(again)) <= 10
    assert pixel_digest(pixels) != pixel_digest(again)


@pytest.mark.parametrize("shift", [-20, 0, 20])
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_brightness_and_size_hardly_count_and_the_picture_does(shift, scale):
    alike, apart = [], []
    for seed in range(30):
        pixels = scene(seed)
        brighter = (pixels.astype(int) + shift).clip(0, 255).astype(np.uint8)
        size = (round(160 * scale), round(96 * scale))
        resized = np.stack(
            [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)) for frame in brighter]
        )
        alike.append(hash_distance(perceptual_hash(pixels), perceptual_hash(resized)))
        apart.append(hash_distance(perceptual_hash(pixels), perceptual_hash(scene(seed + 1))))
    # Coefficients near the threshold flip: of 1,500 such pairs, 12 lay between 13 and 16 bits.
    assert np.quantile(alike, 0.9) <= 12
    assert max(alike) <= 16
    assert min(apart) > 60


def test_flat_frames_all_hash_to_nothing():
    assert perceptual_hash(np.full((1, 40, 50, 3), 90, np.uint8)) == "00" * 32


def test_a_digest_is_of_shape_and_pixels():
    pixels = scene(0)
    changed = pixels.copy()
    changed[-1, -1, -1, -1] ^= 1
    digests = {pixel_digest(array) for array in (pixels, changed, pixels.reshape(8, 160, 96, 3), pixels[:, :, ::-1])}
    assert len(digests) == 4
    assert pixel_digest(pixels.copy()) in digests


def flip(hash_hex: str, bits: int) -> str:
    return f"{int(hash_hex, 16) ^ ((1 << bits) - 1):064x}"


def test_repeats_are_found_and_the_first_stays():
    a, b = perceptual_hash(scene(0)), perceptual_hash(scene(1))
    hashes = [a, b, flip(a, 3), flip(a, 3), flip(a, 6), a, a]
    files = [0, 1, 2, 0, 3, 4, 0]
    digests = ["d0", "d1", "d2", "d3", "d4", "d5", "d0"]
    grey, red = (90.0, 90.0, 90.0), (190.0, 40.0, 40.0)
    colours = [grey, grey, grey, grey, grey, red, grey]
    found = find_duplicates(files, digests, hashes, colours, bits=3)
    # 3 is alike but of the same file as 0; then 4 is compared with 3, which stays; 5 has another colour.
    assert found == {2: (0, 3), 4: (3, 3), 6: (0, 0)}
    assert find_duplicates(files, digests, hashes, colours, bits=0) == {3: (2, 0), 6: (0, 0)}
    assert find_duplicates([], [], [], [], bits=3) == {}


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 12)), max_size=12), st.integers(0, 8))
@settings(max_examples=30)
def test_repeats_are_those_of_a_slow_search(clips, bits):
    bases = [perceptual_hash(scene(seed, frames=1)) for seed in range(4)]
    hashes = [flip(bases[base], flipped) for base, _, flipped in clips]
    files = [file for _, file, _ in clips]
    digests = [f"{file} {value}" for file, value in zip(files, hashes, strict=True)]
    found = find_duplicates(files, digests, hashes, [(1.0, 1.0, 1.0)] * len(clips), bits=bits)
    kept: list[int] = []
    for index in range(len(clips)):
        apart = [
            hash_distance(hashes[index], hashes[k])
            for k in kept
            if digests[k] == digests[index] or (files[k] != files[index])
        ]
        if min(apart, default=999) <= bits:
            assert found[index][0] in kept
            assert found[index][1] == min(apart)
        else:
            assert index not in found
            kept.append(index)
