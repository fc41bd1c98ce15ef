import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.nn import conv, winograd

# Of a causal kernel of three taps at the start of a clip of five frames; of one over the past of a later chunk.
START = [(2, 0, 3), (1, 0, 4), (0, 0, 5)]
LATER = [(0, 0, 3), (0, 1, 4), (0, 2, 5)]


def draw(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


def in_3d(x, kernel, zeros):
    numbers = ("NDHWC", "DHWIO", "NDHWC")
    pad = [(zeros, 0), (1, 1), (1, 1)]
    return jax.lax.conv_general_dilated(x, kernel, (1, 1, 1), pad, dimension_numbers=numbers, precision="highest")


@pytest.mark.parametrize(("windows", "zeros", "frames"), [(START, 2, 5), (LATER, 0, 3)])
@pytest.mark.parametrize(("height", "width"), [(8, 6), (7, 5), (1, 2)])
def test_it_is_the_convolution(windows, zeros, frames, height, width):
    x, kernel = draw(2, 5, height, width, 6), draw(3, 3, 3, 6, 4)
    made = winograd.convolve_3x3(x, kernel, windows, frames)
    np.testing.assert_allclose(made, in_3d(x, kernel, zeros), atol=5e-5)


def test_its_gradients_are_those_of_the_convolution():
    x, kernel, weights = draw(1, 5, 4, 6, 3), draw(3, 3, 3, 3, 2), draw(1, 5, 4, 6, 2)

    def gradients(function):
        return jax.grad(lambda x, kernel: jnp.sum(weights * function(x, kernel)), argnums=(0, 1))(x, kernel)

    made = gradients(lambda x, kernel: winograd.convolve_3x3(x, kernel, START, 5))
    for one, expected in zip(made, gradients(lambda x, kernel: in_3d(x, kernel, 2)), strict=True):
        np.testing.assert_allclose(one, expected, atol=1e-4)


def test_it_stands_in_for_a_convolution_of_many_channels():
    x, kernel = draw(1, 9, 22, 22, 96), draw(3, 3, 3, 96, 96) / 50
    assert winograd.pays(x.shape, kernel.shape)
    np.testing.assert_allclose(conv.convolve(x, kernel, zeros=2), in_3d(x, kernel, 2), atol=2e-5)


@pytest.mark.parametrize(
    ("clip", "kernel"),
    [
        ((1, 9, 22, 22, 64), (3, 3, 3, 64, 96)),
        ((1, 9, 22, 22, 96), (3, 3, 3, 96, 64)),
        ((1, 9, 22, 22, 96), (1, 3, 3, 96, 96)),
        ((1, 9, 20, 20, 96), (3, 3, 3, 96, 96)),
        ((1, 9, 256, 256, 96), (3, 3, 3, 96, 96)),
    ],
)
def test_it_is_left_where_it_does_not_pay_or_does_not_fit(clip, kernel):
    assert not winograd.pays(clip, kernel)
