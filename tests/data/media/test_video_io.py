"""Media files in and out: what was drawn comes back, and damage never does."""

import errno
import io
import json
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from sora_jax.core.errors import UserError
from sora_jax.data.clips import BadClip
from sora_jax.data.media.video_io import read_clip
from sora_jax.data.media.writer import encode_gif, encode_png, write_clip


def drawn(frames: int = 9, height: int = 32, width: int = 48) -> np.ndarray:
    """A bright square walks over a smooth ground that has a different colour in each corner."""
    rows, columns = np.mgrid[:height, :width]
    ground_HWC = np.stack([200 * rows / height, 200 * columns / width, 60 + 0 * rows], -1)
    pixels_THWC = np.repeat(ground_HWC[None], frames, axis=0).astype(np.uint8)
    for frame, pixels_HWC in enumerate(pixels_THWC):
        pixels_HWC[4:14, 2 * frame : 2 * frame + 10] = (250, 240, 30)
    return pixels_THWC


def few_colours(frames: int = 7, height: int = 20, width: int = 30) -> np.ndarray:
    pixels_THWC = np.full((frames, height, width, 3), (10, 60, 110), np.uint8)
    for frame, pixels_HWC in enumerate(pixels_THWC):
        pixels_HWC[5:9, frame : frame + 5] = (255, 0, 40)
    return pixels_THWC


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b).mean())


def encode(path: Path, pixels_THWC: np.ndarray, codec: str, *, ticks=None, aspect=None, **options: str) -> Path:
    """Writes a video at 10 frames per second, or at the given times in tenths of a second."""
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        _, stream.height, stream.width, _ = pixels_THWC.shape
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 10)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for frame, pixels_HWC in enumerate(pixels_THWC):
            picture = av.VideoFrame.from_ndarray(pixels_HWC, format="rgb24")
            picture.pts, picture.time_base = (frame if ticks is None else ticks[frame]), Fraction(1, 10)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def reason(path: Path, **limits: int) -> str:
    with pytest.raises(BadClip) as caught:
        read_clip(path, **limits)
    assert caught.value.source_id == str(path)
    return caught.value.reason


@pytest.mark.parametrize("size", [(32, 48), (33, 48), (31, 47)])
def test_mp4_keeps_frames_rate_and_colours(tmp_path, size):
    pixels_THWC = drawn(9, *size)
    write_clip(tmp_path / "a.mp4", pixels_THWC, fps=30000 / 1001)
    read_THWC, fps = read_clip(tmp_path / "a.mp4")
    assert read_THWC.shape == pixels_THWC.shape
    assert fps == pytest.approx(30000 / 1001, rel=1e-6)
    assert distance(read_THWC, pixels_THWC) < 3


@pytest.mark.parametrize("size", [(160, 240), (31, 47)])
def test_mp4_does_not_shift_colours(tmp_path, size):
    # A mistaken colour matrix shifts the means by ten levels, careless rounding darkens by more than one.
    ground_HWC = 40 + drawn(1, *size)[0] // 2
    ground_HWC[4:14, :10] = ground_HWC[14, 10]
    write_clip(tmp_path / "a.mp4", np.stack([ground_HWC] * 4), fps=8)
    difference = read_clip(tmp_path / "a.mp4")[0].astype(float) - ground_HWC
    np.testing.assert_allclose(difference.mean((0, 1, 2)), 0, atol=0.4)


def test_gif_and_webp_keep_frames_and_rate(tmp_path):
    pixels_THWC = few_colours()
    for name, allowed in (("a.gif", 0), ("a.webp", 4)):
        write_clip(tmp_path / name, pixels_THWC, fps=24)
        read_THWC, fps = read_clip(tmp_path / name)
        assert read_THWC.shape == pixels_THWC.shape
        assert distance(read_THWC, pixels_THWC) <= allowed
        assert fps == pytest.approx(24, rel=0.04), "a GIF has hundredths of a second"


