"""Tiles keep every position once, and see all that it depends on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_jax.core.rng import Rngs
from sora_jax.models.autoencoder import Autoencoder, decoder_dims
from sora_jax.models.tiles import decoder_halo, encoder_halo, run_tiled, windows
from sora_jax.nn.conv import Past
from tests.models.test_autoencoder import config

KINDS = {
    "deep": config(patch=1, space_down=(True, True), time_down=(False, True), blocks=2, attention=False),
    "flat": config(patch=4, space_down=(False, False), time_down=(True, True), attention=False),
    "public": config(patch=2, space_down=(True, True), shortcuts=False, decoder_blocks=2, attention=False),
}


@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 9))
def test_windows_of_one_size_keep_each_position_once_with_its_surroundings(length, tile, halo):
    found = windows(length, tile=tile, halo=halo)
    assert len({window.stop - window.start for window in found}) == 1
    assert [position for window in found for position in range(window.first, window.last)] == list(range(length))
    for window in found:
        assert window.start <= max(0, window.first - halo)
        assert window.stop >= min(length, window.last + halo)
        assert window.stop - window.start <= tile + 2 * halo


def reach(run, x, places):
    """Returns how far along the rows of the output a change of the middle of the input is seen, in positions."""
    gradient = jax.jit(jax.grad(lambda x: run(x)[0, 0, places, 0].sum()))(x)
    rows = np.flatnonzero(np.abs(np.asarray(gradient)).max(axis=(0, 1, 3, 4)))
    return rows.min(), rows.max()


@pytest.mark.parametrize("kind", KINDS)
def test_the_halo_is_as_far_as_the_convolutions_reach(kind):
    """The gradient says which inputs matter: all within the halo, and a halo half as wide would miss some."""
    shape = KINDS[kind]
    model, stride = Autoencoder(shape, rngs=Rngs(0)), shape.space_stride
    noise, halo = np.random.default_rng(0), encoder_halo(shape)
    edge = halo + 1  # so that reaching beyond the halo is seen
    x = jnp.asarray(noise.normal(size=(1, 1, (2 * edge + 1) * stride, stride, 3)), jnp.float32)
    first, last = (row // stride for row in reach(lambda x: model.encoder.down(x, Past()), x, edge))
    assert 1 <= first <= edge - halo // 2
    assert edge + halo // 2 <= last < 2 * edge

    halo = decoder_halo(shape)
    edge = halo + 1
    x = jnp.asarray(noise.normal(size=(1, 1, 2 * edge + 1, 1, decoder_dims(shape)[0][0])), jnp.float32)
    first, last = reach(lambda x: model.decoder.up(x, Past()), x, slice(edge * stride, (edge + 1) * stride))
    assert 1 <= first <= edge - halo // 2
    assert edge + halo // 2 <= last < 2 * edge


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile", [3, 8])
def test_tiles_are_the_whole_within_rounding(kind, tile):
    shape = dataclasses.replace(KINDS[kind])
    model, stride = Autoencoder(shape, rngs=Rngs(0)), shape.space_stride
    noise = np.random.default_rng(1)
    halves = {
        "down": (
            model.encoder.down,
            noise.normal(size=(1, 1, 20 * stride, 17 * stride, 3)),
            encoder_halo(shape),
            stride,
            1,
        ),
        "up": (
            model.decoder.up,
            noise.normal(size=(1, 1, 20, 17, decoder_dims(shape)[0][0])),
            decoder_halo(shape),
            1,
            stride,
        ),
    }
    for name, (apply, x, halo, scale_in, scale_out) in halves.items():
        run = jax.jit(lambda x, apply=apply: apply(x, Past(is_whole=True)))
        x = x.astype(np.float32)
        tiled, after = run_tiled(
            lambda _, part, run=run: (run(part), None),
            None,
            x,
            tile=tile,
            halo=halo,
            scale_in=scale_in,
            scale_out=scale_out,
        )
        np.testing.assert_allclose(tiled, run(x), atol=1e-5, err_msg=name)
        assert len(after) > 1 or tile + 2 * halo >= 20
