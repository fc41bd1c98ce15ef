"""Altered windows: other pixels of the same kind, a function of the window and the draws."""

import numpy as np
import pytest

from sora_jax.core import rng
from sora_jax.data import augment


def window(frames=5, height=12, width=16):
    return rng.generator(0, "window").integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def draws(seed):
    return rng.generator(seed, "alter")


def test_an_altered_window_is_another_of_the_same_kind():
    original = window()
    kept = original.copy()
    made = [augment.alter(original, draws(seed)) for seed in range(40)]
    np.testing.assert_array_equal(original, kept)
    assert {(x.shape, x.dtype) for x in made} == {(original.shape, np.dtype(np.uint8))}
    assert len({x.tobytes() for x in made}) > 30
    np.testing.assert_array_equal(made[7], augment.alter(original, draws(7)))


def test_some_are_mirrored_some_recoloured_some_flat_behind_cutouts():
    original = window(frames=3)
    made = [augment.alter(original, draws(seed)) for seed in range(200)]
    assert any(np.array_equal(x, original[:, :, ::-1]) for x in made)
    colours = [len(np.unique(x.reshape(-1, 3), axis=0)) for x in made]
    assert min(colours) < 60, "flat ground, flat cutouts and the soft edges between them"
    assert max(colours) > 300


def test_recoloured_keeps_what_is_equal_equal_and_reaches_saturation():
    flat = np.full((1, 2, 2, 3), 200, np.uint8)
    made = [augment.recoloured(flat, draws(seed)) for seed in range(60)]
    assert all((x == x[:, :1, :1]).all() for x in made)
    reached = np.concatenate([x[0, 0, 0] for x in made])
    assert (reached.min(), reached.max()) == (0, 255)


@pytest.mark.parametrize("seed", range(8))
def test_a_cutout_covers_shares_of_pixels_and_moves_as_one(seed):
    cover = augment.cutout((9, 40, 48), draws(seed))
    assert (cover.shape, cover.dtype) == ((9, 40, 48), np.dtype(np.float32))
    assert (cover.min(), cover.max()) == (0, 1)
    inside = (cover > 0) & (cover < 1)
    assert inside.any(), "edges are soft"
    whole = [frame for frame in cover if not np.concatenate([frame[0], frame[-1], frame[:, 0], frame[:, -1]]).any()]
    areas = [frame.sum() for frame in whole]
    np.testing.assert_allclose(areas, np.mean(areas) if areas else 0, rtol=0.05)