def test_gif_palettes_follow_the_frames():
    pixels_THWC = drawn(3, 64, 64)
    pixels_THWC[1] = 255 - pixels_THWC[1]
    frames = Image.open(io.BytesIO(encode_gif(pixels_THWC, fps=5)))
    for index, pixels_HWC in enumerate(pixels_THWC):
        frames.seek(index)
        assert distance(np.asarray(frames.convert("RGB")), pixels_HWC) < 6


def test_held_frames_are_given_their_time_back(tmp_path):
    pixels_THWC = few_colours()[[0, 1, 1, 1, 2, 3, 3]]
    write_clip(tmp_path / "a.gif", pixels_THWC, fps=10)
    assert Image.open(tmp_path / "a.gif").n_frames == 4, "this format stores equal neighbours once"
    read_THWC, fps = read_clip(tmp_path / "a.gif")
    np.testing.assert_array_equal(read_THWC, pixels_THWC)
    assert fps == pytest.approx(10)
    read_THWC, _ = read_clip(tmp_path / "a.gif", max_frames=3)
    np.testing.assert_array_equal(read_THWC, pixels_THWC[:3])


@pytest.mark.parametrize("default", [False, True])
def test_an_animated_png_is_a_video(tmp_path, default):
    frames = [Image.fromarray(pixels_HWC) for pixels_HWC in few_colours()]
    cover = Image.fromarray(255 - few_colours()[0])
    first, rest = (cover, frames) if default else (frames[0], frames[1:])
    # The third frame is held twice as long.
    durations = [100, 100, 200, 100, 100, 100, 100]
    first.save(tmp_path / "a.png", save_all=True, append_images=rest, duration=durations, default_image=default)
    pixels_THWC, fps = read_clip(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels_THWC, few_colours()[[0, 1, 2, 2, 3, 4, 5, 6]])
    assert fps == pytest.approx(10)
    np.testing.assert_array_equal(read_clip(tmp_path / "a.png", window=(1, 2))[0], few_colours()[1:3])
    np.testing.assert_array_equal(read_clip(tmp_path / "a.png", max_frames=1)[0], few_colours(1))
    np.testing.assert_array_equal(read_clip(tmp_path / "a.png", fps=5.0)[0], few_colours()[[0, 2, 3, 5]])


def test_a_photo_with_a_second_picture_in_it_is_one_picture(tmp_path):
    frames = [Image.fromarray(pixels_HWC) for pixels_HWC in drawn(2)]
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:], quality=95)
    assert Image.open(tmp_path / "a.jpg").n_frames == 2
    pixels_THWC, _ = read_clip(tmp_path / "a.jpg")
    assert pixels_THWC.shape == (1, 32, 48, 3)
    assert distance(pixels_THWC, drawn(1)) < 3


@pytest.mark.parametrize("name", ["a.png", "a.mp4", "a.gif", "a.webp"])
def test_every_format_holds_a_single_frame(tmp_path, name):
    write_clip(tmp_path / "new" / name, few_colours(1), fps=8)
    read_THWC, _ = read_clip(tmp_path / "new" / name)
    assert read_THWC.shape == (1, 20, 30, 3)
    assert distance(read_THWC, few_colours(1)) < (0.1 if name in ("a.png", "a.gif") else 5)


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webp"])
def test_equal_clips_give_equal_bytes(tmp_path, name):
    for folder in ("one", "two"):
        write_clip(tmp_path / folder / name, drawn(), fps=12)
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_png_bytes_are_the_pixels():
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    image = Image.open(io.BytesIO(encode_png(pixels_HWC)))
    np.testing.assert_array_equal(np.asarray(image), pixels_HWC)


