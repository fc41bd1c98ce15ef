"""Frames of videos in RGB: the pixels of the plain conversion, whatever their format and size."""

import av
import numpy as np
import pytest

from sora_jax.data.media.pictures import ReadLimits
from sora_jax.data.media.rgb import TO_RGB, UNTAGGED, Converter
from sora_jax.data.media.video_io import read_clip

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


COLOURS = ((254, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 60))


def stripes(size: tuple[int, int], matrix: str, *, tag: int | None = None, form: str = "yuv420p") -> av.VideoFrame:
    """A frame with a column of each colour, converted by that matrix and tagged so, or not at all."""
    pixels_HWC = np.repeat(np.array(COLOURS, np.uint8)[None], size[1] // 4, axis=1).repeat(size[0], axis=0)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels_HWC), format="rgb24")
    frame = frame.reformat(format=form, dst_colorspace=matrix)
    frame.colorspace = UNTAGGED if tag is None else tag
    return frame


@pytest.mark.parametrize(
    ("size", "matrix", "tag"),
    [
        ((720, 1280), "ITU709", None),
        ((1280, 720), "ITU709", None),
        ((544, 1280), "ITU709", None),
        ((576, 1024), "ITU601", None),
        ((32, 48), "ITU601", None),
        ((720, 1280), "ITU601", 6),
        ((32, 48), "ITU709", 1),
        ((32, 48), "BT2020", 9),
    ],
)
def test_untagged_colours_are_those_of_their_size(size, matrix, tag):
    frame = stripes(size, matrix, tag=tag)
    seen_HWC = Converter(ANY).upright_rgb(frame, height=size[0], width=size[1])
    for number, colour in enumerate(COLOURS):
        column = size[1] // 8 + number * (size[1] // 4)
        np.testing.assert_allclose(seen_HWC[size[0] // 2, column].astype(int), colour, atol=3)
    full_HWC = Converter(ANY).upright_rgb(stripes(size, matrix, tag=tag, form="yuv444p"), height=16, width=32)
    np.testing.assert_allclose(full_HWC[8, 4].astype(int), COLOURS[0], atol=3)
    small_HWC = Converter(ANY).upright_rgb(frame, height=16, width=32)
    np.testing.assert_allclose(small_HWC[8, 4].astype(int), COLOURS[0], atol=3, err_msg="the stored size counts")


def test_an_untagged_file_of_720_rows_is_read_as_bt_709(tmp_path):
    with av.open(tmp_path / "a.mp4", "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"preset": "ultrafast", "crf": "4"})
        stream.height, stream.width, stream.pix_fmt = 720, 1280, "yuv420p"
        container.mux(stream.encode(stripes((720, 1280), "ITU709")))
        container.mux(stream.encode())
    with av.open(tmp_path / "a.mp4") as container:
        assert next(container.decode(video=0)).colorspace == UNTAGGED
    np.testing.assert_allclose(read_clip(tmp_path / "a.mp4")[0][0, 360, 160::320].astype(int), COLOURS, atol=6)
