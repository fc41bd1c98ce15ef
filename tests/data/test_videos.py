"""Frames of videos: the pixels of the plain conversion, decoded ahead, and no further than asked for."""

import contextlib
import itertools
import threading

import av
import numpy as np
import pytest

from sora_jax.data.clips import BadClip
from sora_jax.data.videos import FRAMES_AHEAD, TO_RGB, _ahead, _Converter

FORMATS = ("yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv440p", "yuv420p10le", "yuv444p12le", "nv12", "gray", "gbrp")


def noise(name: str, size: tuple[int, int] = (48, 70)) -> av.VideoFrame:
    """A frame of the format without any order in it."""
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    return av.VideoFrame.from_ndarray(pixels_HWC, format="rgb24").reformat(format=name)


@pytest.mark.parametrize("name", [*FORMATS, "rgb24", "rgb565le", "yuv410p", "yuv411p"])
def test_pixels_are_those_of_the_plain_conversion_at_every_size(name):
    converter = _Converter()
    for height, width in ((48, 70), (48, 70), (24, 35), (31, 53), (48, 140), (48, 70)):
        frame = noise(name)
        plain_HWC = frame.to_ndarray(format="rgb24", height=height, width=width, interpolation=TO_RGB)
        np.testing.assert_array_equal(converter.upright_rgb(frame, height=height, width=width), plain_HWC)


def test_one_converter_takes_frames_of_all_formats_in_turn():
    converter = _Converter()
    for name in (*FORMATS, *reversed(FORMATS)):
        frame = noise(name)
        plain_HWC = frame.to_ndarray(format="rgb24", interpolation=TO_RGB)
        np.testing.assert_array_equal(converter.upright_rgb(frame, height=48, width=70), plain_HWC)


def test_frames_come_in_order_and_the_error_after_them():
    frames = [noise("gray", (2, 2)) for _ in range(9)]

    def decode():
        yield from frames
        raise BadClip("a.mp4", "frame 10 is damaged")

    with contextlib.closing(_ahead(decode())) as coming:
        assert [id(next(coming)) for _ in frames] == [id(frame) for frame in frames]
        with pytest.raises(BadClip, match="frame 10"):
            next(coming)


def test_whoever_stops_early_has_few_frames_decoded_and_no_thread_left():
    decoded = []

    def decode():
        for number in itertools.count():
            decoded.append(number)
            yield noise("gray", (2, 2))

    threads = threading.active_count()
    with contextlib.closing(_ahead(decode())) as coming:
        for _ in range(3):
            next(coming)
        assert threading.active_count() == threads + 1
    assert 3 <= len(decoded) <= 3 + FRAMES_AHEAD
    assert threading.active_count() == threads