def test_endings_are_checked_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match=r"must be one of .mp4, .webm, .gif, .webp, .png"):
        write_clip(tmp_path / "a.avi", drawn(), fps=8)
    with pytest.raises(
        UserError, match=r"cannot write 9 frames to .*a.png: a video ends in .mp4, .webm, .gif or .webp"
    ):
        write_clip(tmp_path / "a.png", drawn(), fps=8)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
    (tmp_path / "a.webp").write_bytes(b"old")
    with pytest.raises(ValueError, match="encoding"):
        write_clip(tmp_path / "a.webp", np.zeros((1, 16384, 1, 3), np.uint8), fps=8)
    assert [path.name for path in tmp_path.iterdir()] == ["a.webp"]
    assert (tmp_path / "a.webp").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("a.MOV", "libx264"),
        ("a.mkv", "libx264"),
        ("a.webm", "libvpx-vp9"),
        ("a.avi", "mpeg4"),
    ],
)
def test_containers(tmp_path, name, codec):
    path = encode(tmp_path / name, drawn(), codec, crf="10")
    pixels_THWC, fps = read_clip(path)
    assert fps == pytest.approx(10)
    assert pixels_THWC.shape == drawn().shape
    assert distance(pixels_THWC, drawn()) < 12


def test_mpeg_program_stream(tmp_path):
    path = tmp_path / "a.mpg"
    with av.open(path, "w", format="mpeg") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for pixels_HWC in drawn():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels_HWC, format="rgb24")))
        container.mux(stream.encode())
    pixels_THWC, fps = read_clip(path)
    assert (pixels_THWC.shape, fps) == (drawn().shape, pytest.approx(25, rel=1e-3))


def test_variable_frame_times_are_averaged(tmp_path):
    path = encode(tmp_path / "a.mkv", drawn(5), "libx264", ticks=[0, 1, 2, 9, 16])
    pixels_THWC, fps = read_clip(path, max_frames=5)
    assert (len(pixels_THWC), fps) == (5, pytest.approx(4 / 1.6))


def test_wide_pixels_are_made_square(tmp_path):
    path = encode(tmp_path / "a.mp4", drawn(), "libx264", aspect=Fraction(2))
    pixels_THWC, _ = read_clip(path)
    assert pixels_THWC.shape == (9, 32, 96, 3)
    assert distance(pixels_THWC[:, :, ::2], drawn()) < 15
    path = encode(tmp_path / "b.mp4", drawn(), "libx264", aspect=Fraction(1, 2))
    assert read_clip(path)[0].shape == (9, 64, 48, 3)


def with_matrix(path: Path, target: Path, matrix: tuple[int, ...]) -> Path:
    """Writes the mp4 once more, with a display matrix (a, b, c, d) in 16.16 fixed point, as phones have it."""
    encoded = path.read_bytes()
    old, new = (
        b"".join(v.to_bytes(4, "big", signed=True) for v in (p, q, 0, r, s))
        for p, q, r, s in ((1 << 16, 0, 0, 1 << 16), matrix)
    )
    start = encoded.index(b"tkhd")
    assert old in encoded[start : start + 92]
    target.write_bytes(encoded[:start] + encoded[start:].replace(old, new, 1))
    return target


# Where (x, y), x to the right and y down, comes to lie: at (a x + c y, b x + d y), moved back into the picture.
DISPLAYED = {
    (1, 0, 0, 1): lambda plain: plain,
    (0, 1, -1, 0): lambda plain: np.rot90(plain, -1, axes=(1, 2)),
    (-1, 0, 0, -1): lambda plain: np.rot90(plain, 2, axes=(1, 2)),
    (0, -1, 1, 0): lambda plain: np.rot90(plain, 1, axes=(1, 2)),
    (-1, 0, 0, 1): lambda plain: plain[:, :, ::-1],
    (1, 0, 0, -1): lambda plain: plain[:, ::-1],
    (0, 1, 1, 0): lambda plain: plain.swapaxes(1, 2),
    (0, -1, -1, 0): lambda plain: plain[:, ::-1, ::-1].swapaxes(1, 2),
}


@pytest.fixture(scope="module")
def plain_video(tmp_path_factory):
    path = encode(tmp_path_factory.mktemp("plain") / "a.mp4", drawn(3), "libx264")
    return path, read_clip(path)[0]


