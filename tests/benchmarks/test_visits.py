"""The count of visits sees what a kernel does: one that skips, and one that does not."""

import numpy as np

from sora_jax.benchmarks.visits import visit_figures, visited
from sora_jax.nn.flash import Kernel
from sora_jax.nn.kernels.blocked import Blocks, blocked


def test_equal_segments_cost_no_block_more_than_they_need():
    forward, backward = visit_figures([256, 256], block=128)
    assert (forward.value, backward.value) == (1.0, 1.0)


def test_a_kernel_that_skips_nothing_visits_every_pair():
    skipping = blocked(Blocks(queries=128, keys=128))
    segment_L = np.repeat([1, 2, 3], [128, 256, 128])
    assert visited(skipping, segment_L, block=128) == (6, 6)
    plain = Kernel(
        forward=lambda q, k, v, qs, ks: skipping.forward(q, k, v, qs * 0 + 1, ks * 0 + 1),
        backward=lambda q, k, v, qs, ks, *rest: skipping.backward(q, k, v, qs * 0 + 1, ks * 0 + 1, *rest),
    )
    assert visited(plain, segment_L, block=128) == (16, 16)
