"""Frames of videos in RGB: the pixels of the plain conversion, whatever their format and size."""

import av
import numpy as np
import pytest

from sora_jax.data.pictures import ReadLimits
from sora_jax.data.rgb import TO_RGB, Converter

ANY = ReadLimits(source_id="a.mp4", max_frames=None, max_pixels=2**30)
FORMATS = ("yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv440p", "yuv420p10le", "yuv444p12le", "nv12", "gray", "gbrp")


def noise(name: str, size: tuple[int, int] = (48, 70)) -> av.VideoFrame:
    """A frame of the format without any order in it."""
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    return av.VideoFrame.from_ndarray(pixels_HWC, format="rgb24").reformat(format=name)


@pytest.mark.parametrize("name", [*FORMATS, "rgb24", "rgb565le", "yuv410p", "yuv411p"])
def test_pixels_are_those_of_the_plain_conversion_at_every_size(name):
    converter = Converter(ANY)
    for height, width in ((48, 70), (48, 70), (24, 35), (31, 53), (48, 140), (48, 70)):
        frame = noise(name)
        plain_HWC = frame.to_ndarray(format="rgb24", height=height, width=width, interpolation=TO_RGB)
        np.testing.assert_array_equal(converter.upright_rgb(frame, height=height, width=width), plain_HWC)


def test_one_converter_takes_frames_of_all_formats_in_turn():
    converter = Converter(ANY)
    for name in (*FORMATS, *reversed(FORMATS)):
        frame = noise(name)
        plain_HWC = frame.to_ndarray(format="rgb24", interpolation=TO_RGB)
        np.testing.assert_array_equal(converter.upright_rgb(frame, height=48, width=70), plain_HWC)
