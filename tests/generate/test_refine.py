"""Jobs in passes: each is made of what the one before it made, with noise of its own, and the frames come out once."""

from typing import Any

import numpy as np

from sora_jax.generate.cascade import plan_passes
from sora_jax.generate.scheduler import Rounds, make_all
from tests.generate.test_tasks import LIMITS, Averages, job


class Notes:
    """A sampler that notes canvases, and makes each a little brighter than what it starts from."""

    codec: Any = Averages()
    shower = None

    def __init__(self):
        self.canvases: list[Any] = []

    def latents(self, params, canvases):
        self.canvases += canvases
        return [np.where(one.known_thw[..., None], one.latent_THWC, one.latent_THWC.mean() + 10) for one in canvases]


def refined(frames, refine, **given):
    one = job("text", frames=frames, **given)
    return one.__class__(**{**vars(one), "passes": plan_passes(refine, size=one.size, frames=frames, fps=one.fps)})


def made(one):
    sampler: Any = Notes()
    (video,) = make_all(sampler, {}, [one], LIMITS)
    return video.clip, sampler.canvases


def test_a_slow_video_is_made_first_and_then_the_fast_one_of_it():
    clip, canvases = made(refined(13, (("time", 4),)))
    assert clip.shape == (13, 4, 4, 3)
    assert (clip == 20).all(), "10 of the first pass, 10 of the second"
    slow, fast = canvases
    assert (slow.grid[0], slow.fps, slow.strength) == (2, 2.0, 1.0)
    assert (fast.grid[0], fast.fps, fast.strength) == (4, 8.0, 0.4)
    assert (slow.window, fast.window) == (0, 1), "noise of its own"


def test_no_frame_comes_out_that_was_not_asked_for():
    clip, canvases = made(refined(6, (("time", 4),)))
    assert len(clip) == 6
    assert [canvas.grid[0] for canvas in canvases] == [2, 3]


def test_three_passes_and_windows_that_slide_share_rounds_with_other_jobs():
    sampler: Any = Notes()
    rounds = Rounds(sampler, {}, LIMITS)
    pieces: list[np.ndarray] = []
    rounds.add(refined(29, (("time", 2), ("time", 2))), pieces.append)
    rounds.add(job("text", frames=5), lambda clip: None)
    while rounds:
        rounds.step()
    whole = np.concatenate(pieces)
    assert len(whole) == 29
    assert (whole >= 30).all()
