"""Colour profiles: what a picture shows on a screen, against colours that are computed here."""

import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from sora_jax.data.media.guarded import GuardedReader
from sora_jax.data.media.video_io import read_clip

# Columns are red, green, blue; XYZ of D50, as profiles have it.
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
ADOBE = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
GAMMA = 563 / 256
PATCHES = np.array([(200, 60, 50), (60, 160, 80), (128, 128, 128), (255, 255, 255), (20, 30, 120)], np.uint8)


def profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """Returns a small ICC profile, version 2."""
    tags = {
        b"desc": b"desc" + struct.pack(">II", 0, 5) + b"wide\0" + bytes(79),
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"cprt": b"text\0\0\0\0own\0",
        **tags,
    }
    offset, table, body = 132 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        padded = value + bytes(-len(value) % 4)
        table += name + struct.pack(">II", offset + len(body), len(value))
        body += padded
    header = struct.pack(">I4sI4s4s4s", offset + len(body), b"none", 0x02400000, b"mntr", space, b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">iii", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">iii", *(round(value * 65536) for value in values))


def curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


def wide() -> bytes:
    colours = {f"{c}XYZ".encode(): xyz(*ADOBE[:, i]) for i, c in enumerate("rgb")}
    return profile(b"RGB ", colours | {f"{c}TRC".encode(): curve(GAMMA) for c in "rgb"})


def in_wide(srgb: np.ndarray) -> np.ndarray:
    """Returns the numbers that the wide profile has for colours in sRGB."""
    share = srgb / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return np.rint(255 * np.clip(linear @ (np.linalg.inv(ADOBE) @ SRGB).T, 0, 1) ** (1 / GAMMA)).astype(np.uint8)


def picture(colours: np.ndarray) -> np.ndarray:
    return np.repeat(colours[None], 16, axis=0).repeat(16, axis=1)


def patches(pixels_HWC: np.ndarray) -> np.ndarray:
    return pixels_HWC[8, 8::16].astype(int)


@pytest.mark.parametrize(("name", "allowed"), [("a.jpg", 4), ("a.png", 2), ("a.webp", 2)])
def test_a_wide_gamut_is_shown_in_its_own_colours(tmp_path, name, allowed):
    stored = picture(in_wide(PATCHES))
    options = {"lossless": True} if name == "a.webp" else {"quality": 98, "subsampling": 0} if name == "a.jpg" else {}
    Image.fromarray(stored).save(tmp_path / name, icc_profile=wide(), **options)
    assert np.abs(patches(stored) - PATCHES).max() > 20, "or there would be nothing to see"
    assert np.abs(patches(read_clip(tmp_path / name)[0][0]) - PATCHES).max() <= allowed
    with GuardedReader() as reader:
        np.testing.assert_array_equal(reader.read_clip(tmp_path / name)[0], read_clip(tmp_path / name)[0])


def test_every_frame_of_an_animation_has_the_profile(tmp_path):
    frames = [Image.fromarray(picture(in_wide(colours))) for colours in (PATCHES, PATCHES[::-1])]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True, icc_profile=wide())
    pixels_THWC, _ = read_clip(tmp_path / "a.webp")
    for pixels_HWC, colours in zip(pixels_THWC, (PATCHES, PATCHES[::-1]), strict=True):
        assert np.abs(patches(pixels_HWC) - colours).max() <= 2


def test_alpha_palettes_and_greys_with_a_profile(tmp_path):
    alpha = np.full((16, 80, 1), 255, np.uint8)
    alpha[:, :16] = 0
    Image.fromarray(np.concatenate([picture(in_wide(PATCHES)), alpha], axis=-1)).save(
        tmp_path / "a.png", icc_profile=wide()
    )
    seen = patches(read_clip(tmp_path / "a.png")[0][0])
    assert seen[0].tolist() == [255, 255, 255]
    assert np.abs(seen[1:] - PATCHES[1:]).max() <= 2
    Image.fromarray(picture(in_wide(PATCHES))).quantize(8).save(tmp_path / "b.png", icc_profile=wide())
    assert np.abs(patches(read_clip(tmp_path / "b.png")[0][0]) - PATCHES).max() <= 4
    linear = profile(b"GRAY", {b"kTRC": curve(1.0)})
    Image.fromarray(np.full((16, 16), 55, np.uint8)).save(tmp_path / "c.png", icc_profile=linear)
    assert read_clip(tmp_path / "c.png")[0][0, 8, 8].tolist() == pytest.approx([128] * 3, abs=2)


@pytest.mark.parametrize(
    "found",
    [
        b"rubbish",
        wide()[:200],
        profile(b"GRAY", {b"kTRC": curve(1.0)}),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
    ],
)
def test_a_profile_that_does_not_fit_changes_nothing(tmp_path, found):
    Image.fromarray(picture(PATCHES)).save(tmp_path / "a.png", icc_profile=found)
    np.testing.assert_array_equal(read_clip(tmp_path / "a.png")[0][0], picture(PATCHES))
