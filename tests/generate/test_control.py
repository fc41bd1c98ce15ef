"""Controls: asked for, read, refused in a sentence, and cut into the windows of a video."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.generate.control import MadeControl
from sora_jax.generate.given import GivenArrays
from sora_jax.generate.job import check_request, read_job
from sora_jax.generate.request import Request, read_requests
from sora_jax.preparation.boxes import draw_boxes
from tests.generate.test_tasks import LIMITS, make, video

RED = ("a red circle",)


class Halved:
    """A control whose clips are filled up to the strides."""

    scale = 2

    def __init__(self, role):
        self.role = role

    def __call__(self, pixels_THWC, fps, *, as_is=False):
        half_THWC = pixels_THWC if as_is else pixels_THWC[:, ::2, ::2]
        return MadeControl(half_THWC.repeat(2, axis=1).repeat(2, axis=2), fps, self.role, 2)


KINDS = {kind: Halved(kind) for kind in ("grey", "boxes", "reference")}
KNOWING = dataclasses.replace(LIMITS, controls={**KINDS, "nothing": lambda *_, **__: None}, draw_boxes=draw_boxes)
GIVEN = {
    "a": video(*range(20)),
    "other": video(*range(100, 120)),
    "small": video(*range(20))[:, :2, :2],
    "short": video(1, 2, 3),
    "image": video(0),
    "large": video(0).repeat(10, axis=1).repeat(20, axis=2),
}


def asked(task="text", **values):
    return Request(**{"task": task, "prompt": RED, "control": ("grey",), "control_video": ("a",), **values})


def read(request, *, limits=KNOWING, fps=8.0):
    return read_job(request, limits, GivenArrays(GIVEN, fps=fps))


def test_a_control_says_size_rate_and_length_where_nothing_else_does():
    job = read(asked(control_video=("a",)), fps=5.0)
    assert (job.size, job.fps, job.frames) == ((4, 4), 5.0, 17), "as many of its 20 frames as a video can have"
    assert read(asked(frames=13)).frames == 13


def test_a_strength_is_one_less_the_level_for_all_or_for_each():
    both: Any = {"control": ("grey", "nothing"), "control_video": ("a", "other")}
    for strengths, levels in (((), (0, 0)), ((0.75,), (0.25, 0.25)), ((0.5, 1.0), (0.5, 0))):
        job = read(asked(**both, strength_of_control=strengths))
        assert tuple(control.level for control in job.controls) == levels


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"control": ("grey", "grey"), "control_video": ("a", "a")}, "give each kind once, with a video of its own"),
        ({"control": ()}, "control none with 1 of --control_video"),
        ({"strength_of_control": (1.0, 0.5)}, "2 of strength_of_control for 1 of control"),
        ({"strength_of_control": (1.5,)}, r"strength_of_control 1.5 is outside \[0, 1\]"),
        ({"control": (), "control_video": (), "strength_of_control": (0.5,)}, "1 of strength_of_control for 0"),
        ({"task": "loop", "video": ("a",)}, "control grey is for text, animate, edit, fill, .* not for loop"),
        ({"task": "animate", "image": "a", "at": 0.5}, "not for animate with another image"),
        ({"refine": "space:2"}, "refine space:2 is for videos without control"),
    ],
)
def test_what_no_model_could_do_is_refused(values, said):
    with pytest.raises(UserError, match=said):
        asked(**values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"control": ("edges",)},
            "with grey, boxes, reference, nothing beside clips, and control edges is asked",
        ),
        ({"size": "8x8"}, "the control a is 4x4 px and the video 8x8: scale it, or pass --size=4x4"),
        ({"control_video": ("small",), "task": "edit", "video": ("a",)}, "the control small is 2x2 px"),
        ({"control_video": ("short",), "frames": 13}, "the control short has 3 frames and the video 13"),
        ({"fps": 4.0}, "the control a has 8 frames per second and the video 4: .* pass --fps=8"),
    ],
)
def test_what_does_not_fit_is_refused_and_early_where_it_can_be(values, said):
    with pytest.raises(UserError, match=said):
        read(asked(**values))
    with pytest.raises(UserError, match=said):
        check_request(asked(**values), KNOWING, GivenArrays(GIVEN, fps=8.0))


def test_a_control_of_a_rate_that_training_never_saw_is_refused_unless_it_is_asked_for():
    trained = dataclasses.replace(KNOWING, rates=(6.0, 8.0))
    for fps in (30.0, 4.0):
        said = rf"the control a has {fps:g} frames per second and this run was trained with 6 to 8: .* --fps={fps:g}"
        with pytest.raises(UserError, match=said):
            read(asked(), limits=trained, fps=fps)
        assert read(asked(fps=fps), limits=trained, fps=fps).fps == fps
    assert read(asked(), limits=trained, fps=7.0).fps == 7
    assert read(asked(frames=1), limits=trained, fps=30.0).frames == 1, "an image has no rate"
    upto = dataclasses.replace(KNOWING, rates=(0.0, 12.0))
    with pytest.raises(UserError, match="trained with up to 12: resample it"):
        read(asked(), limits=upto, fps=30.0)


def test_a_model_that_saw_nothing_beside_clips_says_so():
    with pytest.raises(UserError, match=r"was trained with nothing beside clips, and control grey .* context.kinds"):
        read(asked(), limits=LIMITS)


def latents_of(canvases):
    """Returns for each canvas the value of each frame of tokens of its one clip beside."""
    return [[float(t) for t in canvas.context[0].clip.latent_THWC[:, 0, 0, 0]] for canvas in canvases]


def test_each_window_has_its_own_part():
    """17 frames in windows of 13, the second of which begins with the last five of the first."""
    limits = dataclasses.replace(KNOWING, window=13, overlap=5)
    job = read(asked(frames=17), limits=limits)
    _, canvases, _ = make(job, limits=limits)
    # Frames from 0 and from 8 on: the first alone, then means of four.
    assert latents_of(canvases) == [[0, 2.5, 6.5, 10.5], [8, 10.5, 14.5]]
    clip = canvases[0].context[0].clip
    assert (clip.role, clip.scale, clip.fps) == ("grey", 2, 8.0)


def test_beside_an_image_and_a_video_that_is_made_anew_it_keeps_their_time():
    _, canvases, _ = make(read(asked("animate", image="image", frames=9)), limits=KNOWING)
    assert latents_of(canvases) == [[0, 2.5, 6.5]]
    job = read(asked("edit", video=("other",), control_video=("a",)))
    _, canvases, _ = make(job, limits=KNOWING)
    assert latents_of(canvases)[0] == [0, 2.5, 6.5, 10.5]
    assert latents_of(canvases)[1] == [8, 10.5, 14.5, 18.25], "the last frame stands for those that are not there"


def test_a_control_that_finds_nothing_is_left_out_and_told(caplog):
    job = read(asked(control=("nothing",), frames=5))
    assert make(job, limits=KNOWING)[1][0].context == ()
    assert "the control nothing finds nothing in frames 0 to 4 of a: they are made without it" in caplog.text


def test_a_line_of_a_file_may_ask_for_it(tmp_path):
    path = tmp_path / "requests.jsonl"
    path.write_text('{"prompt": "red", "control": "grey", "control_video": "a.mp4", "strength_of_control": 0.8}')
    (request,) = read_requests(path)
    assert (request.control, request.levels_beside) == (("grey",), (pytest.approx(0.2),))
    assert request.files() == [str(tmp_path / "a.mp4")]
    path.write_text('{"prompt": "red", "control": "grey", "control_video": "a.mp4", "strength_of_control": "much"}')
    with pytest.raises(UserError, match=r"strength_of_control .* is not a number or a list of numbers"):
        read_requests(path)


def tracked(tmp_path, *keys, **said):
    """Returns the file of one track."""
    between = {key: said.pop(key) for key in ("between",) if key in said}
    path = tmp_path / "track.json"
    track = {"keys": [{"frame": frame, "box": box} for frame, box in keys], **between}
    path.write_text(json.dumps({"tracks": [track], **said}))
    return str(path)


def test_boxes_say_how_long_a_video_is_and_are_drawn_as_in_training(tmp_path):
    path = tracked(tmp_path, (0, [0, 0, 2, 2]), (6, [2, 2, 4, 4]))
    job = read(asked(control=(), control_video=(), boxes=path))
    assert (job.size, job.frames) == ((4, 4), 9), "the fewest that a video of 7 or more can have"
    (control,) = job.controls
    assert control.clip_THWC.shape == (9, 2, 2, 3)
    white = [np.argwhere(frame.any(axis=-1)).tolist() for frame in control.clip_THWC]
    assert (white[0], white[6], white[8]) == ([[0, 0]], [[1, 1]], [[1, 1]]), "it stays where it ends"
    canvas = make(job, limits=KNOWING)[1][0]
    assert [part.clip.role for part in canvas.context] == ["boxes"]
    with pytest.raises(UserError, match=r"goes on to frame 6 and the video has 5 frames, .* pass --frames=7 or more"):
        read(asked(control=(), control_video=(), boxes=path, frames=5))
    with pytest.raises(UserError, match=r"was trained with nothing beside clips, and control boxes is asked for"):
        read(asked(control=(), control_video=(), boxes=path), limits=LIMITS)


def test_a_track_keeps_its_colour_through_the_video_whichever_box_is_larger(tmp_path):
    grows, shrinks = ([0, 0, 2, 2], [0, 0, 6, 6]), ([6, 6, 12, 12], [10, 10, 12, 12])
    tracks = [{"keys": [{"frame": 16 * n, "box": box} for n, box in enumerate(boxes)]} for boxes in (grows, shrinks)]
    path = tmp_path / "tracks.json"
    path.write_text(json.dumps({"tracks": tracks}))
    limits = dataclasses.replace(KNOWING, window=5, row_tokens=600)
    (control,) = read(asked(control=(), control_video=(), boxes=str(path), size="12x12"), limits=limits).controls
    corners = control.clip_THWC[:, 0, 0], control.clip_THWC[:, -1, -1]
    assert [np.unique(corner, axis=0).tolist() for corner in corners] == [[[255, 255, 255]], [[255, 150, 0]]]


def test_a_reference_is_one_picture_for_every_window():
    limits = dataclasses.replace(KNOWING, window=13, overlap=5)
    job = read(asked(control=(), control_video=(), reference="large", frames=17), limits=limits)
    assert (job.size, job.frames) == ((4, 4), 17), "it says neither size nor length"
    canvases = make(job, limits=limits)[1]
    shapes = [[part.clip.latent_THWC.shape[0] for part in canvas.context] for canvas in canvases]
    assert shapes == [[1], [1]]
    with pytest.raises(UserError, match="a is a video and a reference is one image"):
        read(asked(control=(), control_video=(), reference="a"))


def test_an_image_is_controlled_by_a_video_of_any_rate():
    class Rates(GivenArrays):
        def __call__(self, name, **options):
            return super().__call__(name, **options)[0], 1.0 if name == "image" else 8.0

    request, given = asked("edit", video=("image",)), Rates(GIVEN, fps=8.0)
    assert check_request(request, KNOWING, given).image
    assert read_job(request, KNOWING, given).frames == 1


def test_what_is_drawn_beside_a_given_video_is_checked_before_any_is_made(tmp_path):
    path = tracked(tmp_path, (0, [0, 0, 2, 2]), (30, [2, 2, 4, 9]))
    for values, said in (
        ({"reference": "missing.png"}, "missing.png does not exist"),
        ({"reference": "a"}, "a is a video and a reference is one image"),
        ({"boxes": path}, "the box of track 1 is .* at frame .*, outside of 4x4 px"),
    ):
        with pytest.raises(UserError, match=said):
            check_request(asked("edit", video=("other",), **values), KNOWING, GivenArrays(GIVEN, fps=8.0))


def test_tracks_longer_than_any_video_are_refused_before_they_are_drawn(tmp_path):
    def drawn(*_, **__):
        pytest.fail("a slip of a key would fill the memory")

    path = tracked(tmp_path, (0, [0, 0, 2, 2]), (10**6, [2, 2, 4, 4]))
    limits = dataclasses.replace(KNOWING, draw_boxes=drawn)
    for values in ({}, {"task": "edit", "video": ("other",)}):
        request = asked(control=(), control_video=(), boxes=path, **values)
        with pytest.raises(UserError, match=r"125000 s of 4x4 px are .* longer than the 60 s of sampling.max_seconds"):
            check_request(request, limits, GivenArrays(GIVEN, fps=8.0))


def test_strengths_are_those_of_controls_then_boxes_then_the_reference(tmp_path):
    path = tracked(tmp_path, (0, [0, 0, 2, 2]))
    job = read(asked(boxes=path, reference="image", strength_of_control=(1.0, 0.75, 0.5)))
    assert [(control.kind, control.level) for control in job.controls] == [
        ("grey", 0),
        ("boxes", 0.25),
        ("reference", 0.5),
    ]
    with pytest.raises(UserError, match="control boxes, boxes with 1 of --control_video: give each kind once"):
        asked(control=("boxes",), boxes=path)


def test_a_control_far_larger_than_samples_is_scaled_down_unless_the_size_is_asked_for(caplog):
    wide = {"wide": video(*range(20)).repeat(5, axis=1).repeat(10, axis=2)}
    job = read_job(asked(control_video=("wide",)), KNOWING, GivenArrays(wide, fps=8.0))
    assert job.size == (2, 6) == job.controls[0].clip_THWC.shape[1:3]
    assert "the control wide is 20x40 px, far more than the 4x4 px of samples" in caplog.text
    job = read_job(asked(control_video=("wide",), size="20x40"), KNOWING, GivenArrays(wide, fps=8.0))
    assert job.size == (20, 40)