@pytest.mark.parametrize("matrix", DISPLAYED)
def test_videos_are_turned_and_mirrored_as_their_matrix_says(tmp_path, plain_video, matrix):
    path, plain_THWC = plain_video
    fixed = tuple(value << 16 for value in matrix)
    seen_THWC, _ = read_clip(with_matrix(path, tmp_path / "b.mp4", fixed))
    np.testing.assert_array_equal(seen_THWC, DISPLAYED[matrix](plain_THWC))
    # Written by hand: bits of rounding in the zeros.
    odd = tuple(value or 300 for value in fixed)
    seen_THWC, _ = read_clip(with_matrix(path, tmp_path / "c.mp4", odd))
    np.testing.assert_array_equal(seen_THWC, DISPLAYED[matrix](plain_THWC))


@pytest.mark.parametrize("matrix", [(0, 0, 0, 0), (1, 0, 0, 0), (1, 1, -1, 1)])
def test_a_matrix_between_the_quarters_or_a_broken_one_is_left_alone(tmp_path, plain_video, matrix):
    path, plain_THWC = plain_video
    fixed = tuple(value << 16 for value in matrix)
    seen_THWC, _ = read_clip(with_matrix(path, tmp_path / "b.mp4", fixed))
    np.testing.assert_array_equal(seen_THWC, plain_THWC)


def test_images_of_many_kinds(tmp_path):
    pixels_HWC = drawn(1)[0]
    for name in ("a.bmp", "a.png", "a.jpg", "a.JPEG", "a.webp"):
        Image.fromarray(pixels_HWC).save(tmp_path / name, quality=95)
        pixels_THWC, fps = read_clip(tmp_path / name)
        assert (pixels_THWC.shape, fps) == ((1, 32, 48, 3), 1.0)
        assert distance(pixels_THWC[0], pixels_HWC) < 3
    (tmp_path / "a.png").rename(tmp_path / "misnamed.jpg")
    np.testing.assert_array_equal(read_clip(tmp_path / "misnamed.jpg")[0][0], pixels_HWC)


def test_transparency_lies_on_white(tmp_path):
    pixels = np.full((4, 4, 4), (200, 0, 0, 255), np.uint8)
    pixels[0, 0, 3] = 0
    pixels[1, 1, 3] = 128
    Image.fromarray(pixels).save(tmp_path / "a.png")
    pixels_HWC = read_clip(tmp_path / "a.png")[0][0]
    assert pixels_HWC[0, 0].tolist() == [255, 255, 255]
    assert pixels_HWC[2, 2].tolist() == [200, 0, 0]
    np.testing.assert_allclose(pixels_HWC[1, 1], [227, 127, 127], atol=1)


def test_transparency_is_refused_where_that_is_asked_for(tmp_path):
    for alpha, clear in ((255, True), (254, False)):
        path = tmp_path / f"{alpha}.png"
        Image.fromarray(np.full((4, 4, 4), alpha, np.uint8)).save(path)
        if clear:
            assert read_clip(path, opaque=True)[0].shape == (1, 4, 4, 3)
        else:
            with pytest.raises(BadClip, match="is transparent in places"):
                read_clip(path, opaque=True)


@pytest.mark.parametrize("name", ["a.webp", "a.mkv", "a.webm"])
def test_every_frame_must_be_opaque_where_that_is_asked_for(tmp_path, name):
    for clear in (True, False):
        pixels_THWC = np.full((3, 32, 48, 4), 255, np.uint8)
        pixels_THWC[:, :, :24, :3] = [[[[60]]], [[[90]]], [[[120]]]]
        if not clear:
            pixels_THWC[-1, :, 24:, 3] = 0
        path = tmp_path / f"{clear}{name}"
        if name == "a.webp":
            frames = [Image.fromarray(pixels_HWC) for pixels_HWC in pixels_THWC]
            frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
        else:
            form = "bgra" if name == "a.mkv" else "yuv420p" if clear else "yuva420p"
            with av.open(path, "w") as container:
                codec, form = (
                    ("ffv1", "bgra") if name == "a.mkv" else ("libvpx-vp9", "yuv420p" if clear else "yuva420p")
                )
                stream = container.add_stream(codec, rate=10)
                stream.height, stream.width, stream.pix_fmt = 32, 48, form
                for pixels_HWC in pixels_THWC:
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels_HWC, format="rgba")))
                container.mux(stream.encode())
        assert len(read_clip(path)[0]) == 3
        if clear:
            assert len(read_clip(path, opaque=True)[0]) == 3
        else:
            assert "is transparent in places" in reason(path, opaque=True)


