"""Files written piece by piece: every container and codec, whole or not at all, with what they say of themselves."""

import json
import os

import av
import numpy as np
import pytest
from PIL import Image

from sora_jax.core.errors import UserError
from sora_jax.data.media.video_io import read_clip
from sora_jax.data.media.writer import ClipFormat, check_written_suffix, first_file, open_clip, share_a_file, write_clip
from tests.data.media.test_video_io import distance, drawn

FACTS = {"prompt": ["a red circle", "ein Kreis über allem"], "seed": 3}


def written(path, clip, **form):
    with open_clip(path, ClipFormat(fps=10.0, **form)) as write:
        for piece in np.array_split(clip, 3):
            write(piece)
    return path


@pytest.mark.parametrize(
    ("name", "codec", "found"),
    [
        ("a.mp4", None, "h264"),
        ("a.mp4", "av1", "libdav1d"),
        ("a.webm", None, "vp9"),
        ("a.webm", "av1", "libdav1d"),
    ],
)
def test_every_codec_keeps_frames_rate_colours_and_tags(tmp_path, name, codec, found):
    clip = drawn(9, 64, 96)
    path = written(tmp_path / name, clip, codec=codec, facts=FACTS)
    back, fps = read_clip(path)
    assert back.shape == clip.shape
    assert fps == pytest.approx(10, rel=0.01)
    assert distance(back, clip) < 4
    assert abs((back.astype(float) - clip).mean(axis=(0, 1, 2))).max() < 1.5, "no shift of colour"
    with av.open(path) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name in (found, "av1", "libaom-av1")
        assert stream.codec_context.color_range == 1
        assert stream.codec_context.colorspace == 1
        said = {key.lower(): value for key, value in container.metadata.items()}
        assert json.loads(said["comment"]) == FACTS
        assert said["title"] == "a red circle / ein Kreis über allem"


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif", "a.webp"])
def test_pieces_give_the_bytes_of_the_whole(tmp_path, name):
    clip = drawn()
    write_clip(tmp_path / f"whole_{name}", clip, fps=10.0)
    assert written(tmp_path / name, clip).read_bytes() == (tmp_path / f"whole_{name}").read_bytes()


@pytest.mark.parametrize(("name", "fastest"), [("a.gif", 50), ("a.webp", 1000 / 11), ("a.mp4", None)])
@pytest.mark.parametrize("fps", [24.0, 120.0])
def test_a_rate_that_a_picture_cannot_show_is_told_and_slowed_down(tmp_path, caplog, name, fastest, fps):
    write_clip(tmp_path / name, drawn(13), fps=fps)
    pixels_THWC, found = read_clip(tmp_path / name)
    slowed = fastest is not None and fps > fastest
    assert (len(pixels_THWC), found) == (13, pytest.approx(fastest if slowed else fps, rel=0.04))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == slowed
    if slowed:
        assert f"{name} will last {fps / fastest:.2g} times as long" in said[0]
        assert "not 120; .mp4 and .webm keep the rate" in said[0]


def test_pictures_say_how_they_were_made(tmp_path):
    clip = drawn()
    with Image.open(written(tmp_path / "a.gif", clip, facts=FACTS)) as image:
        assert json.loads(image.info["comment"]) == FACTS
    with Image.open(written(tmp_path / "a.webp", clip, facts=FACTS)) as image:
        assert json.loads(image.getexif()[0x010E]) == FACTS
    write = ClipFormat(fps=1.0, facts=FACTS)
    with open_clip(tmp_path / "a.png", write) as put:
        put(clip[:1])
    with Image.open(tmp_path / "a.png") as image:
        image.load()
        assert json.loads(image.text["Comment"]) == FACTS
        np.testing.assert_array_equal(np.asarray(image), clip[0])


def test_frames_have_files_of_their_own(tmp_path):
    clip = drawn(5)
    written(tmp_path / "deep" / "frame_%03d.png", clip)
    names = sorted(path.name for path in (tmp_path / "deep").iterdir())
    assert names == [f"frame_{number:03d}.png" for number in range(5)]
    for frame_HWC, name in zip(clip, names, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "deep" / name)), frame_HWC)


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif"])
def test_what_is_broken_off_never_has_the_name(tmp_path, name):
    (tmp_path / name).write_text("what was there")

    def break_off():
        with open_clip(tmp_path / name, ClipFormat(fps=10.0)) as write:
            write(drawn(3))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert [path.name for path in tmp_path.iterdir()] == [name], "no half file is left"
    assert (tmp_path / name).read_text() == "what was there"


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "frame_%d.png"])
def test_links_are_replaced_and_never_followed(tmp_path, name):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "folder"
    folder.mkdir()
    whole = name.replace("%d", "0")
    for link in (whole, f".{whole}.{os.getpid()}.partial"):
        (folder / link).symlink_to(victim)
    written(folder / name, drawn(3))
    assert victim.read_text() == "precious"
    assert not (folder / whole).is_symlink()
    assert len(read_clip(folder / whole)[0]) == (1 if name.endswith("png") else 3)


