"""Files are read as what their first bytes say, whatever their ending."""

from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from sora_jax.data.clips import BadClip
from sora_jax.data.media.file_kinds import HEAD_BYTES, MEDIA_SUFFIXES, PICTURE, kind_of, strange_kind
from sora_jax.data.media.video_io import read_clip

# Container and codec of a video of each ending that needs a demuxer of its own.
VIDEOS = {
    ".mp4": ("mp4", "mpeg4"),
    ".mov": ("mov", "mpeg4"),
    ".3gp": ("3gp", "mpeg4"),
    ".mkv": ("matroska", "mpeg4"),
    ".avi": ("avi", "mpeg4"),
    ".mpg": ("mpeg", "mpeg1video"),
    ".vob": ("vob", "mpeg2video"),
    ".ts": ("mpegts", "mpeg2video"),
    ".m2ts": ("mpegts", "mpeg2video"),
    ".flv": ("flv", "flv"),
    ".wmv": ("asf", "wmv2"),
    ".ogv": ("ogg", "libvpx"),
}
PICTURES = {".jfif": "JPEG", ".tiff": "TIFF", ".avif": "AVIF", ".png": "PNG", ".bmp": "BMP", ".webp": "WEBP"}
FRAMES = 12


def video(path: Path, container: str, codec: str) -> Path:
    options = {"mpegts_m2ts_mode": "1"} if path.suffix == ".m2ts" else {}
    with av.open(path, "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for number in range(FRAMES):
            pixels_HWC = np.full((32, 48, 3), 60, np.uint8)
            pixels_HWC[8:24, 2 * number : 2 * number + 16] = 200
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels_HWC, format="rgb24")))
        output.mux(stream.encode())
    return path


@pytest.mark.parametrize("suffix", VIDEOS)
def test_videos_are_read_under_their_own_ending_and_others(tmp_path, suffix):
    path = video(tmp_path / f"a{suffix}", *VIDEOS[suffix])
    pixels_THWC, fps = read_clip(path)
    assert pixels_THWC.shape == (FRAMES, 32, 48, 3)
    assert fps == pytest.approx(25, rel=0.01)
    lie = path.with_suffix(".mp4" if suffix == ".mkv" else ".mkv")
    for other in (lie, path.with_suffix(".JPG")):
        path = path.rename(other)
        np.testing.assert_array_equal(read_clip(path)[0], pixels_THWC)


@pytest.mark.parametrize("suffix", PICTURES)
def test_pictures_are_read_under_their_own_ending_and_others(tmp_path, suffix):
    pixels_HWC = np.full((32, 48, 3), (200, 90, 40), np.uint8)
    path = tmp_path / f"a{suffix}"
    Image.fromarray(pixels_HWC).save(path, format=PICTURES[suffix])
    for other in (path, path.with_suffix(".gif"), path.with_suffix(".mp4")):
        path = path.rename(other)
        np.testing.assert_allclose(read_clip(path)[0], pixels_HWC[None], atol=4)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC picture by its first bytes, which is not read: make JPEG"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC picture by its first bytes, which is not read: make JPEG"),
        (b"<!DOCTYPE html><html>404</html>", "web page by its first bytes, which is not read: convert it"),
        (b"%PDF-1.7", "PDF document by its first bytes, which is not read: convert it"),
        (b"PK\3\4and so on", "ZIP archive by its first bytes, which is not read: convert it"),
    ],
)
def test_what_is_not_read_is_named_by_its_kind(tmp_path, head, words):
    for name in ("a.mp4", "a.jpg"):
        (tmp_path / name).write_bytes(head)
        with pytest.raises(BadClip, match=f"is a {words}"):
            read_clip(tmp_path / name)


def test_a_heic_picture_is_refused_under_its_own_ending_too(tmp_path):
    (tmp_path / "a.HEIC").write_bytes(b"anything")
    with pytest.raises(BadClip, match=r"is a HEIC picture by its ending, .* with: magick mogrify -format jpg \*\.heic"):
        read_clip(tmp_path / "a.HEIC")


@pytest.mark.parametrize(
    ("tags", "shown"),
    [
        ([{}], 0),
        ([{}, {254: 1}, {254: 4}], 0),
        ([{254: 1}, {}], 1),
        ([{255: 2}, {255: 1}], 1),
        ([{254: 1}, {254: 1}], 0),
        ([{}, {254: 1}, {254: 2}], None),
        ([{}, {}, {}], None),
    ],
)
def test_a_tiff_is_its_one_picture_among_copies_and_masks_of_it_and_several_are_refused(tmp_path, tags, shown):
    path = tmp_path / "a.tif"
    with TiffImagePlugin.AppendingTiffWriter(path, True) as file:
        for number, written in enumerate(tags):
            Image.new("RGB", (24, 16 + number), (50 * number, 90, 40)).save(file, "TIFF", tiffinfo=written)
            file.newFrame()
    if shown is None:
        with pytest.raises(BadClip, match=r"has [23] pages: save each as a picture of its own, or all .* as a video"):
            read_clip(path)
    else:
        pixels_THWC, _ = read_clip(path)
        assert pixels_THWC.shape == (1, 16 + shown, 24, 3)
        assert (pixels_THWC == (50 * shown, 90, 40)).all()


def test_an_avif_is_told_from_its_relatives():
    assert kind_of(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf") == PICTURE
    assert strange_kind(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf") is None
    assert kind_of(b"\0\0\0\x14ftypisom\0\0\0\0mp42heic") == "mp4", "the last brand is beyond the box"
    assert strange_kind(b"\0\0\0\x14ftypisom\0\0\0\0mp42heic") is None


@given(head=st.binary(max_size=40) | st.binary(min_size=HEAD_BYTES, max_size=HEAD_BYTES))
def test_any_bytes_may_be_asked_about(head):
    kind_of(head), strange_kind(head)
    assert kind_of(b"not media " + head) is None


def test_every_ending_is_in_small_letters_and_begins_with_a_dot():
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in MEDIA_SUFFIXES)
