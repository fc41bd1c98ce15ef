"""Multipliers of rates: the table of the module, and what they are for, updates that move outputs alike."""

import math

import numpy as np
import pytest

from sora_jax.nn.scaling import fans, rate_multiplier

FLAT, STACKED = ("embed", "mlp"), ("layers", "embed", "mlp")


@pytest.mark.parametrize(
    ("shape", "base", "adam", "muon"),
    [
        ((48, 256), (48, 64), 1.0, 1.0),  # an input
        ((256, 1024), (64, 256), 1 / 4, 1 / 2),  # hidden
        ((1024, 256), (256, 64), 1 / 4, 1 / 2),
        ((256, 48), (64, 48), 1 / 4, 1 / 4),  # an output
        ((48, 64), (48, 64), 1.0, 1.0),  # at the base width
        ((64, 64), (256, 256), 4.0, 2.0),  # narrower than it
    ],
)
def test_the_table(shape, base, adam, muon):
    assert rate_multiplier(shape, base, FLAT, orthogonal=False) == pytest.approx(adam)
    assert rate_multiplier(shape, base, FLAT, orthogonal=True) == pytest.approx(muon)
    stacked = rate_multiplier((3, *shape), (3, *base), STACKED, orthogonal=True)
    assert stacked == pytest.approx(muon), "layers are no fan"


def test_all_dimensions_but_the_last_are_of_the_input():
    assert fans((3, 3, 8, 16), (None, None, "conv_in", "conv_out")) == (72, 16)
    assert fans((5, 8, 16), STACKED) == (8, 16)


@pytest.mark.parametrize("orthogonal", [False, True])
def test_one_update_moves_what_a_hidden_map_gives_as_much_at_every_width(orthogonal):
    moved = []
    for width in (64, 256):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(1, width))
        gradient = x.T @ rng.normal(size=(1, width))  # of one example: what learning aligns with
        # As `train.optimizer` has them at a rate of 1: the sign of Adam's first step; Muon's of Adam's size.
        unit = gradient / np.linalg.norm(gradient)
        update = 0.2 * math.sqrt(width) * unit if orthogonal else np.sign(gradient)
        update *= rate_multiplier((width, width), (64, 64), FLAT, orthogonal=orthogonal)
        moved.append(np.sqrt(np.mean(np.square(x @ update))))
    np.testing.assert_allclose(moved[1] / moved[0], 1.0, atol=0.15)
