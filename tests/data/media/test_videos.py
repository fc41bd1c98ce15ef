"""Frames of videos: the pixels of the plain conversion, decoded ahead, and no further than asked for."""

import contextlib
import itertools
import threading
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition

from sora_jax.data.clips import BadClip
from sora_jax.data.media.rgb import TO_RGB
from sora_jax.data.media.video_io import read_clip
from sora_jax.data.media.videos import FRAMES_AHEAD, _ahead, _deinterlaced
from sora_jax.data.media.writer import write_clip


def noise(name: str, size: tuple[int, int] = (48, 70)) -> av.VideoFrame:
    """A frame of the format without any order in it."""
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    return av.VideoFrame.from_ndarray(pixels_HWC, format="rgb24").reformat(format=name)


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


def walk(frames: int) -> np.ndarray:
    """A bright bar walks two pixels a frame over noise that stays."""
    ground_HWC = np.random.default_rng(1).integers(60, 90, (48, 64, 1), np.uint8).repeat(3, axis=-1)
    pixels_THWC = np.stack([ground_HWC] * frames)
    for frame, pixels_HWC in enumerate(pixels_THWC):
        pixels_HWC[:, 4 + 2 * frame : 16 + 2 * frame] = 230
    return pixels_THWC


def woven(path: Path, moments: np.ndarray) -> Path:
    """Writes a video of which each frame has the odd rows of one moment and the even ones of the next."""
    pixels_THWC = moments[::2].copy()
    pixels_THWC[:, ::2] = moments[1::2, ::2]
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "4", "x264-params": "bff=1"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv444p"
        for pixels_HWC in pixels_THWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels_HWC, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("count", [2, 9])
def test_woven_frames_become_pictures_of_their_first_moment(tmp_path, count):
    path = woven(tmp_path / "a.mp4", walk(2 * count))
    with av.open(path) as container:
        frames = list(container.decode(video=0))
        assert all(frame.interlaced_frame for frame in frames)
        combed_THWC = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
    pixels_THWC, fps = read_clip(path)
    assert (len(pixels_THWC), fps) == (count, pytest.approx(10))
    truth_THWC = walk(2 * count)[::2].astype(float)
    error, combed = (np.abs(seen - truth_THWC)[:, ::2].mean() for seen in (pixels_THWC, combed_THWC))
    assert error < 0.5 * combed
    np.testing.assert_array_equal(pixels_THWC[:, 1::2], combed_THWC[:, 1::2], "the rows of the first moment stay")
    np.testing.assert_array_equal(read_clip(path, max_frames=1)[0], pixels_THWC[:1])


def test_a_single_woven_frame_is_left_as_it_is(tmp_path):
    path = woven(tmp_path / "a.mp4", walk(2))
    with av.open(path) as container:
        (frame,) = container.decode(video=0)
        plain_HWC = frame.to_ndarray(format="rgb24", interpolation=TO_RGB)
    np.testing.assert_array_equal(read_clip(path)[0], plain_HWC[None])


def test_frames_without_the_flag_go_through_the_filter_as_they_are(tmp_path):
    path = woven(tmp_path / "a.mp4", walk(4))
    write_clip(tmp_path / "b.mp4", walk(5), fps=10)
    with av.open(path) as first, av.open(tmp_path / "b.mp4") as second:
        stream = second.streams.video[0]
        flagged = next(iter(first.decode(video=0))).reformat(format=stream.format.name)
        assert flagged.interlaced_frame
        progressive = list(second.decode(stream))
        seen = list(_deinterlaced(iter([flagged, *progressive]), stream))
    assert [frame.pts / 2 for frame in seen[1:]] == [frame.pts for frame in progressive], "in half ticks"
    for before, after in zip(progressive, seen[1:], strict=True):
        np.testing.assert_array_equal(before.to_ndarray(), after.to_ndarray())
        tags = [(f.time, f.colorspace, f.color_range, f.color_trc, f.format.name) for f in (before, after)]
        assert tags[0] == tags[1]


LEVELS = (40, 90, 140, 190, 240)


def tracks(path: Path, *given: tuple[str, tuple[int, int], int, Disposition]) -> Path:
    """Writes tracks of (codec, size, frames, disposition): grey, each brighter than the one before."""
    with av.open(path, "w") as container:
        streams = []
        for codec, (height, width), _, disposition in given:
            stream = container.add_stream(codec, rate=10)
            stream.height, stream.width, stream.disposition = height, width, disposition
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            streams.append(stream)
        for stream, (_, size, frames, _), level in zip(streams, given, LEVELS, strict=False):
            for _ in range(frames):
                picture = av.VideoFrame.from_ndarray(np.full((*size, 3), level, np.uint8), format="rgb24")
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
    return path


NONE, DEFAULT = Disposition(0), Disposition.default


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.avi"])
@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ((("mjpeg", (64, 96), 1, DEFAULT), ("libx264", (32, 48), 9, NONE)), 1),
        ((("libx264", (16, 24), 9, DEFAULT), ("libx264", (64, 96), 9, DEFAULT)), 1),
        ((("libx264", (32, 48), 9, DEFAULT), ("libx264", (48, 64), 9, DEFAULT)), 0),
        ((("libx264", (32, 48), 9, DEFAULT), ("libx264", (16, 24), 9, DEFAULT), ("mjpeg", (64, 96), 1, NONE)), 0),
    ],
)
def test_the_video_is_what_lasts_and_is_no_preview_whichever_track_it_is(tmp_path, name, given, shown):
    pixels_THWC, fps = read_clip(tracks(tmp_path / name, *given))
    assert (pixels_THWC.shape, fps) == ((given[shown][2], *given[shown][1], 3), pytest.approx(10))
    assert pixels_THWC.mean() == pytest.approx(LEVELS[shown], abs=4)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_of_two_videos_the_default_one_is_shown(tmp_path, name):
    path = tracks(tmp_path / name, ("libx264", (64, 96), 9, NONE), ("libx264", (32, 48), 9, DEFAULT))
    assert read_clip(path)[0].shape == (9, 32, 48, 3)


def test_a_video_of_one_frame_is_still_one(tmp_path):
    assert read_clip(tracks(tmp_path / "a.mp4", ("libx264", (32, 48), 1, DEFAULT)))[0].shape == (1, 32, 48, 3)
