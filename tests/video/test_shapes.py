"""Sizes from pixels to tokens: round trips, and error messages whose remedies are legal."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_jax.core.errors import UserError
from sora_jax.video import shapes

small = st.integers(1, 6)
triples = st.tuples(small, small, small)


@settings(deadline=None)
@given(grid=triples, stride=triples, patch=triples)
def test_sizes_round_trip(grid, stride, patch):
    latent = tuple(n * p for n, p in zip(grid, patch, strict=True))
    pixels = 1 + (latent[0] - 1) * stride[0], latent[1] * stride[1], latent[2] * stride[2]
    assert shapes.latent_grid(pixels, stride) == latent
    assert shapes.token_grid(latent, patch) == grid
    assert shapes.clip_token_grid(pixels, stride=stride, patch=patch) == grid


def test_an_image_is_one_latent_frame():
    assert shapes.latent_grid((1, 16, 24), (4, 8, 8)) == (1, 2, 3)


@settings(deadline=None)
@given(pixels=st.tuples(*[st.integers(1, 40)] * 3), stride=triples, patch=triples)
def test_an_illegal_side_is_named_with_the_legal_sides_around_it(pixels, stride, patch):
    legal = set()
    for axis, (step, block) in enumerate(zip(stride, patch, strict=True)):
        starts = range(1, 400) if axis == 0 else range(step, 400, step)
        for size in starts:
            cells = 1 + (size - 1) // step if axis == 0 else size // step
            if (axis or (size - 1) % step == 0) and cells % block == 0:
                legal.add((axis, size))
    wrong = [axis for axis in range(3) if (axis, pixels[axis]) not in legal]
    if not wrong:
        shapes.clip_token_grid(pixels, stride=stride, patch=patch)
        return
    axis = wrong[0]
    with pytest.raises(UserError) as caught:
        shapes.clip_token_grid(pixels, stride=stride, patch=patch)
    message = str(caught.value)
    assert message.startswith(f"{('frames', 'height', 'width')[axis]} {pixels[axis]} ")
    offered = [int(number) for number in re.findall(r"\d+", message.split("nearest:")[1])]
    sizes = sorted(size for side, size in legal if side == axis)
    below = [size for size in sizes if size < pixels[axis]][-1:]
    above = [size for size in sizes if size > pixels[axis]][:1]
    assert offered == below + above


def test_the_message_shows_where_the_step_comes_from():
    with pytest.raises(UserError) as caught:
        shapes.clip_token_grid((17, 250, 256), stride=(4, 8, 8), patch=(1, 2, 2))
    assert str(caught.value) == ("height 250 is not divisible by 16 = 8 (autoencoder) x 2 (patch); nearest: 240, 256")


def test_positions_are_raster_order_in_real_time():
    step = shapes.time_step(12.0, temporal_stride=4, temporal_patch=1, time_rate=6.0)
    position_L3 = shapes.positions((3, 2, 2), step)
    expected = [(t * 4 / 12 * 6, h, w) for t in range(3) for h in range(2) for w in range(2)]
    assert position_L3.dtype == np.float32
    np.testing.assert_allclose(position_L3, expected)
    assert len(position_L3) == shapes.count((3, 2, 2))
