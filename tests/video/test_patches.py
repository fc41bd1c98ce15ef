"""Tokens against a slow loop, and back."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_jax.video import patches, shapes

small = st.integers(1, 3)
triples = st.tuples(small, small, small)


def slow_patchify(latent_THWC, patch):
    grid = shapes.token_grid(latent_THWC.shape[:3], patch)
    tokens = []
    for corner in np.ndindex(*grid):
        token = []
        for inside in np.ndindex(*patch):
            t, h, w = (c * p + i for c, p, i in zip(corner, patch, inside, strict=True))
            token.extend(latent_THWC[t, h, w])
        tokens.append(token)
    return np.array(tokens, latent_THWC.dtype)


@settings(deadline=None)
@given(grid=triples, patch=triples, channels=small)
def test_patchify_matches_a_loop_and_inverts(grid, patch, channels):
    size = [n * p for n, p in zip(grid, patch, strict=True)]
    latent_THWC = np.arange(np.prod(size) * channels, dtype=np.float32).reshape(*size, channels)
    tokens_LP = patches.patchify(latent_THWC, patch)
    np.testing.assert_array_equal(tokens_LP, slow_patchify(latent_THWC, patch))
    back_THWC = patches.unpatchify(tokens_LP, grid=grid, patch=patch, channels=channels)
    np.testing.assert_array_equal(back_THWC, latent_THWC)


def test_numpy_stays_numpy_and_jax_agrees():
    latent_THWC = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)
    tokens_LP = patches.patchify(latent_THWC, (1, 2, 2))
    assert isinstance(tokens_LP, np.ndarray)
    np.testing.assert_array_equal(patches.patchify(jnp.asarray(latent_THWC), (1, 2, 2)), tokens_LP)


def test_tokens_line_up_with_positions():
    t, h, w = np.indices((2, 3, 4))
    tokens_LP = patches.patchify(np.stack([t, h, w], axis=-1), (1, 1, 1))
    np.testing.assert_array_equal(tokens_LP, shapes.positions((2, 3, 4), 1.0))
