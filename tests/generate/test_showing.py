"""Requests to models that are shown frames: what they can be given, and the size it is shown in."""

import dataclasses

import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.generate.given import GivenArrays
from sora_jax.generate.job import read_job
from sora_jax.generate.request import Request
from sora_jax.generate.showing import size_of_area
from sora_jax.video.shown import ShownConfig
from tests.generate.test_tasks import LIMITS

MEDIA = {
    "<image>": np.zeros((1, 30, 10, 3), np.uint8),
    "<last>": np.zeros((1, 7, 9, 3), np.uint8),
    "<video>": np.zeros((9, 8, 8, 3), np.uint8),
}


def read(last="may", task="animate", **asked):
    limits = dataclasses.replace(LIMITS, shown=ShownConfig(channels=5, last=last), by_area=True, knows=False)
    if task == "animate":
        asked.setdefault("image", "<image>")
    return read_job(Request(task=task, **asked), limits, GivenArrays(MEDIA, fps=8.0))


def test_an_image_is_shown_in_its_aspect_with_the_pixels_of_the_usual_size():
    job = read()
    assert job.size == (6, 2), "of 4x4, of an image three times as high as wide"
    assert job.image_THWC is not None
    assert job.image_THWC.shape == (1, 6, 2, 3)
    assert read(size="4x8").size == (4, 8)


def test_a_last_image_is_cut_to_the_size_of_the_first():
    job = read("must", last_image="<last>")
    assert job.last_image_THWC is not None
    assert job.last_image_THWC.shape == (1, 6, 2, 3)


def test_a_video_goes_on_from_its_last_frame():
    assert read(task="extend", video=("<video>",), seconds="+1").before == 0


@pytest.mark.parametrize(
    ("last", "asked", "said"),
    [
        ("may", {"task": "text", "prompt": ("a",)}, "which task text does not give it"),
        ("may", {"task": "edit", "prompt": ("a",), "video": ("<video>",)}, "which task edit does not give it"),
        ("may", {"task": "extend", "video": ("<video>",), "seconds": "-1"}, "the first frame of a video, and extend"),
        ("must", {"task": "extend", "video": ("<video>",)}, "the first and the last frame of a video"),
        ("may", {"at": 0.5}, "begins with its image, and at is 0.5"),
        ("never", {"last_image": "<last>"}, "shown the first frame alone"),
        ("must", {}, "pass --last_image=FILE"),
        ("must", {"last_image": "<last>", "frames": 29}, "needs its last frame in every window"),
        ("may", {"last_image": "<last>", "frames": 12}, "nearest: 9, 13"),
    ],
)
def test_what_it_cannot_be_shown_is_refused_by_name(last, asked, said):
    with pytest.raises(UserError, match=said):
        read(last, **asked)


def test_only_what_is_animated_from_its_start_has_a_last_image():
    with pytest.raises(UserError, match="last_image b is for task animate"):
        Request(task="animate", image="a", last_image="b", at=0.5)
    with pytest.raises(UserError, match="last_image b is for task animate"):
        Request(prompt=("a",), last_image="b")


@pytest.mark.parametrize(
    ("given", "expected"),
    # As the public code has them: sqrt(480 832 aspect), rounded down to 16.
    [((480, 832), (480, 832)), ((1080, 1920), (464, 832)), ((1000, 1000), (624, 624)), ((3000, 1000), (1088, 352))],
)
def test_sizes_of_an_area(given, expected):
    assert size_of_area((480, 832), given, step=(16, 16)) == expected


def test_a_strip_still_has_a_row():
    assert size_of_area((64, 64), (1, 10_000), step=(16, 16))[0] == 16
