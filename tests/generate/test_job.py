"""Jobs: sizes and durations settled, and what a model or a machine has no room for refused."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from sora_jax.core.errors import UserError
from sora_jax.data.media.writer import write_clip
from sora_jax.generate.job import check_request, read_job, reworded
from sora_jax.generate.outputs import facts_of
from sora_jax.generate.request import Request
from sora_jax.video.shown import ShownConfig
from tests.generate.test_tasks import LIMITS

RED = ("a red circle",)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Videos and images by name."""
    folder = tmp_path_factory.mktemp("given")
    clip = np.random.default_rng(0).integers(0, 256, size=(9, 8, 8, 3), dtype=np.uint8)
    write_clip(folder / "a.gif", clip, fps=5)
    write_clip(folder / "b.gif", clip[:, :, :4], fps=5)
    write_clip(folder / "short.gif", clip[:3], fps=5)
    write_clip(folder / "odd.gif", clip[:, :7], fps=5)
    write_clip(folder / "odd.png", clip[:1, :7], fps=1)
    write_clip(folder / "image.png", clip[:1], fps=1)
    write_clip(folder / "black.png", np.zeros((1, 8, 8, 3), np.uint8), fps=1)
    mask = np.zeros((1, 8, 8, 3), np.uint8)
    mask[:, :4] = 255
    write_clip(folder / "mask.png", mask, fps=1)
    write_clip(folder / "small_mask.png", mask[:, :4], fps=1)
    alpha = np.concatenate([clip[0], np.full((8, 8, 1), 100, np.uint8)], axis=-1)
    Image.fromarray(alpha).save(folder / "alpha.png")
    alpha[..., 3] = 255
    Image.fromarray(alpha).save(folder / "opaque.png")
    return folder


def read(files, task="text", *, limits=LIMITS, **asked):
    asked |= {name: str(files / asked[name]) for name in ("image", "last_image", "mask") if name in asked}
    asked["video"] = tuple(str(files / name) for name in asked.get("video", ()))
    return read_job(Request(task=task, prompt=asked.pop("prompt", RED), **asked), limits)


def test_a_text_has_the_run_s_size_and_length_unless_it_says_otherwise(files):
    job = read(files)
    assert (job.size, job.frames, job.fps) == ((4, 4), 13, 8.0)
    job = read(files, size="8x4", seconds="1.2", fps=10.0)
    assert (job.size, job.frames, job.fps) == ((8, 4), 13, 10.0), "12 frames are nearer to 13 than to 9"
    assert read(files, frames=29).frames == 29


def test_a_prompt_that_was_written_out_is_shown_so_and_its_file_has_both(files):
    job = read(files, prompt=("red",), expansion=(" a red  circle",))
    assert job.prompts == ("a red circle",)
    facts = facts_of(job)
    assert (facts["prompt"], facts["expansion"]) == (["red"], ["a red circle"])
    request = dataclasses.replace(job.request, expansion=("a red square",))
    assert request == job.request, "the same is asked for"
    assert reworded(job, request, LIMITS).prompts == ("a red square",)
    assert "expansion" not in facts_of(read(files))


def test_what_is_given_sets_size_and_rate(files):
    job = read(files, "extend", video=("a.gif",), seconds="-1,+1.6")
    assert job.size == (8, 8)
    assert job.fps == pytest.approx(5)
    assert (job.before, job.frames) == (4, 8), "whole tokens"
    assert job.clips[0].shape == (9, 8, 8, 3)
    job = read(files, "extend", video=("a.gif",), size="4x8", frames=3, fps=4.0)
    assert (job.size, job.fps, job.before, job.frames) == ((4, 8), 4, 0, 3)
    assert job.clips[0].shape == (7, 4, 8, 3), "1.8 s as before"
    assert read(files, "loop", video=("a.gif",)).frames == 4


def test_an_image_has_no_rate_and_stays_one_frame(files):
    for task, more in (("edit", {}), ("fill", {"mask": "mask.png"})):
        job = read(files, task, video=("image.png",), fps=8.0, **more)
        assert (job.frames, len(job.clips[0]), check_request(job.request, LIMITS)) == (1, 1, (True, (8, 8)))
    with pytest.raises(UserError, match=r"image.png has 1 frames and connect needs 5 or more"):
        read(files, "connect", video=("a.gif", "image.png"))


@pytest.mark.parametrize(("frames", "made"), [(1, 4), (3, 4), (5, 4), (7, 8), (8, 8)])
def test_a_way_between_given_frames_has_the_nearest_number_of_whole_tokens(files, frames, made):
    assert read(files, "loop", video=("a.gif",), frames=frames).frames == made
    assert read(files, "connect", video=("a.gif", "a.gif"), frames=frames).frames == made
    assert read(files, "extend", video=("a.gif",), frames=frames).frames == frames, "which is cut where it should end"


