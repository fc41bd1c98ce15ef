"""Whole videos are kept whatever their times are, and those that are cut off are not."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from sora_jax.data.clips import BadClip
from sora_jax.data.media.promises import ends_as_it_says
from sora_jax.data.media.video_io import read_clip, read_stream

CODECS = {".mkv": "libx264", ".webm": "libvpx-vp9", ".avi": "mpeg4", ".mp4": "libx264", ".mov": "libx264"}
SOUNDS = {".avi": "pcm_s16le", ".webm": "libopus"}
DIM = [*range(0, 990, 33), *range(990, 2970, 66)]  # ms of 30 frames at 30 fps, then 30 at 15
SPARSE = [0, 33, 66, 1500, 1533, 4000, 9000]  # of a screen on which little happens


def video(path: Path, times: list[int], *, sound: float = 0.0, sound_first: bool = False, **options: str) -> Path:
    """Writes a small moving square, a frame at each of `times` in ms, beside `sound` seconds of noise, or after it."""
    tick = Fraction(33, 1000) if path.suffix == ".avi" else Fraction(1, 1000)  # that of AVI is a frame
    random = np.random.default_rng(0)
    with av.open(path, "w", options=options) as container:
        noise = container.add_stream(SOUNDS.get(path.suffix, "aac"), rate=8000) if sound_first else None
        stream = container.add_stream(CODECS[path.suffix], rate=Fraction(1000, 33) if path.suffix == ".avi" else 30)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 48, 32, "yuv420p", 10**6
        stream.codec_context.time_base = tick
        if sound and noise is None:
            noise = container.add_stream(SOUNDS.get(path.suffix, "aac"), rate=8000)
        for number, time in enumerate(times):
            pixels_HWC = random.integers(0, 255, (32, 48, 3), np.uint8)
            pixels_HWC[8:16, number % 40 : number % 40 + 8] = 255
            frame = av.VideoFrame.from_ndarray(pixels_HWC, format="rgb24")
            frame.pts, frame.time_base = round(time / 1000 / tick), tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if noise is not None:
            assert isinstance(noise, av.AudioStream)
            samples = random.integers(-9000, 9000, (1, round(sound * 8000)), np.int16)
            made = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            made.rate, made.pts = 8000, 0
            container.mux(noise.encode(made))
            container.mux(noise.encode())
    return path


@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.avi", "a.mp4"])
@pytest.mark.parametrize("times", [DIM, SPARSE], ids=["dim", "sparse"])
def test_whole_videos_of_any_times_are_kept(tmp_path, name, times):
    path = video(tmp_path / name, times)
    pixels_THWC, fps = read_clip(path)
    assert (len(pixels_THWC), fps) == (len(times), pytest.approx(1000 * (len(times) - 1) / times[-1], rel=0.03))
    with path.open("rb") as file:
        assert ends_as_it_says(file)


@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.avi", "a.mp4"])
@pytest.mark.parametrize("tagged", [True, False])
def test_longer_sound_promises_no_frames(tmp_path, name, tagged):
    path = video(tmp_path / name, list(range(0, 1000, 33)), sound=4.0)
    if not tagged:
        path.write_bytes(path.read_bytes().replace(b"DURATION", b"DURATIOX"))
    assert len(read_clip(path)[0]) == 31


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_no_frame_is_lost_where_the_sound_comes_first(tmp_path, name):
    path = video(tmp_path / name, DIM, sound=3.0, sound_first=True)
    with av.open(path) as container:
        assert container.streams[0].type == "audio"
    assert len(read_clip(path)[0]) == len(DIM)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mkv", {}),
        ("a.webm", {}),
        ("a.avi", {}),
        ("a.mp4", {"movflags": "faststart"}),
        ("a.mov", {"movflags": "frag_keyframe+empty_moov"}),
    ],
)
@pytest.mark.parametrize("sound", [0.0, 3.0])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_what_is_cut_off_is_refused_whatever_its_times_are(tmp_path, name, options, sound, share):
    data = video(tmp_path / name, DIM, sound=sound, **options).read_bytes()
    cut = tmp_path / f"cut-{name}"
    cut.write_bytes(data[: round(share * len(data))])
    with pytest.raises(BadClip, match=r"declared frames can be decoded|cannot be decoded|is damaged"):
        read_clip(cut)
    with cut.open("rb") as file:
        assert not ends_as_it_says(file)


def test_a_cut_off_video_in_memory_is_refused_too(tmp_path):
    data = video(tmp_path / "a.mkv", DIM).read_bytes()
    assert len(read_stream(io.BytesIO(data), "a.mkv")[0]) == len(DIM)
    with pytest.raises(BadClip, match=r"only \d+ of 8[89] declared frames"):
        read_stream(io.BytesIO(data[: len(data) // 2]), "a.mkv")


def test_a_duration_tag_that_is_left_over_or_none_is_no_promise(tmp_path):
    data = video(tmp_path / "a.mkv", list(range(0, 1000, 33))).read_bytes()
    for tag in (b"00:59:01.02", b"no duration"):
        (tmp_path / "b.mkv").write_bytes(data.replace(b"00:00:01.02", tag))
        assert tag in (tmp_path / "b.mkv").read_bytes()
        assert len(read_clip(tmp_path / "b.mkv")[0]) == 31


def test_long_times_do_not_make_few_frames_too_many(tmp_path):
    path = video(tmp_path / "a.mkv", SPARSE)
    assert len(read_clip(path, max_pixels=7 * 32 * 48)[0]) == 7
    with pytest.raises(BadClip, match="7 frames of 32x48 exceed max_pixels"):
        read_clip(path, max_pixels=6 * 32 * 48)


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a", b"\x1a\x45\xdf\xa3", b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\xff", b"RIFF", b"\0\0\0\0ftyp"]
)
def test_what_does_not_say_how_long_it_is_does_not_end_as_it_says(data):
    assert not ends_as_it_says(io.BytesIO(data))


def test_parts_are_added_up():
    assert ends_as_it_says(io.BytesIO(b"\0\0\0\x0cftypmp42" + b"\0\0\0\x01mdat" + (20).to_bytes(8, "big") + b"four"))
    assert ends_as_it_says(io.BytesIO(b"RIFF\x03\0\0\0AVI\0" + b"RIFF\x04\0\0\0AVIX" + b"junk"))
    assert not ends_as_it_says(io.BytesIO(b"RIFF\x04\0\0\0AVI " + b"RIFF\x05\0\0\0AVIX"))
    assert ends_as_it_says(io.BytesIO(b"\x1a\x45\xdf\xa3\x81x\x18\x53\x80\x67\x40\x02ab and more"))
