"""Which frames are shown at a rate by choice: a pure function of their times, and the files that it is applied to."""

import io
import tarfile
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sora_jax.data.clips import BadClip
from sora_jax.data.media.frame_rates import at_rate
from sora_jax.data.media.guarded import GuardedReader
from sora_jax.data.media.video_io import read_clip
from sora_jax.data.media.writer import encode_gif
from sora_jax.data.sources.base import FolderSource
from sora_jax.data.sources.webdataset import TarSource

GAPS = st.lists(st.integers(0, 40), max_size=60)
RATES = st.sampled_from([1.0, 7.5, 10.0, 24.0, 24000 / 1001, 29.97, 60.0])


def chosen(times: list[float], fps: float, slack: float = 0.0) -> list[int]:
    return list(at_rate(enumerate(times), fps=fps, slack=slack))


@given(gaps=GAPS, start=st.integers(-9, 10**6), fps=RATES, slack=st.sampled_from([0.0, 0.003]))
def test_each_output_time_has_the_latest_frame_at_or_before_it(gaps, start, fps, slack):
    times = [(start + gap) / 97 for gap in np.cumsum([0, *gaps]).tolist()]  # 1 / 97 s meets none of the rates
    numbers = chosen(times, fps, slack)
    since = [time - times[0] for time in times]
    expected, k = [], 0
    while k / fps <= since[-1] + slack:
        expected.append(max(number for number, time in enumerate(since) if time <= k / fps + slack))
        k += 1
    assert numbers == expected
    assert numbers[0] == max(number for number, time in enumerate(since) if time <= slack)
    assert numbers == sorted(numbers)


@given(frames=st.integers(1, 200), every=st.integers(1, 5), fps=RATES, tick=st.sampled_from([0.001, 1 / 90000]))
def test_a_multiple_of_the_rate_gives_every_nth_frame_whatever_times_are_rounded_to(frames, every, fps, tick):
    assume(tick <= 0.1 / (fps * every))
    times = [round((0.0123 + number / (fps * every)) / tick) * tick for number in range(frames)]
    assert chosen(times, fps, tick + 1e-9) == list(range(0, frames, every))


def test_a_held_frame_is_repeated_and_none_is_made_at_the_end():
    assert chosen([0.0, 0.1, 0.5, 0.6], 10.0, 0.001) == [0, 1, 1, 1, 1, 2, 3]
    assert chosen([0.0, 0.1, 0.5], 4.0) == [0, 1, 2]
    assert chosen([3.0], 4.0) == [0]
    assert chosen([], 4.0) == []


def test_a_time_that_goes_back_takes_nothing_back():
    assert chosen([0.0, 0.2, 0.1, 0.3], 10.0, 0.001) == [0, 0, 2, 3]


def test_no_more_frames_are_asked_for_than_needed():
    asked = []
    frames = at_rate(((asked.append(number) or number, number / 30) for number in range(999)), fps=10.0, slack=0.001)
    assert [next(frames) for _ in range(4)] == [0, 3, 6, 9]
    assert len(asked) <= 12


def levels(frames: int) -> np.ndarray:
    """Frames that are told apart by their brightness."""
    return np.broadcast_to((20 + 7 * np.arange(frames, dtype=np.uint8))[:, None, None, None], (frames, 16, 24, 3))


def numbers_of(pixels_THWC: np.ndarray) -> list[int]:
    return np.rint((pixels_THWC.mean(axis=(1, 2, 3)) - 20) / 7).astype(int).tolist()


def write(path, ticks: list[int], *, tick: Fraction = Fraction(1, 1000), rate: int = 30):
    """Writes `levels` at the given times; the header says `rate` where the container does not count."""
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "4", "bf": "2"})
        stream.height, stream.width, stream.pix_fmt = 16, 24, "yuv420p"
        stream.codec_context.time_base = tick
        for pts, pixels_HWC in zip(ticks, levels(len(ticks)), strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels_HWC), format="rgb24")
            frame.pts, frame.time_base = pts, tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


# Bursts at 25 frames per second, and a hold of 320 ms.
VARIABLE = [0, 40, 80, 120, 440, 480, 520, 560, 600, 640, 680, 720, 760, 800]


@pytest.mark.parametrize(("name", "rate"), [("a.mp4", 25), ("a.mkv", 17), ("a.mov", 25)])
def test_a_variable_rate_becomes_a_constant_one(tmp_path, name, rate):
    path = write(tmp_path / name, VARIABLE, rate=rate)
    assert numbers_of(read_clip(path)[0]) == list(range(14))
    pixels_THWC, fps = read_clip(path, fps=12.5)
    assert (numbers_of(pixels_THWC), fps) == ([0, 2, 3, 3, 3, 3, 5, 7, 9, 11, 13], 12.5)
    with GuardedReader() as reader:
        guarded_THWC, rate = reader.read_clip(path, fps=12.5)
        np.testing.assert_array_equal(guarded_THWC, pixels_THWC)
        assert rate == fps