@pytest.mark.parametrize("asked", [{"frames": 1}, {"frames": 5}, {"frames": 7}, {"seconds": "0.5"}])
def test_between_two_images_there_must_be_room(files, asked):
    with pytest.raises(
        UserError, match=r"\d frames are too few from an image to a last_image: pass --frames=9 or more"
    ):
        read(files, "animate", image="image.png", last_image="black.png", **asked)
    job = read(files, "animate", image="image.png", last_image="black.png", frames=9)
    assert job.frames == 9
    shown = dataclasses.replace(LIMITS, shown=ShownConfig(channels=5, last="may"))
    assert read(files, "animate", image="image.png", last_image="black.png", frames=5, limits=shown).frames == 5


@pytest.mark.parametrize(
    ("task", "asked"),
    [
        ("animate", {"image": "image.png"}),
        ("loop", {"video": ("a.gif",)}),
        ("connect", {"video": ("a.gif", "a.gif")}),
        ("fill", {"video": ("a.gif",), "mask": "mask.png"}),
    ],
)
def test_what_is_given_may_say_enough_without_a_prompt(files, task, asked):
    assert read(files, task, prompt=(), **asked).prompts == ("",)


def test_upscale_takes_the_size_times_the_scale_and_keeps_the_duration(files):
    job = read(files, "upscale", video=("b.gif",), scale=1.5)
    assert (job.size, job.frames, job.strength) == ((12, 6), 9, 0.4)
    assert job.fps == pytest.approx(5)
    assert job.clips[0].shape == (9, 8, 4, 3), "small still"
    for asked in ({"frames": 17}, {"fps": 10.0}):
        job = read(files, "upscale", video=("b.gif",), **asked)
        assert (job.frames, job.fps) == (17, pytest.approx(10)), "twice as many frames in the same time"
        job = read(files, "upscale", video=("b.gif",), scale=1.0, **asked)
        assert (job.size, job.frames) == ((8, 4), 17), "and no larger"
    assert read(files, "upscale", video=("a.gif",), scale=1.0, size="4x4").size == (4, 4)


def test_a_mask_is_as_long_as_its_video_and_scaled_with_it(files):
    job = read(files, "fill", video=("a.gif",), mask="mask.png", size="4x4")
    assert job.mask_THW is not None
    assert job.mask_THW.shape == (9, 4, 4)
    assert job.mask_THW[:, :2].all()
    assert not job.mask_THW[:, 2:].any()


def test_an_image_that_hides_nothing_may_have_alpha(files):
    assert read(files, "animate", image="opaque.png").size == (8, 8)


def test_what_a_row_cannot_hold_at_once_slides(files):
    assert read(files, size="8x14", frames=13).frames == 13, "4 frames of 28 tokens, a row holds 64"
    with pytest.raises(UserError, match="without known tokens"):
        read(files, size="8x14", frames=13, limits=KNOWLESS)


def test_the_longest_video_may_be_asked_for(files):
    assert read(files, seconds="60", fps=8.0).frames == 481, "60 s are 480 frames, of which a latent takes 1 + 4 n"


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """Videos of 2 s whose frames count up in grey, at 4, 8 and 24 per second; and a mask of as many."""
    folder = tmp_path_factory.mktemp("counted")
    for rate in (4, 8, 24):
        grey = np.linspace(0, 240, 2 * rate).astype(np.uint8)
        clip = np.broadcast_to(grey[:, None, None, None], (2 * rate, 8, 8, 3))
        write_clip(folder / f"{rate}.mp4", clip, fps=rate)
        write_clip(folder / f"mask{rate}.mp4", np.where(clip > 120, 255, 0).astype(np.uint8), fps=rate)
    return folder


@pytest.mark.parametrize(("first", "second"), [(4, 24), (24, 4), (8, 8), (24, 8)])
def test_given_videos_of_several_rates_each_keep_their_speed(counted, first, second):
    job = read(counted, "connect", video=(f"{first}.mp4", f"{second}.mp4"))
    assert job.fps == pytest.approx(first, rel=0.02)
    for clip in job.clips:
        assert len(clip) == pytest.approx(2 * first, abs=1), "2 s"
        middle, expected = clip.mean(axis=(1, 2, 3)), (np.arange(len(clip)) + 0.5) / len(clip) * 240
        assert np.abs(middle - expected).max() < 240 / (2 * min(first, second)) + 8


@pytest.mark.parametrize("task", ["extend", "loop", "edit", "fill"])
@pytest.mark.parametrize("fps", [4.0, 16.0])
def test_another_rate_changes_no_speed(counted, task, fps):
    given = {"mask": "mask8.mp4"} if task == "fill" else {}
    job = read(counted, task, video=("8.mp4",), fps=fps, **given)
    assert (job.fps, len(job.clips[0])) == (fps, 2 * fps)
    if task == "fill":
        assert job.mask_THW is not None
        white = job.clips[0].mean(axis=(1, 2, 3)) > 120
        assert (job.mask_THW.all(axis=(1, 2)) == white).all(), "what was masked is"