def test_sixteen_bit_greys_keep_their_range(tmp_path):
    levels_HW = np.array([[0, 257 * 10, 257 * 128, 65535]], np.uint16)
    Image.fromarray(levels_HW).save(tmp_path / "a.png")
    assert read_clip(tmp_path / "a.png")[0][0, 0].tolist() == [[v] * 3 for v in (0, 10, 128, 255)]


# What a viewer does about each value of the EXIF orientation, as the standard lists them.
ORIENTED = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}


@pytest.mark.parametrize("value", ORIENTED)
def test_exif_orientation_is_applied_to_every_frame(tmp_path, value):
    frames = [Image.fromarray(pixels_HWC) for pixels_HWC in drawn(3)]
    exif = frames[0].getexif()
    exif[0x0112] = value
    frames[0].save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_clip(tmp_path / "a.png")[0][0], ORIENTED[value](drawn(1)[0]))
    options = {"save_all": True, "append_images": frames[1:], "duration": 100, "lossless": True}
    frames[0].save(tmp_path / "a.webp", exif=exif.tobytes(), **options)
    expected = np.stack([ORIENTED[value](pixels_HWC) for pixels_HWC in drawn(3)])
    np.testing.assert_array_equal(read_clip(tmp_path / "a.webp")[0], expected)


def test_max_frames_stops_early_and_skips_the_count(tmp_path):
    path = encode(tmp_path / "a.mkv", drawn(40), "libx264", g="10")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "declared frames" in reason(path)
    assert "declared frames" in reason(path, max_frames=40)
    pixels_THWC, fps = read_clip(path, max_frames=4)
    assert (len(pixels_THWC), fps) == (4, pytest.approx(10))


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webp"])
def test_a_window_is_those_frames_of_the_whole(tmp_path, name):
    write_clip(tmp_path / name, drawn(11, 48, 64), fps=8.0)
    whole, fps = read_clip(tmp_path / name)
    for first, last in ((0, 0), (0, 4), (3, 3), (5, 10), (9, 40)):
        pixels, rate = read_clip(tmp_path / name, window=(first, last))
        np.testing.assert_array_equal(pixels, whole[first : last + 1])
        assert rate == pytest.approx(fps)
    with pytest.raises(BadClip, match="has no frames after the first 11"):
        read_clip(tmp_path / name, window=(11, 12))


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.png"])
def test_thumbnails_are_the_frames_scaled_down_and_never_up(tmp_path, name):
    write_clip(tmp_path / name, drawn(1 if name == "a.png" else 4, 48, 64), fps=8.0)
    whole, _ = read_clip(tmp_path / name)
    small, _ = read_clip(tmp_path / name, short_side=12)
    assert small.shape == (len(whole), 12, 16, 3)
    blocks = whole.reshape(len(whole), 12, 4, 16, 4, 3).mean(axis=(2, 4))
    assert np.abs(small - blocks).mean() < 4
    assert read_clip(tmp_path / name, short_side=99)[0].shape == whole.shape
    assert len(read_clip(tmp_path / name, short_side=12, max_pixels=4 * 12 * 16)[0]) == len(whole)
    with pytest.raises(BadClip, match="max_pixels"):
        read_clip(tmp_path / name, max_pixels=12 * 16)