def test_limits_count_resampled_frames(tmp_path):
    path = write(tmp_path / "a.mp4", [40 * number for number in range(25)])
    assert read_clip(path)[1] == pytest.approx(25)
    assert numbers_of(read_clip(path, fps=5.0)[0]) == [0, 5, 10, 15, 20]
    assert numbers_of(read_clip(path, fps=5.0, max_frames=3)[0]) == [0, 5, 10]
    assert numbers_of(read_clip(path, fps=5.0, window=(1, 3))[0]) == [5, 10, 15]
    assert len(read_clip(path, fps=5.0, short_side=8)[0]) == 5
    assert len(read_clip(path, fps=5.0, max_pixels=5 * 16 * 24)[0]) == 5
    with pytest.raises(BadClip, match="max_pixels"):
        read_clip(path, fps=5.0, max_pixels=4 * 16 * 24)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_long_pause_does_not_make_a_clip_slow(tmp_path, name):
    path = write(tmp_path / name, [*range(0, 280, 40), *range(10000, 10280, 40)])  # in ms
    assert read_clip(path)[1] == pytest.approx(13 / 10.24)
    pixels_THWC, fps = read_clip(path, fps=12.5)
    assert (numbers_of(pixels_THWC), fps) == ([0, 2, 4, *[6] * 122, 7, 9, 11, 13], 12.5)
    assert numbers_of(read_clip(path, fps=12.5, window=(2, 5))[0]) == [4, 6, 6, 6]


def test_a_slow_clip_with_a_burst_stays_as_it_is(tmp_path):
    path = write(tmp_path / "a.mp4", [0, 1000, 2000, 2040, 2080, 3000, 4000, 5000])
    pixels_THWC, fps = read_clip(path, fps=12.5)
    assert (numbers_of(pixels_THWC), fps) == (list(range(8)), pytest.approx(7 / 5))


@pytest.mark.parametrize("fps", [25.0, 25.01, 60.0])
def test_a_clip_is_never_made_faster(tmp_path, fps):
    path = write(tmp_path / "a.mp4", [40 * number for number in range(9)])
    pixels_THWC, rate = read_clip(path, fps=fps)
    assert (numbers_of(pixels_THWC), rate) == (list(range(9)), pytest.approx(25))


def test_a_video_that_is_cut_off_is_refused_at_every_rate(tmp_path):
    path = write(tmp_path / "a.mkv", [40 * number for number in range(36)], rate=25)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for fps in (None, 5.0):
        with pytest.raises(BadClip, match=r"of 3\d declared frames"):
            read_clip(path, fps=fps)


def test_animated_pictures_are_resampled_by_their_durations(tmp_path):
    (tmp_path / "a.gif").write_bytes(encode_gif(levels(20)[[0, 1, 1, 1, 2, 3, 4, 5, 6, 7, 7, 7]], fps=10.0))
    pixels_THWC, fps = read_clip(tmp_path / "a.gif", fps=5.0)
    assert (numbers_of(pixels_THWC), fps) == ([0, 1, 2, 4, 6, 7], 5.0)
    assert numbers_of(read_clip(tmp_path / "a.gif", fps=5.0, max_frames=4)[0]) == [0, 1, 2, 4]
    assert numbers_of(read_clip(tmp_path / "a.gif", fps=5.0, window=(3, 9))[0]) == [4, 6, 7]
    assert len(read_clip(tmp_path / "a.gif", fps=20.0)[0]) == 12


def test_sources_resample_and_their_windows_do(tmp_path):
    path = write(tmp_path / "a.mp4", [40 * number for number in range(25)])
    (tmp_path / "a.txt").write_text("grey")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (("a.mp4", path.read_bytes()), ("a.txt", b"grey")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    folder = FolderSource(tmp_path, max_frames=3, fps=5.0)
    for source in (folder, TarSource(tmp_path / "a.tar", max_frames=3, fps=5.0)):
        assert (numbers_of(source[0].pixels_THWC), source[0].fps) == ([0, 5, 10], 5.0)
    assert numbers_of(folder.window(0, 2, 4).pixels_THWC) == [10, 15, 20]
    assert len(folder.thumbnails(0, short_side=8).pixels_THWC) == 5