def test_a_rate_at_which_a_video_is_too_large_is_refused(counted):
    limits = dataclasses.replace(LIMITS, room=1e6)
    with pytest.raises(UserError, match=r"8\.mp4 has 8 frames per second, and 1e\+09 of them .* pass a lower"):
        read(counted, "edit", video=("8.mp4",), fps=1e9, limits=limits)


SMALL_MACHINE = dataclasses.replace(LIMITS, room=4e9)
KNOWLESS = dataclasses.replace(LIMITS, knows=False)


@pytest.mark.parametrize(
    ("task", "asked", "said"),
    [
        ("text", {"size": "5x4"}, "height 5 is not divisible by 2 (autoencoder); nearest: 4, 6"),
        ("text", {"frames": 10}, "frames 10 is not 1 plus a multiple of 4 (autoencoder); nearest: 9, 13"),
        (
            "text",
            {"size": "40000x20000", "frames": 5, "limits": SMALL_MACHINE},
            "text makes 5 frames of 40000x20000 px at once, which takes about 4.4 GB, and 4 GB are free",
        ),
        (
            "text",
            {"size": "40000x20000", "frames": 29, "limits": SMALL_MACHINE},
            "text makes 9 frames of 40000x20000 px at once",
        ),
        ("upscale", {"video": ("a.gif",), "scale": 1.0}, "scale 1 enlarges nothing: pass --fps or --frames"),
        ("upscale", {"video": ("a.gif",), "scale": 0.5}, "scale 0.5 must be 1 or more"),
        ("text", {"seconds": "61"}, "longer than the 60 s of sampling.max_seconds"),
        ("animate", {"image": "odd.png"}, "height 7 is not divisible by 2 (autoencoder); nearest: 6, 8; pass --size"),
        ("animate", {"image": "alpha.png"}, "is transparent in places: put it on a background first"),
        ("animate", {"image": "a.gif"}, "has 9 frames and animate takes one image: use extend"),
        ("animate", {"image": "none.png"}, "none.png does not exist"),
        ("loop", {"video": ("a" * 300 + ".gif",)}, ".gif does not exist"),
        ("extend", {"video": ("short.gif",)}, "has 3 frames and extend needs 5 or more: animate its first one"),
        ("extend", {"video": ("mask.png",)}, "has 1 frames and extend needs 5 or more"),
        ("extend", {"video": ("a.gif",), "fps": 1.0}, "animate its first one, or give a larger --fps than 1"),
        ("connect", {"video": ("a.gif", "b.gif")}, "the videos to connect are 8x8 and 8x4 px: pass --size"),
        ("upscale", {"video": ("a.gif",), "seconds": "2"}, "for more frames in it pass --fps or --frames"),
        ("edit", {"video": ("a.gif",), "frames": 5}, "task edit keeps the duration of its video"),
        ("fill", {"video": ("a.gif",), "mask": "small_mask.png"}, "is 4x8 px, the video 8x8: scale it"),
        ("fill", {"video": ("a.gif",), "mask": "alpha.png"}, "is transparent in places: put it on a background first"),
        ("fill", {"video": ("a.gif",), "mask": "black.png"}, "is black: nothing would be made"),
        ("fill", {"video": ("a.gif",), "mask": "short.gif"}, "has 3 frames, the video 9: give one frame, or as many"),
        ("text", {"prompt": ("w " * 30,)}, "the prompt has 31 tokens and this model takes 24"),
        ("text", {"negative": "w " * 30}, "the negative prompt has 31 tokens and this model takes 24"),
        (
            "loop",
            {"video": ("a.gif",), "limits": dataclasses.replace(LIMITS, row_tokens=32, room=600.0)},
            "loop makes 9 frames of 8x8 px at once",
        ),
        ("extend", {"video": ("a.gif",), "limits": KNOWLESS}, "was trained without known tokens"),
        ("text", {"frames": 29, "limits": KNOWLESS}, "was trained without known tokens"),
    ],
)
def test_what_cannot_be_made_is_told_in_one_sentence(files, task, asked, said):
    with pytest.raises(UserError) as error:
        read(files, task, **asked)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("size", "tokens"), [("8x8", 4), ("8x10", 3), ("20x20", 3), ("400x400", 3)])
def test_a_size_of_which_training_s_rows_hold_little_has_windows_of_three_frames_of_tokens(files, size, tokens):
    job = read(files, size=size, frames=29)
    assert LIMITS.windows(29, job.size)[0] == tokens


