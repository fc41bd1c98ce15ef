"""Smaller and slower forms of clips: sizes, rates, what is drawn, and that it is noted."""

import dataclasses

import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.data.clips import Clip
from sora_jax.preparation.context import made_beside
from sora_jax.preparation.controls import CONTROLS
from sora_jax.preparation.degrade import LowConfig, degraded

LOW = LowConfig(space=(2,), time=(1, 2, 4))


def a_clip(frames=9):
    ramp_HW = np.linspace(40, 200, 16 * 24).reshape(16, 24)
    pixels_THWC = np.repeat(np.repeat(ramp_HW[None, ..., None], frames, axis=0), 3, axis=-1)
    pixels_THWC[:, :, :, 1] += np.arange(frames)[:, None, None]
    return Clip(pixels_THWC=np.rint(pixels_THWC).astype(np.uint8), fps=8.0, captions=("a",), source_id="a")


def drawn(count=40, frames=9, config=LOW):
    return [degraded(a_clip(frames), np.random.default_rng(seed), config) for seed in range(count)]


def test_sizes_and_rates_are_what_was_drawn():
    found = drawn()
    assert {facts["time"] for _, facts in found} == {1, 2, 4}
    for clip, facts in found:
        time = int(facts["time"])
        assert clip.pixels_THWC.shape == (1 + 8 // time, 8, 12, 3)
        assert clip.pixels_THWC.dtype == np.uint8
        assert clip.fps == 8 / time
        assert (clip.captions, clip.source_id) == (("a",), "a")


def test_all_faults_are_drawn_and_noted_and_a_seed_says_which():
    found = drawn()
    assert {facts["kernel"] for _, facts in found} == {"area", "bicubic", "lanczos"}
    blurred, compressed = (np.mean([bool(facts[name]) for _, facts in found]) for name in ("blur", "jpeg"))
    assert 0.3 < blurred < 0.7
    assert 0.1 < compressed < 0.5
    again, facts = drawn(count=1)[0]
    np.testing.assert_array_equal(again.pixels_THWC, found[0][0].pixels_THWC)
    assert facts == found[0][1]


def test_what_is_drawn_is_done():
    """Of a clip that is plain but for one column, which shows each fault."""
    pixels_THWC = np.full((1, 16, 16, 3), 60, np.uint8)
    pixels_THWC[:, :, 8:10] = 220
    clip = Clip(pixels_THWC=pixels_THWC, fps=8.0, captions=(), source_id="a")
    clean = np.full((8, 8, 3), 60, np.uint8)
    clean[:, 4] = 220
    for seed in range(40):
        made, facts = degraded(clip, np.random.default_rng(seed), LOW)
        spoiled = facts["blur"] or facts["jpeg"] or facts["kernel"] != "area"
        assert (made.pixels_THWC[0] == clean).all() == (not spoiled), facts
        assert facts["time"] == 1, "an image has no frame to leave out"


def test_short_clips_keep_two_frames():
    assert {len(clip.pixels_THWC) for clip, _ in drawn(frames=3)} == {2, 3}


@pytest.mark.parametrize("factors", [{"space": ()}, {"time": (0, 2)}])
def test_what_is_no_factor_is_refused(factors):
    with pytest.raises(UserError, match="must be whole numbers from 1 on"):
        LowConfig(**{"space": (2,), "time": (1,), **factors})


def test_low_is_a_control_of_whole_tokens_whose_size_and_rate_say_what_was_drawn():
    clip = dataclasses.replace(a_clip(), pixels_THWC=a_clip().pixels_THWC[:, :, :20])
    beside, scale, facts = made_beside(clip, "low", CONTROLS["low"], (4, 8, 8)) or pytest.fail("there is none")
    assert scale == 2
    assert beside.pixels_THWC.shape[1:3] == (8, 16), "half of 16 x 32, which the clip is continued to"
    assert (len(beside.pixels_THWC) - 1) % 4 == 0
    assert beside.fps == 8 / int(facts["time"])
