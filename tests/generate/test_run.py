"""Sampling: a clip is a function of its request alone, and of the same bytes every time."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sora_jax.core.tree import abstract_model, merge_model
from sora_jax.data.packing import Budget
from sora_jax.data.packs import PackLayout
from sora_jax.diffusion import guidance, known, noise_levels, path
from sora_jax.generate.canvas import Canvas, lay_out
from sora_jax.generate.run import Sampler, SolverConfig, make_solver
from sora_jax.models.autoencoder import Autoencoder
from sora_jax.models.codec import Codec
from sora_jax.objectives.diffusion import without_caption
from tests import small
from tests.small import generator, random_params

AUTOENCODER = dataclasses.replace(
    small.AUTOENCODER, multipliers=(1,), space_down=(), time_down=(), channels=3, shortcuts=False
)
LAYOUT = PackLayout(
    budget=Budget(tokens=24, text_tokens=16, segments=4), patch=(1, 1, 1), channels=3, temporal_stride=1, time_rate=2.0
)
SOLVER = SolverConfig(
    steps=3,
    method="heun",
    path=path.PathConfig(min_sigma=0.1),
    noise=noise_levels.NoiseConfig(shift_base_tokens=2.0),
    guidance=guidance.GuidanceConfig(scale=2.0),
)
FIRST = Canvas(prompt="a red circle", grid=(2, 2, 2), fps=8.0, seed=0)
OTHERS = [
    Canvas(prompt="blue", grid=(1, 2, 2), fps=8.0, seed=1),
    Canvas(prompt="a red circle moves", grid=(2, 2, 3), fps=4.0, seed=2),
    Canvas(prompt="", grid=(1, 1, 1), fps=8.0, seed=3),
    Canvas(prompt="green", grid=(2, 2, 2), fps=8.0, seed=4),
    Canvas(prompt="a white square", grid=(2, 2, 2), fps=8.0, seed=5),
]


@functools.cache
def made():
    """Returns (sampler, parameters of the generator, structure); all weights random, so that everything matters."""
    structure, shapes, _ = abstract_model(generator(3))
    decoder = abstract_model(lambda key: Autoencoder(AUTOENCODER, rngs=nnx.Rngs(key)))[1]
    codec = Codec(AUTOENCODER, random_params(decoder, seed=1), mean_C=np.zeros(3), scale_C=np.ones(3))
    sampler = Sampler(structure, codec, LAYOUT, rows=2, config=SOLVER, dtype=jnp.dtype(jnp.float32))
    return sampler, random_params(shapes), structure


def sample(*canvases):
    sampler, params, _ = made()
    return sampler(params, list(canvases))


def test_each_request_gets_a_clip_of_its_size_in_order():
    clips = sample(FIRST, *OTHERS)
    assert [clip.shape for clip in clips] == [(t, 4 * h, 4 * w, 3) for t, h, w in (c.grid for c in (FIRST, *OTHERS))]
    assert all(clip.dtype == np.uint8 for clip in clips)
    assert all(len(np.unique(clip)) > 20 for clip in clips[:3]), "they are pictures"


def test_a_clip_does_not_depend_on_what_shares_its_batch():
    alone = sample(FIRST)[0].astype(int)
    places = set()
    for company in (OTHERS, OTHERS[::-1], OTHERS[3:], OTHERS[2:] * 2):
        canvases = [*company[:2], FIRST, *company[2:]]
        place = lay_out(canvases, LAYOUT, rows=2)[1][2]
        places.add((place.row, place.tokens.start))
        assert np.abs(sample(*canvases)[2] - alone).max() <= 1
    assert {start for _, start in places} > {0}, "before others and after them"
    twice = sample(FIRST, *OTHERS, FIRST)
    assert np.abs(twice[0].astype(int) - twice[-1]).max() <= 1, "the same request twice"


def test_the_same_call_gives_the_same_bytes():
    first, second = (sample(FIRST, *OTHERS) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("change", [{"seed": 9}, {"prompt": "a blue circle"}])
def test_what_is_asked_for_matters(change):
    assert np.abs(sample(dataclasses.replace(FIRST, **change))[0].astype(int) - sample(FIRST)[0]).max() > 1


def test_one_step_from_pure_noise_is_the_guided_clean_prediction():
    """With a clean prediction an Euler step from level 1 to 0 lands on what the network sees in the noise."""
    _, params, structure = made()
    config = dataclasses.replace(SOLVER, steps=1, method="euler")
    packs, _ = lay_out([FIRST, *OTHERS[:2]], LAYOUT, rows=2)
    pack = {name: jnp.asarray(value) for name, value in packs[0].items()}
    solved = make_solver(structure, config, dtype=jnp.dtype(jnp.float32))(params, pack)

    @jax.jit
    def predict(text_segment_BK):
        model = merge_model(structure, params)
        text_BKE = model.encode_text(pack | {"text_segment_BK": text_segment_BK}, jnp.dtype(jnp.float32))
        level_BL = known.level_index(pack["segment_BL"], jnp.zeros((2, 24), bool), num_segments=4)
        levels_BG = known.level_table(jnp.ones((2, 4)), jnp.zeros((2, 4)))
        return model.predict(
            pack["tokens_BLP"],
            pack,
            levels_BG=levels_BG,
            level_BL=level_BL,
            text_BKE=text_BKE,
            text_segment_BK=text_segment_BK,
        )

    given = predict(pack["text_segment_BK"])
    hidden = predict(without_caption(pack, jnp.ones((2, 4), bool)))
    real = np.asarray(pack["segment_BL"]) > 0
    np.testing.assert_allclose(solved[real], (hidden + 2 * (given - hidden))[real], atol=1e-4)
    assert np.abs(np.asarray(given - hidden))[real].max() > 1e-2, "the prompt is seen"


def test_guidance_of_one_is_the_prediction_alone():
    """Without guidance there is no second prediction to pay for."""
    _, params, structure = made()
    plain = dataclasses.replace(SOLVER, steps=1, method="euler", guidance=guidance.GuidanceConfig(scale=1.0))
    packs, _ = lay_out([FIRST], LAYOUT, rows=2)
    texts = {}
    for name, config in (("plain", plain), ("guided", dataclasses.replace(plain, guidance=SOLVER.guidance))):
        texts[name] = make_solver(structure, config, dtype=jnp.dtype(jnp.float32)).lower(params, packs[0]).as_text()
    assert texts["plain"].count("dot_general") < texts["guided"].count("dot_general")
