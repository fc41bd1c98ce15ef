"""Guidance against numpy, one segment at a time."""

import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.diffusion import guidance
from tests import small

SEGMENT_BL = np.array([[1, 1, 1, 2, 2, 0], [2, 2, 2, 2, 0, 0]])
SIGMA_BL = np.array([[0.8, 0.8, 0.8, 0.3, 0.3, 0.5], [0.5, 0.5, 0.5, 0.5, 0.1, 0.1]], np.float32)


def predictions():
    rng = np.random.default_rng(0)
    conditional, unconditional = rng.normal(0.5, 1.5, size=(2, 2, 6, 3)).astype(np.float32)
    return conditional, unconditional


def guide(config, conditional, unconditional, segment_BL=SEGMENT_BL):
    return np.asarray(
        guidance.guide(
            jnp.asarray(conditional),
            jnp.asarray(unconditional),
            sigma_BL=jnp.asarray(SIGMA_BL),
            segment_BL=jnp.asarray(segment_BL),
            num_segments=2,
            config=config,
        )
    )


def test_scale_runs_from_unconditional_through_conditional():
    conditional, unconditional = predictions()
    for scale, expected in (
        (0.0, unconditional),
        (1.0, conditional),
        (3.0, unconditional + 3 * (conditional - unconditional)),
    ):
        config = small.guidance_config(scale=scale)
        np.testing.assert_allclose(guide(config, conditional, unconditional), expected, rtol=1e-5, atol=1e-5)


def test_outside_the_interval_the_prediction_is_the_conditional_one():
    conditional, unconditional = predictions()
    found = guide(small.guidance_config(scale=3.0, interval=(0.3, 0.5)), conditional, unconditional)
    full = guide(small.guidance_config(scale=3.0), conditional, unconditional)
    inside_BL = SIGMA_BL == 0.5  # the high end counts, the low one does not
    np.testing.assert_array_equal(found[~inside_BL], conditional[~inside_BL])
    np.testing.assert_array_equal(found[inside_BL], full[inside_BL])
    assert not np.allclose(found[inside_BL], conditional[inside_BL])


@pytest.mark.parametrize("rescale", [0.3, 1.0])
def test_rescale_matches_each_segment_alone(rescale):
    conditional, unconditional = predictions()
    found = guide(small.guidance_config(scale=5.0, rescale=rescale), conditional, unconditional)
    plain = unconditional + 5 * (conditional - unconditional)
    for row, segment in ((0, 1), (0, 2), (1, 2)):
        here = SEGMENT_BL[row] == segment
        ratio = conditional[row, here].std() / plain[row, here].std()
        expected = plain[row, here] * (rescale * ratio + 1 - rescale)
        np.testing.assert_allclose(found[row, here], expected, rtol=1e-4)
        if rescale == 1.0:
            np.testing.assert_allclose(found[row, here].std(), conditional[row, here].std(), rtol=1e-4)
    np.testing.assert_allclose(found[SEGMENT_BL == 0], plain[SEGMENT_BL == 0], rtol=1e-5)


def test_tokens_marked_zero_do_not_enter_the_statistics():
    conditional, unconditional = predictions()
    config = small.guidance_config(scale=5.0, rescale=1.0)
    left_out = SEGMENT_BL.copy()
    left_out[0, 0] = 0
    wild = conditional.copy()
    wild[0, 0] = 1000.0
    one, two = (guide(config, values, unconditional, left_out)[0, 1:] for values in (conditional, wild))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("change", [{"scale": -1.0}, {"interval": (0.8, 0.2)}, {"rescale": 2.0}])
def test_bad_settings_are_named(change):
    with pytest.raises(UserError, match=next(iter(change))):
        small.guidance_config(**change)
