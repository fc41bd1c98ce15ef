"""Two experts: the levels that each is asked for, and what goes from the one to the other."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.core.rng import Rngs
from sora_jax.core.tree import abstract_model
from sora_jax.data.packing.packs import PackLayout
from sora_jax.data.packing.plan import Budget
from sora_jax.data.tokens import BYTE_TOKENIZER
from sora_jax.diffusion.grids import Grid
from sora_jax.generate.canvas import Canvas
from sora_jax.generate.denoiser import SolverConfig
from sora_jax.generate.experts import HIGH, LOW, Experts, ExpertsSampler
from sora_jax.generate.sampler import Sampler
from sora_jax.models.autoencoder import Autoencoder
from sora_jax.models.codec import Codec
from tests import small
from tests.small import generator, random_params

AUTOENCODER = dataclasses.replace(
    small.AUTOENCODER, multipliers=(1,), space_down=(), time_down=(), channels=3, shortcuts=False
)
LAYOUT = PackLayout(
    budget=Budget(tokens=12, text_tokens=8, segments=2),
    patch=(1, 1, 1),
    channels=3,
    temporal_stride=1,
    time_rate=2.0,
    tokenizer=BYTE_TOKENIZER,
)
ONE = SolverConfig(
    steps=5,
    method="unipc",
    path=small.path_config(prediction="velocity"),
    noise=small.noise_config(),
    guidance=small.guidance_config(scale=2.0, interval=(0.0, 1.0)),
    grid=Grid(name="wan", shift=3.0),
    keeps_known=True,
)
TWO = dataclasses.replace(ONE, experts=(0.875, 2.0))
CANVASES = [
    Canvas(prompt="a red circle", grid=(2, 2, 2), fps=8.0, seed=0),
    Canvas(prompt="blue", grid=(1, 2, 2), fps=8.0, seed=1, strength=0.5, latent_THWC=np.ones((1, 2, 2, 3), np.float32)),
]


@functools.cache
def parts():
    structure, shapes, _ = abstract_model(generator(3))
    decoder = abstract_model(lambda key: Autoencoder(AUTOENCODER, rngs=Rngs(key)))[1]
    codec = Codec(AUTOENCODER, random_params(decoder, seed=1), mean_C=np.zeros(3), scale_C=np.ones(3))
    return structure, codec, random_params(shapes, seed=2), random_params(shapes, seed=3)


@functools.cache
def sampler():
    """Returns (sampler, its weights by expert, the experts in the order in which they were asked for)."""
    structure, codec, _, _ = parts()
    weights, asked = {}, []

    def load(number):
        asked.append(number)
        return weights[number]

    options = {"rows": 1, "config": TWO, "dtype": jnp.dtype(jnp.float32)}
    return ExpertsSampler(Experts(load), structure, codec, LAYOUT, **options), weights, asked


def latents(high, low):
    made, weights, asked = sampler()
    asked.clear()
    weights.update({HIGH: high, LOW: low})
    return made.latents({}, CANVASES)


def test_two_equal_experts_are_one_model():
    structure, codec, params, other = parts()
    single = Sampler(structure, codec, LAYOUT, rows=1, config=ONE, dtype=jnp.dtype(jnp.float32))
    found = latents(params, params)
    assert sampler()[2] == [HIGH, LOW], "what starts at half the way needs the low one alone, which is there already"
    for one, wanted in zip(found, single.latents(params, CANVASES), strict=True):
        np.testing.assert_allclose(one, wanted, rtol=1e-5, atol=1e-6)
    changed = latents(other, params)
    assert np.abs(changed[0] - found[0]).max() > 0.1
    np.testing.assert_array_equal(changed[1], found[1])


@pytest.mark.parametrize("change", [{"cache": 0.1}, {"method": "heun"}, {"grid": None}])
def test_solvers_that_would_mix_experts_are_refused(change):
    with pytest.raises(UserError, match="two experts take turns"):
        dataclasses.replace(TWO, **change)
