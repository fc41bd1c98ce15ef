"""Tasks as conversations: what is known where, which frames come out, in which order, and how much is held."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sora_jax.data.tokens import BYTE_TOKENIZER
from sora_jax.generate.job import Job
from sora_jax.generate.limits import ModelLimits
from sora_jax.generate.request import Request
from sora_jax.generate.tasks import MAKERS
from sora_jax.generate.video_builder import VideoBuilder
from sora_jax.video.shown import ShownConfig

STRIDE = 4
LIMITS = ModelLimits(
    stride=(STRIDE, 2, 2),
    patch=(1, 1, 1),
    row_tokens=64,
    tokenizer=BYTE_TOKENIZER,
    text_tokens=24,
    window=13,
    overlap=5,
    max_seconds=60.0,
    knows=True,
    size=(4, 4),
    frames=13,
    fps=8.0,
    known_guidance=1.5,
    token_bytes=1.0,
    pixel_bytes=1.0,
)
NEW = 200  # value of what the solver makes


class Averages:
    """An autoencoder whose latent is the mean of its frames and pixels: (t, h, w, 1) of (1 + 4 (t - 1), 2h, 2w, 3)."""

    config = SimpleNamespace(channels=1)
    mean_C, scale_C = np.zeros(1), np.ones(1)

    def encode(self, pixels_BTHWC):
        clip = pixels_BTHWC[0].astype(np.float32)
        assert (len(clip) - 1) % STRIDE == 0, len(clip)
        groups = [clip[:1], *np.split(clip[1:], (len(clip) - 1) // STRIDE)] if len(clip) > 1 else [clip]
        h, w = clip.shape[1] // 2, clip.shape[2] // 2
        frames = [group.mean(axis=(0, 3)).reshape(h, 2, w, 2).mean(axis=(1, 3)) for group in groups]
        return np.stack(frames)[None, ..., None]

    def decode(self, latent_BTHWC):
        frames = np.repeat(latent_BTHWC[0], [1] + [STRIDE] * (latent_BTHWC.shape[1] - 1), axis=0)
        return np.round(frames.repeat(2, axis=1).repeat(2, axis=2).repeat(3, axis=3)).astype(np.uint8)[None]

    def reconstruct(self, pixels_BTHWC):
        return self.decode(self.encode(pixels_BTHWC))


def video(*values):
    return np.broadcast_to(np.array(values, np.uint8)[:, None, None, None], (len(values), 4, 4, 3)).copy()


def job(task, *, frames=8, prompts=("a red circle",), **given):
    request: dict[str, Any] = {"task": task, "prompt": prompts, **given.pop("request", {})}
    if "image_THWC" in given:
        request["image"] = "image.png"
    if "mask_THW" in given:
        request["mask"] = "mask.png"
    asked = Request(**request, video=("video.mp4",) * len(given.get("clips", ())))
    return Job(request=asked, prompts=prompts, negative="", size=(4, 4), fps=8.0, frames=frames, **given)


class Shows:
    """Notes what is shown: frames of the clip, the first one's value, the last one's."""

    def of_frames(self, frames, first_HWC, last_HWC):
        return frames, int(first_HWC[0, 0, 0]), None if last_HWC is None else int(last_HWC[0, 0, 0])


def make(one, *, limits=LIMITS, value=NEW):
    """Returns (frames that came out, one number each, canvases, scene), with `value` where nothing is known."""
    pieces: list[np.ndarray] = []
    canvases: list[Any] = []
    codec: Any = Averages()
    shower: Any = None if limits.shown is None else Shows()
    scene = VideoBuilder(one, limits, codec, pieces.append, shower)
    making = MAKERS[one.request.task](scene)
    latent = None
    while True:
        try:
            canvas = next(making) if latent is None else making.send(latent)
        except StopIteration:
            return np.concatenate(pieces)[:, 0, 0, 0].tolist(), canvases, scene
        canvases.append(canvas)
        assert canvas.latent_THWC.shape == (*canvas.grid, 1)
        latent = np.where(canvas.known_thw[..., None], canvas.latent_THWC, value).astype(np.float32)


def known(canvas):
    """Returns the value of each frame of tokens, None where nothing is known."""
    whole = canvas.known_thw.all(axis=(1, 2))
    assert (whole | ~canvas.known_thw.any(axis=(1, 2))).all(), "frames are known as a whole"
    value_t = canvas.latent_THWC.mean(axis=(1, 2, 3))
    return [round(float(value), 2) if there else None for value, there in zip(value_t, whole, strict=True)]


def test_a_video_of_a_prompt_is_one_canvas_where_it_fits_a_window():
    frames, (canvas,), _ = make(job("text", frames=13))
    assert frames == [NEW] * 13
    assert known(canvas) == [None] * 4
    assert canvas.guidance is None, "that of the config"


def test_a_longer_one_slides_and_each_window_begins_with_the_end_of_the_one_before():
    frames, canvases, scene = make(job("text", frames=29))
    assert frames == [NEW] * 29
    assert [known(canvas) for canvas in canvases] == [[None] * 4, [NEW, NEW, None, None], [NEW, NEW, None, None]]
    assert [canvas.window for canvas in canvases] == [0, 1, 2]
    assert canvases[1].guidance == 1.5
    assert scene.notes["drift"] == 0


def test_no_window_is_longer_than_a_row_allows():
    limits = dataclasses.replace(LIMITS, row_tokens=12)
    _, canvases, _ = make(job("text", frames=29), limits=limits)
    assert {canvas.grid[0] for canvas in canvases} == {3}


@pytest.mark.parametrize(
    "changes", [{}, {"overlap": None}, {"overlap": 1}, {"overlap": 50}, {"window": 21}, {"row_tokens": 12}]
)
@pytest.mark.parametrize("frames", [1, 5, 13, 17, 18, 29, 49])
def test_a_plan_knows_the_windows_of_a_prompt(frames, changes):
    limits = dataclasses.replace(LIMITS, **changes)
    _, canvases, _ = make(job("text", frames=frames), limits=limits)
    assert limits.windows(frames, limits.size) == [canvas.grid[0] for canvas in canvases]


def test_half_of_a_window_is_kept_however_long_a_row_lets_it_be():
    halves = dataclasses.replace(LIMITS, overlap=None, window=41)
    assert (halves.window_tokens((4, 4)), halves.shared((4, 4))) == (11, 17), "5 frames of tokens"
    shorter = dataclasses.replace(halves, row_tokens=16)
    assert (shorter.window_tokens((4, 4)), shorter.shared((4, 4))) == (4, 5), "2 frames of tokens"


@pytest.mark.parametrize("task", ["text", "extend", "edit", "fill"])
@pytest.mark.parametrize("changes", [{"overlap": 50}, {"row_tokens": 8}])
def test_a_window_always_makes_something_new(task, changes):
    """However much it should keep, and however little a row holds: two frames of tokens here."""
    given: dict[str, Any] = {} if task == "text" else {"clips": (video(*range(21)),)}
    if task == "fill":
        given["mask_THW"] = np.ones((21, 4, 4), bool)
    one = job(task, frames=21, **given)
    frames, canvases, _ = make(one, limits=dataclasses.replace(LIMITS, **changes))
    assert frames[-21:] == [NEW] * 21
    assert all(not canvas.known_thw.all() for canvas in canvases)


def test_an_image_is_the_first_frame():
    frames, (canvas,), _ = make(job("animate", frames=9, image_THWC=video(7)))
    assert frames == [7] + [NEW] * 8
    assert known(canvas) == [7, None, None]


def test_an_image_may_lead_to_another():
    one = job("animate", frames=13, image_THWC=video(7), last_image_THWC=video(90))
    frames, (canvas,), _ = make(one)
    assert frames == [7] + [NEW] * 8 + [90] * 4
    assert known(canvas) == [7, None, None, 90]


SHOWN = dataclasses.replace(LIMITS, shown=ShownConfig(channels=5, last="may"), overlap=1, knows=False)


def test_a_model_that_is_shown_its_first_frame_has_no_known_tokens():
    frames, (canvas,), _ = make(job("animate", frames=9, image_THWC=video(7)), limits=SHOWN)
    assert frames == [NEW] * 9, "also the first one, as it makes it"
    assert known(canvas) == [None] * 3
    assert (canvas.shown, canvas.guidance) == ((9, 7, None), None)
    kept = job("animate", frames=9, image_THWC=video(7), request={"keep_pixels": True})
    assert make(kept, limits=SHOWN)[0] == [7] + [NEW] * 8


def test_each_further_window_is_shown_the_end_of_the_one_before_and_the_last_one_its_end():
    one = job("animate", frames=29, image_THWC=video(7), last_image_THWC=video(90))
    frames, canvases, _ = make(one, limits=SHOWN)
    assert frames == [NEW] * 29
    assert [canvas.shown for canvas in canvases] == [(13, 7, None), (13, NEW, None), (5, NEW, 90)]
    assert [canvas.window for canvas in canvases] == [0, 1, 2]


def test_a_video_goes_on_from_what_is_shown_of_it():
    clip = video(*range(10, 19))
    frames, (canvas,), _ = make(job("extend", frames=6, clips=(clip,), request={"keep_pixels": True}), limits=SHOWN)
    assert frames == [*range(10, 19)] + [NEW] * 6
    assert canvas.shown == (9, 18, None)


@pytest.mark.parametrize(("at", "place"), [(0.5, 4), (1.0, 8)])
def test_an_image_may_be_shown_at_any_time(at, place):
    frames, canvases, _ = make(job("animate", frames=9, image_THWC=video(7), request={"at": at}))
    assert frames == [NEW] * place + [7] + [NEW] * (8 - place)
    assert known(canvases[0])[-1] == 7


def test_a_video_goes_on():
    clip = video(*range(10, 19))
    frames, canvases, _ = make(job("extend", frames=8, clips=(clip,), request={"keep_pixels": True}))
    assert frames == [*range(10, 19)] + [NEW] * 8
    assert known(canvases[0]) == [14, 16.5, None, None], "its last five frames"


def test_given_frames_come_back_through_the_autoencoder_unless_kept():
    clip = video(*range(10, 19))
    frames, _, _ = make(job("extend", frames=4, clips=(clip,)))
    assert frames[:9] == [10] + [12] * 4 + [16] * 4, "means of four frames"


@pytest.mark.parametrize("before", [0, 4])
def test_the_last_frames_come_back_out_of_a_full_group(before):
    clip = video(*range(10, 54, 4))
    one = dataclasses.replace(job("extend", frames=4, clips=(clip,)), before=before)
    frames, _, _ = make(one)
    given = frames[before : before + len(clip)]
    if before:  # they follow one frame of what was made
        assert given == [16] * 4 + [32] * 4 + [44] * 3, "the last four frames have the mean 44"
    else:
        assert given == [10] + [20] * 4 + [36] * 4 + [44] * 2


def test_a_video_shorter_than_a_group_is_filled_up_with_its_last_frame():
    frames, _, _ = make(job("extend", frames=4, clips=(video(10, 14, 18),)))
    assert frames[:3] == [10, 17, 17]


def test_a_video_has_a_past():
    clip = video(*range(10, 19))
    one = dataclasses.replace(job("extend", frames=4, clips=(clip,), request={"keep_pixels": True}), before=11)
    frames, canvases, _ = make(one)
    assert frames == [NEW] * 11 + [*range(10, 19)] + [NEW] * 4
    assert known(canvases[0]) == [None, None, None, 11.5], "its first four frames are the last"
    assert known(canvases[1]) == known(canvases[0])
    assert (canvases[0].strength, canvases[1].strength) == (1, 0.7), "once more, from what was made"
    assert canvases[1].latent_THWC[:3].mean() == NEW
    assert known(canvases[2])[-1] == NEW, "what was made before leads to what is made then"
    assert known(canvases[4]) == [14, 16.5, None]


def test_a_loop_ends_where_it_starts_and_notes_the_seam():
    clip = video(0, 10, 20, 30, 40)
    frames, (canvas,), scene = make(job("loop", frames=8, clips=(clip,), request={"keep_pixels": True}), value=20)
    assert frames == [0, 10, 20, 30, 40] + [20] * 8
    assert known(canvas) == [40, None, None, 15], "the end, something new, the start"
    assert scene.notes["seam"] == pytest.approx(20 / (60 / 12))


def test_a_long_way_back_is_made_in_windows_of_which_the_last_sees_both_sides():
    frames, canvases, _ = make(job("loop", frames=20, clips=(video(0, 10, 20, 30, 40),)))
    assert len(frames) == 25
    assert [known(canvas)[-1] for canvas in canvases[:-1]] == [None] * (len(canvases) - 1)
    assert known(canvases[-1])[0] == NEW
    assert known(canvases[-1])[-1] == 15


def test_two_videos_are_connected_while_the_second_prompt_takes_over():
    first, second = video(*[10] * 5), video(*[90] * 5)
    one = job("connect", frames=8, clips=(first, second), prompts=("a red circle", "a blue square"), strength=0.5)
    frames, (canvas,), _ = make(one)
    assert frames == [10] * 5 + [NEW] * 8 + [90] * 5
    assert known(canvas) == [10, None, None, 90]
    assert (canvas.strength, canvas.guidance) == (0.5, 1.0)
    np.testing.assert_allclose(canvas.turn.share_t, [0, 1 / 3, 2 / 3, 1])
    fade = canvas.latent_THWC.mean(axis=(1, 2, 3))
    early, late = (((np.arange(8) + 1) / 9) ** (2 / 3)).reshape(2, 4).mean(axis=1)
    np.testing.assert_allclose(fade, [10, 10 + 80 * early, 10 + 80 * late, 90], atol=0.5)


def test_a_connection_with_one_prompt_does_not_turn():
    _, (canvas,), _ = make(job("connect", frames=4, clips=(video(*[1] * 5), video(*[9] * 5)), strength=0.5))
    assert (canvas.turn, canvas.guidance) == (None, 1.5)


def test_an_edit_starts_from_the_video_and_slides_over_it():
    clip = video(*range(30))
    frames, canvases, _ = make(job("edit", frames=30, clips=(clip,), strength=0.6))
    assert frames == [NEW] * 30
    assert all(canvas.strength == 0.6 for canvas in canvases)
    assert canvases[0].latent_THWC.mean(axis=(1, 2, 3)).tolist() == [0, 2.5, 6.5, 10.5]
    assert known(canvases[1])[:3] == [NEW, NEW, None], "what was made of the frames before"
    assert canvases[1].latent_THWC[2].mean() == 14.5


@pytest.mark.parametrize("keep_pixels", [True, False])
def test_only_what_is_white_in_the_mask_is_made(keep_pixels):
    clip = video(*range(10, 19))
    mask_THW = np.zeros((9, 4, 4), bool)
    mask_THW[6:, :1, :1] = True
    one = job("fill", frames=9, clips=(clip,), mask_THW=mask_THW, request={"keep_pixels": keep_pixels})
    pieces: list[np.ndarray] = []
    canvases: list[Any] = []
    codec: Any = Averages()
    making = MAKERS["fill"](VideoBuilder(one, LIMITS, codec, pieces.append))
    canvases.append(next(making))
    unknown = ~canvases[0].known_thw
    assert unknown.sum() == 1, "one token holds all that is white"
    assert unknown[2, 0, 0]
    with pytest.raises(StopIteration):
        making.send(np.where(canvases[0].known_thw[..., None], canvases[0].latent_THWC, NEW).astype(np.float32))
    made = np.concatenate(pieces)[..., 0]
    assert (made[6:, 0, 0] == NEW).all()
    if keep_pixels:
        np.testing.assert_array_equal(made[~mask_THW], clip[..., 0][~mask_THW])
    else:
        assert made[5, 0, 0] == NEW, "tokens are made as a whole"


def test_a_small_video_is_enlarged_and_interpolated_before_it_is_made_anew():
    small = video(0, 40)[:, :2, :2]
    frames, (canvas,), _ = make(job("upscale", frames=5, clips=(small,), strength=0.4))
    assert len(frames) == 5
    assert canvas.grid == (2, 2, 2)
    assert canvas.latent_THWC.mean(axis=(1, 2, 3)).tolist() == [0, 25], "the mean of 10, 20, 30, 40"


def test_the_shortest_windows_lead_to_what_is_given():
    limits = dataclasses.replace(LIMITS, window=5, overlap=1)
    frames, canvases, _ = make(job("extend", clips=(video(*range(9)),), before=8, frames=0), limits=limits)
    assert (frames[:8], len(frames)) == ([NEW] * 8, 17)
    assert {canvas.grid[0] for canvas in canvases} == {2}
