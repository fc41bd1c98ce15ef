"""The convolution in two dimensions against XLA's own in three."""

import jax
import numpy as np
import pytest

from sora_jax.nn.same_conv import same_conv


@pytest.mark.parametrize("size", [(1, 4, 4), (2, 5, 6), (7, 4, 9)])
@pytest.mark.parametrize(
    ("side", "stride"), [(1, (1, 1)), (3, (1, 1)), (3, (1, 2)), (3, (2, 2)), (7, (2, 2)), (1, (2, 3))]
)
def test_it_is_the_convolution_in_three_dimensions(size, side, stride):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *size, 3)).astype(np.float32)
    kernel = rng.normal(size=(side, side, side, 3, 4)).astype(np.float32)
    numbers, strides = ("NTHWC", "THWIO", "NTHWC"), (stride[0], stride[1], stride[1])
    expected = jax.lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=numbers)
    found = same_conv(x, kernel, stride=stride)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4)