def test_sizes_are_limited_before_pixels_are_made(tmp_path):
    frame = 32 * 48
    path = encode(tmp_path / "a.mp4", drawn(), "libx264")
    said = reason(path, max_pixels=9 * frame - 1)
    assert "9 frames of 32x48 exceed max_pixels" in said
    assert "cut or scale it first" in said
    assert len(read_clip(path, max_pixels=9 * frame)[0]) == 9
    assert len(read_clip(path, max_pixels=3 * frame, max_frames=3)[0]) == 3
    write_clip(tmp_path / "a.gif", drawn(), fps=5)
    write_clip(tmp_path / "a.png", drawn(1), fps=5)
    assert "max_pixels" in reason(tmp_path / "a.gif", max_pixels=9 * frame - 1)
    assert "max_pixels" in reason(tmp_path / "a.png", max_pixels=frame - 1)


def test_a_long_hold_is_limited_too(tmp_path):
    frames = [Image.fromarray(pixels_HWC) for pixels_HWC in few_colours(2)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=[20, 600_000])
    assert "30001 frames of 20x30 exceed max_pixels" in reason(tmp_path / "a.gif", max_pixels=10**6)


def test_flipped_bytes_are_damage_although_every_frame_is_decoded(tmp_path):
    path = encode(tmp_path / "a.mp4", drawn(30, 64, 96), "libx264", crf="5", g="8")
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat")
    for offset in np.random.default_rng(0).integers(start + 1000, len(data) * 3 // 4, 40):
        data[offset] ^= 1 << (offset % 8)
    path.write_bytes(data)
    assert "damaged" in reason(path) or "cannot be decoded" in reason(path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webp", "a.png"])
def test_truncated_files_are_refused(tmp_path, name, share):
    path = tmp_path / name
    write_clip(path, drawn(1 if name == "a.png" else 9), fps=8)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert reason(path)


def test_a_text_cannot_open_another_file(tmp_path):
    write_clip(tmp_path / "good.mp4", drawn(), fps=8)
    for name in ("a.mp4", "a.mkv", "a.avi", "a.mpg", "a.gif"):
        (tmp_path / name).write_text("ffconcat version 1.0\nfile good.mp4\n")
        assert reason(tmp_path / name)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.png").mkdir()
    assert "not a regular file" in reason(tmp_path / "pipe.mp4")
    assert os.strerror(errno.EISDIR) in reason(tmp_path / "folder.png")
    assert os.strerror(errno.ENOENT) in reason(tmp_path / "gone.gif")
    with pytest.raises(BadClip, match=os.strerror(errno.ENOENT)):
        read_clip("http://127.0.0.1/a.mp4")


def test_files_that_are_something_else_say_so(tmp_path):
    (tmp_path / "a.gif").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    assert "git lfs pull" in reason(tmp_path / "a.gif")
    (tmp_path / "a.jpg").write_text("hello")
    assert "is not an image" in reason(tmp_path / "a.jpg")
    (tmp_path / "a.pdf").write_text("hello")
    assert "the ending '.pdf' is none of" in reason(tmp_path / "a.pdf")
    with av.open(tmp_path / "sound.mp4", "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    assert "no video stream" in reason(tmp_path / "sound.mp4")


SHARED = Path(os.environ.get("SORA_JAX_CLIPS", "/nonexistent"))
# These decode to the end, with pictures that are ruined or cut off.
SILENT_DAMAGE = {"bitflips.mp4", "truncated_50pct.mkv"}


@pytest.mark.skipif(not SHARED.is_dir(), reason="SORA_JAX_CLIPS names no folder of real and damaged clips")
def test_real_clips_decode_and_damaged_ones_give_a_reason():
    for line in (SHARED / "real" / "sources.jsonl").read_text().splitlines():
        row = json.loads(line)
        pixels_THWC, fps = read_clip(SHARED / "real" / row["file"], max_frames=40)
        assert len(pixels_THWC) == min(row["frames"], 40), row["file"]
        assert fps == pytest.approx(row["fps"], rel=0.03), row["file"]
    for line in (SHARED / "damaged" / "expected.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["decodes"] and row["file"] not in SILENT_DAMAGE:
            assert len(read_clip(SHARED / "damaged" / row["file"])[0]) == row["frames"], row["file"]
        else:
            assert reason(SHARED / "damaged" / row["file"])
