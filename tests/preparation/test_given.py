"""Controls that lie beside clips: they go through what the clip goes through."""

import numpy as np

from sora_jax.data.clips import Clip, fit_clip
from sora_jax.preparation.context import made_beside
from sora_jax.preparation.controls import CONTROLS
from sora_jax.preparation.given import GIVEN_KINDS
from sora_jax.video.parts import ROLES


def moving(frames=7, height=40, width=72):
    generator = np.random.default_rng(0)
    small = generator.integers(0, 256, (frames, height // 8, width // 8, 3), np.uint8)
    return small.repeat(8, axis=1).repeat(8, axis=2)


def test_each_has_a_role_of_its_own():
    assert {CONTROLS[kind].role for kind in GIVEN_KINDS} == {*GIVEN_KINDS} <= ROLES.keys()


def test_it_is_cut_scaled_and_halved_with_its_clip():
    pixels = moving()
    clip = Clip(pixels_THWC=pixels, fps=8.0, captions=(), source_id="a", beside={"depth": 255 - pixels})
    fitted = fit_clip(clip, stride=(4, 8, 8), min_tokens=1, max_tokens=60, max_frames=5).clip
    assert fitted.pixels_THWC.shape == fitted.beside["depth"].shape != pixels.shape
    np.testing.assert_array_equal(fitted.beside["depth"], 255 - fitted.pixels_THWC)
    found = made_beside(fitted, "depth", CONTROLS["depth"], (4, 8, 8))
    assert found is not None
    made, scale, drawn = found
    assert (scale, drawn, len(made.pixels_THWC)) == (2, {}, 5)
    assert made_beside(fitted, "pose", CONTROLS["pose"], (4, 8, 8)) is None, "nothing was given"