def test_a_number_of_a_billion_digits_is_no_number(tmp_path):
    assert first_file(tmp_path / "a_%0999999999d.png").name == "a_%0999999999d.png"
    with pytest.raises(UserError, match="cannot write 2 frames"):
        check_written_suffix(tmp_path / "a_%0999999999d.png", frames=2)


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif", "a.webp", "a.png"])
def test_facts_of_any_text_are_written(tmp_path, name):
    clip = drawn(1 if name == "a.png" else 3)
    path = written(tmp_path / name, clip[:1] if name == "a.png" else clip, facts={"image": "\udcff\x1b\0.png"})
    assert len(read_clip(path)[0]) == len(clip)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("a.avi", {"frames": 1}, "the ending must be one of .mp4, .webm, .gif, .webp, .png"),
        ("a.png", {"frames": 2}, "a video ends in .mp4, .webm, .gif or .webp, or is frames_%04d.png"),
        ("a.mp4", {"frames": 2, "codec": "vp9"}, "with the codec vp9: there are h264, av1 in .mp4, vp9, av1 in .webm"),
        ("a.gif", {"frames": 2, "codec": "av1"}, "with the codec av1"),
    ],
)
def test_what_cannot_be_written_is_told_beforehand(tmp_path, name, options, said):
    with pytest.raises(UserError) as error:
        check_written_suffix(tmp_path / name, **options)
    assert said in str(error.value)


def test_small_sides_are_too_small_for_av1(tmp_path):
    with pytest.raises(UserError, match="takes sides of 64 px or more, not 32x48"):
        written(tmp_path / "a.mp4", drawn(), codec="av1")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["50%d.mp4", "clip_%02d.mp4", "%d.gif", "a%%.webp", "100%.png"])
def test_a_percent_is_only_a_percent_where_frames_are_not_numbered(tmp_path, name):
    frames = 1 if name.endswith(".png") else 3
    write_clip(tmp_path / name, drawn(frames), fps=8)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert len(read_clip(tmp_path / name)[0]) == frames
    assert first_file(tmp_path / name).name == name


def test_the_longest_name_is_written_too(tmp_path):
    name = "é" * 125 + "a.gif"
    assert len(name.encode()) == 255
    written(tmp_path / name, drawn(3))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_two_places_for_a_number_have_the_same(tmp_path):
    write_clip(tmp_path / "%d_%02d.png", np.zeros((2, 16, 16, 3), np.uint8), fps=8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0_00.png", "1_01.png"]


def test_frames_of_an_earlier_longer_video_are_told(tmp_path, caplog):
    for frames, told in ((5, []), (5, []), (3, ["f_3.png"])):
        caplog.clear()
        write_clip(tmp_path / "f_%d.png", np.zeros((frames, 16, 16, 3), np.uint8), fps=8)
        assert [line.split()[0].rpartition("/")[2] for line in caplog.messages] == told
    assert caplog.messages[0].endswith("was there before and is no frame of this video, which has 3")


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ("a.mp4", "a.mp4", True),
        ("a_%d.mp4", "a_3.mp4", False),
        ("a_%d.png", "a_3.png", True),
        ("a_%d.png", "a_03.png", False),
        ("a_%02d.png", "a_03.png", True),
        ("a_%02d.png", "a_103.png", True),
        ("a_%3d.png", "a_  7.png", True),
        ("a_%d_%d.png", "a_7_7.png", True),
        ("a_%d_%d.png", "a_7_8.png", False),
        ("a_%d.png", "b_3.png", False),
        ("a_%d.png", "a_%02d.png", True),
        ("a_%d.png", "a_1%d.png", True),
        ("a1_%d.png", "a2_%d.png", False),
        ("a_%d_b.png", "a_%d_c.png", False),
    ],
)
def test_numbered_names_share_files_with_those_of_their_frames(tmp_path, first, second, shared):
    assert share_a_file(tmp_path / first, tmp_path / second) == shared
    assert share_a_file(tmp_path / second, tmp_path / first) == shared