def test_passes_are_settled_where_they_are_asked_for(files):
    limits = dataclasses.replace(LIMITS, size=(8, 8), refine=(("space", 2), ("time", 4)))
    (small, large, fast) = read(files, limits=limits).passes
    assert [one.size for one in (small, large, fast)] == [(4, 4), (8, 8), (8, 8)]
    assert [one.frames for one in (small, large, fast)] == [4, 4, 13]
    assert [one.fps for one in (small, large, fast)] == [2.0, 2.0, 8.0]
    assert read(files, limits=limits, refine="none").passes == ()
    assert len(read(files, refine="space:2", size="8x8").passes) == 2
    assert read(files, "upscale", limits=limits, video=("a.gif",)).passes == ()
    with pytest.raises(UserError, match=r"6x4 px are refined from 3x2 px: .*ask for another size, or for refine=none"):
        read(files, refine="space:2", size="6x4")


def test_interpolate_keeps_size_and_duration(files):
    job = read(files, "interpolate", video=("a.gif",), fps=20.0)
    assert (job.size, job.frames, job.fps, job.strength) == ((8, 8), 33, 20.0, 0.4)


@pytest.mark.parametrize("task", ["upscale", "interpolate"])
def test_one_frame_of_a_video_has_its_rate(files, task):
    job = read(files, task, video=("a.gif",), frames=1)
    assert (job.frames, job.fps) == (1, pytest.approx(5))


@pytest.mark.parametrize(
    ("task", "asked", "said"),
    [
        ("edit", {"seconds": "2"}, "task edit keeps the duration of its video: leave out frames and seconds"),
        ("extend", {"seconds": "-40,+40"}, "80 s of 8x8 px are .* longer than the 60 s of sampling.max_seconds"),
        ("interpolate", {"fps": 10.0, "seconds": "2"}, "for more frames in it pass --fps or --frames"),
    ],
)
def test_what_the_first_frames_tell_is_said_before_the_whole_video_is_read(files, task, asked, said):
    with pytest.raises(UserError, match=said):
        check_request(Request(task=task, prompt=RED, video=(str(files / "a.gif"),), **asked), LIMITS)


@pytest.mark.parametrize("task", ["upscale", "interpolate"])
def test_of_one_frame_no_more_are_made_in_the_same_time(files, task):
    said = r"image.png has one frame, .* and 5 frames are asked for: leave out --frames, or animate it"
    with pytest.raises(UserError, match=said):
        check_request(Request(task=task, video=(str(files / "image.png"),), frames=5), LIMITS)
    assert read(files, task, video=("image.png",), fps=24.0).frames == 1


def test_a_mask_of_which_no_white_is_left_is_refused(files):
    write_clip(files / "rim.png", np.pad(np.full((1, 8, 1, 3), 255, np.uint8), ((0, 0), (0, 0), (0, 7), (0, 0))), fps=1)
    with pytest.raises(UserError, match=r"rim.png is black where the video is scaled and cut to 8x4 px, at 5 frames"):
        read(files, "fill", video=("a.gif",), mask="rim.png", size="8x4")
    mask_THW = read(files, "fill", video=("a.gif",), mask="rim.png").mask_THW
    assert mask_THW is not None
    assert mask_THW.any()


def test_what_comes_out_is_known_from_the_first_frames(files):
    given = {"prompt": RED, "video": (str(files / "a.gif"),)}
    assert check_request(Request(task="upscale", frames=1, **given), LIMITS) == (True, (16, 16))
    assert check_request(Request(task="loop", size="4x8", **given), LIMITS) == (False, (4, 8))
    assert check_request(Request(prompt=RED, frames=1), LIMITS) == (True, (4, 4))


@pytest.mark.parametrize("task", ["upscale", "interpolate", "edit", "fill"])
@pytest.mark.parametrize("fps", [1e-9, 0.3, 0.32, 0.8, 0.84, 4.9])
def test_a_rate_that_leaves_one_frame_makes_an_image(files, task, fps):
    mask = {"mask": str(files / "mask.png")} if task == "fill" else {}
    request = Request(task=task, prompt=RED, video=(str(files / "a.gif"),), fps=fps, **mask)
    job = read_job(request, LIMITS)
    made = job.frames if request.enlarges else len(job.clips[0])
    assert check_request(request, LIMITS).image == (made == 1)


def test_a_size_off_the_strides_is_refused_or_told(files, caplog):
    with pytest.raises(UserError, match=r"odd.gif: height 7 is not divisible by 2 .*; crop it first, or upscale it"):
        read(files, "interpolate", video=("odd.gif",), fps=10.0)
    for _ in range(2):
        assert read(files, "upscale", video=("odd.gif",), scale=1.5).size == (10, 12)
    assert read(files, "upscale", video=("odd.gif",)).size == (14, 16)
    (said,) = caplog.messages
    assert said.endswith("odd.gif times the scale is 10.5x12 px, off the strides: it becomes 10x12 px")
