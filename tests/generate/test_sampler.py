"""Sampling: a clip is a function of its request alone, and of the same bytes every time."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.core.mesh import MeshConfig, make_mesh
from sora_jax.core.rng import Rngs
from sora_jax.core.sharding import param_shardings
from sora_jax.core.tree import abstract_model, merge_model
from sora_jax.data.packing.packs import PackLayout
from sora_jax.data.packing.plan import Budget
from sora_jax.data.tokens import BYTE_TOKENIZER
from sora_jax.diffusion import known, noise_levels
from sora_jax.generate import sampler as sampler_module
from sora_jax.generate.canvas import Canvas, Turn, lay_out
from sora_jax.generate.denoiser import SolverConfig, taken_over
from sora_jax.generate.sampler import Sampler, fresh_noise, make_solver
from sora_jax.models.autoencoder import Autoencoder
from sora_jax.models.codec import Codec
from sora_jax.models.text_to_video import without_caption
from sora_jax.models.transformer import Prediction
from sora_jax.objectives.diffusion import DiffusionConfig, make_objective
from tests import small
from tests.small import generator, random_params

AUTOENCODER = dataclasses.replace(
    small.AUTOENCODER, multipliers=(1,), space_down=(), time_down=(), channels=3, shortcuts=False
)
LAYOUT = PackLayout(
    budget=Budget(tokens=24, text_tokens=16, segments=4),
    patch=(1, 1, 1),
    channels=3,
    temporal_stride=1,
    time_rate=2.0,
    tokenizer=BYTE_TOKENIZER,
)
SOLVER = SolverConfig(
    steps=3,
    method="heun",
    path=small.path_config(min_sigma=0.1),
    noise=small.noise_config(shift_base_tokens=2.0),
    guidance=small.guidance_config(scale=2.0),
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
    decoder = abstract_model(lambda key: Autoencoder(AUTOENCODER, rngs=Rngs(key)))[1]
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


def test_a_canvas_that_rows_do_not_hold_has_rows_of_its_own():
    """Twice as many tokens as a row of training has, beside others; as in rows that were as long from the start."""
    long = Canvas(prompt="a red circle", grid=(3, 4, 4), fps=8.0, seed=0)
    assert math.prod(long.grid) == 2 * LAYOUT.budget.tokens
    sampler, params, structure = made()
    mixed = sampler(params, [FIRST, long, *OTHERS])
    assert [clip.shape for clip in mixed[:2]] == [(2, 8, 8, 3), (3, 16, 16, 3)]
    assert np.abs(mixed[0].astype(int) - sample(FIRST)[0]).max() <= 1
    budget = dataclasses.replace(LAYOUT.budget, tokens=48)
    roomy = Sampler(
        structure,
        sampler.codec,
        dataclasses.replace(LAYOUT, budget=budget),
        rows=1,
        config=SOLVER,
        dtype=jnp.dtype(jnp.float32),
    )
    assert np.abs(mixed[1].astype(int) - roomy(params, [long])[0]).max() <= 1


def test_the_same_call_gives_the_same_bytes():
    first, second = (sample(FIRST, *OTHERS) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("change", [{"seed": 9}, {"prompt": "a blue circle"}])
def test_what_is_asked_for_matters(change):
    assert np.abs(sample(dataclasses.replace(FIRST, **change))[0].astype(int) - sample(FIRST)[0]).max() > 1


@functools.cache
def solver_of(config):
    return make_solver(made()[2], config, dtype=jnp.dtype(jnp.float32))


def solved(canvases, config):
    """Returns (tokens_BLP, the one batch) of canvases that fit it."""
    (batch,), _ = lay_out(canvases, LAYOUT, rows=2)
    return np.asarray(solver_of(config)(made()[1], batch)), batch


ONE_STEP = dataclasses.replace(SOLVER, steps=1, method="euler")
PLAIN = dataclasses.replace(ONE_STEP, guidance=small.guidance_config(scale=1.0))


def test_one_step_from_pure_noise_is_the_guided_clean_prediction():
    """With a clean prediction an Euler step from level 1 to 0 lands on what the network sees in the noise."""
    _, params, structure = made()
    found, batch = solved([FIRST, *OTHERS[:2]], ONE_STEP)
    pack = {name: jnp.asarray(value) for name, value in batch.pack.items()}

    @jax.jit
    def predict(text_segment_BK):
        model = merge_model(structure, params)
        text_BKE = model.encode_text(pack | {"text_segment_BK": text_segment_BK}, jnp.dtype(jnp.float32))
        level_BL = known.level_index(pack["segment_BL"], jnp.zeros((2, 24), bool), num_segments=4)
        levels_BG = known.level_table(jnp.ones((2, 4)), jnp.zeros((2, 4)))
        return model.predict(
            jnp.asarray(batch.noise_BLP),
            pack,
            levels_BG=levels_BG,
            level_BL=level_BL,
            text_BKE=text_BKE,
            text_segment_BK=text_segment_BK,
        ).tokens_BLP

    given = predict(pack["text_segment_BK"])
    hidden = predict(without_caption(pack, jnp.ones((2, 4), bool))["text_segment_BK"])
    real = np.asarray(pack["segment_BL"]) > 0
    np.testing.assert_allclose(found[real], (hidden + 2 * (given - hidden))[real], atol=1e-4)
    assert np.abs(np.asarray(given - hidden))[real].max() > 1e-2, "the prompt is seen"


def test_each_canvas_may_have_guidance_of_its_own():
    weaker = dataclasses.replace(FIRST, guidance=1.0)
    mixed, batch = solved([weaker, *OTHERS[:2]], ONE_STEP)
    segment_BL = batch.pack["segment_BL"]
    sample_BL = np.take_along_axis(batch.pack["sample_BS"], np.maximum(segment_BL - 1, 0), axis=1)
    here, others = ((segment_BL > 0) & mine for mine in (sample_BL == 0, sample_BL != 0))
    guided = solved([FIRST, *OTHERS[:2]], ONE_STEP)[0]
    np.testing.assert_allclose(mixed[here], solved([FIRST, *OTHERS[:2]], PLAIN)[0][here], atol=1e-5)
    np.testing.assert_allclose(mixed[others], guided[others], atol=1e-5)
    assert np.abs(mixed[here] - guided[here]).max() > 1e-2


def test_an_empty_negative_prompt_is_that_of_dropped_captions_and_another_matters():
    plain, _ = solved([FIRST], ONE_STEP)
    for negative, differs in (("", False), ("a blue square", True)):
        found, _ = solved([dataclasses.replace(FIRST, negative=negative)], ONE_STEP)
        assert (np.abs(found - plain).max() > 1e-2) == differs


def given_canvas(**changes):
    latent = np.random.default_rng(0).normal(size=(*FIRST.grid, 3)).astype(np.float32)
    known_thw = np.zeros(FIRST.grid, bool)
    known_thw[0] = True
    return dataclasses.replace(FIRST, latent_THWC=latent, known_thw=known_thw, **changes)


@functools.cache
def sampler_of(config=SOLVER, **options):
    sampler, _, structure = made()
    return Sampler(
        structure, sampler.codec, LAYOUT, **{"rows": 2} | options, config=config, dtype=jnp.dtype(jnp.float32)
    )


@pytest.mark.parametrize("method", ["euler", "heun", "dpm", "unipc", "stochastic"])
def test_known_tokens_are_kept_bit_for_bit(method):
    canvas = given_canvas()
    sampler = sampler_of(dataclasses.replace(SOLVER, method=method))
    latent = sampler.latents(made()[1], [OTHERS[0], canvas])[1]
    assert latent[0].tobytes() == canvas.latent_THWC[0].tobytes()
    assert np.abs(latent[1] - canvas.latent_THWC[1]).max() > 0.1, "the rest is made"


def test_fresh_noise_is_unit_normal_new_in_each_step_and_that_of_the_canvas_alone():
    noise_BLP = jax.random.normal(jax.random.key(3), (4, 60, 5))
    drawn = np.stack([fresh_noise(noise_BLP, jnp.int32(number)) for number in range(3)])
    np.testing.assert_allclose([drawn.mean(), drawn.std()], [0, 1], atol=0.04)
    every = np.concatenate([noise_BLP[None], drawn]).reshape(4, -1)
    assert np.abs(np.corrcoef(every) - np.eye(4)).max() < 0.15
    np.testing.assert_array_equal(fresh_noise(noise_BLP[1:2, 7:], jnp.int32(2)), drawn[2, 1:2, 7:])
    sampler = sampler_of(dataclasses.replace(SOLVER, method="stochastic"))
    alone, beside = (sampler.latents(made()[1], canvases)[-1] for canvases in ([FIRST], [*OTHERS, FIRST]))
    np.testing.assert_allclose(alone, beside, atol=1e-5)


def test_what_starts_from_something_given_gets_no_fresh_noise():
    """There the stochastic solver goes as Euler does."""
    latent = np.random.default_rng(1).normal(size=(*FIRST.grid, 3)).astype(np.float32)
    canvases = [dataclasses.replace(FIRST, latent_THWC=latent, strength=0.4), OTHERS[0]]
    found, euler = (
        sampler_of(dataclasses.replace(SOLVER, method=method)).latents(made()[1], canvases)
        for method in ("stochastic", "euler")
    )
    np.testing.assert_allclose(found[0], euler[0], atol=1e-4)
    assert np.abs(found[1] - euler[1]).max() > 0.1


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_guidance_leaves_out_what_is_given_together_with_the_text(strength):
    """At scale 0 only what is left out is followed: as if neither a prompt nor a part had been given."""
    given = given_canvas(strength=strength, guidance=0.0)
    nothing = dataclasses.replace(given, prompt="", known_thw=None)
    found, plain = (solved([canvas], ONE_STEP)[0][0, :8].reshape(2, 4, 3) for canvas in (given, nothing))
    np.testing.assert_allclose(found[1], plain[1], atol=1e-5)
    assert np.abs(found[0] - plain[0]).max() > 0.1, "what is given is kept"
    guided = solved([dataclasses.replace(given, guidance=1.0)], ONE_STEP)[0][0, :8].reshape(2, 4, 3)
    assert np.abs(guided[1] - plain[1]).max() > 1e-2, "what is given is seen"


def test_training_and_sampling_give_the_network_the_same(monkeypatch):
    """The objective at a level, and the solver that starts there, condition on the same known tokens alike."""
    seen = []

    class Spy:
        def encode_text(self, pack, dtype):
            return jnp.zeros((*pack["text_segment_BK"].shape, 2), dtype)

        def predict(self, tokens_BLP, pack, *, levels_BG, level_BL, text_BKE, text_segment_BK, reused=None, kept=None):
            seen.append((tokens_BLP, levels_BG, level_BL))
            return Prediction(tokens_BLP, tokens_BLP)

    (batch,), _ = lay_out([given_canvas(strength=0.5), OTHERS[0]], LAYOUT, rows=1)
    starts = {"start": jnp.asarray(batch.strength_BS)}
    sigma_BS = noise_levels.schedule(1, batch.pack["grid_BS3"].prod(-1), SOLVER.noise, **starts)[0]
    monkeypatch.setattr("sora_jax.generate.sampler.merge_model", lambda structure, params: Spy())
    with jax.disable_jit():
        make_solver(None, PLAIN, dtype=jnp.dtype(jnp.float32))({}, jax.tree.map(jnp.asarray, batch))
        monkeypatch.setattr(known, "draw_known", lambda *_, **__: jnp.asarray(batch.known_BL))
        monkeypatch.setattr(known, "draw_known_level", lambda *_: jnp.zeros_like(sigma_BS))
        monkeypatch.setattr(noise_levels, "draw", lambda *_, **__: sigma_BS)
        monkeypatch.setattr(jax.random, "normal", lambda *_: jnp.asarray(batch.noise_BLP))
        config = DiffusionConfig(path=SOLVER.path, noise=SOLVER.noise, caption_dropout=0.0, loss_bands=None)
        objective = make_objective(config, small.known_config(), dtype=jnp.dtype(jnp.float32))
        model: Any = Spy()
        objective(model, jax.tree.map(jnp.asarray, batch.pack), jax.random.key(0))
    sampled, trained = seen[0], seen[-1]
    for one, other in zip(sampled, trained, strict=True):
        np.testing.assert_array_equal(one, other)
    known_L = batch.known_BL[0]
    np.testing.assert_array_equal(sampled[0][0][known_L], batch.pack["tokens_BLP"][0][known_L])
    assert known_L.sum() == 4


def test_a_second_prompt_takes_over_along_time():
    def found(share):
        turn = Turn(prompt="a blue square", share_t=np.full(2, share, np.float32))
        return solved([dataclasses.replace(FIRST, turn=turn)], PLAIN)[0][0, :8]

    first, second, half = found(0.0), found(1.0), found(0.5)
    np.testing.assert_allclose(first, solved([FIRST], PLAIN)[0][0, :8], atol=1e-5)
    other = dataclasses.replace(FIRST, prompt="a blue square")
    np.testing.assert_allclose(second, solved([other], PLAIN)[0][0, :8], atol=1e-5)
    np.testing.assert_allclose(half, (first + second) / 2, atol=1e-4)
    assert np.abs(first - second).max() > 1e-2


@pytest.mark.parametrize("method", ["euler", "heun", "dpm", "unipc", "stochastic"])
def test_no_strength_changes_nothing_and_some_does(method):
    latent = np.random.default_rng(1).normal(size=(*FIRST.grid, 3)).astype(np.float32)
    sampler = sampler_of(dataclasses.replace(SOLVER, method=method))
    still, moved = (dataclasses.replace(FIRST, latent_THWC=latent, strength=strength) for strength in (0.0, 0.5))
    found = sampler.latents(made()[1], [still, moved])
    assert found[0].tobytes() == latent.tobytes()
    assert np.abs(found[1] - latent).max() > 0.1


@pytest.mark.parametrize("sizes", [{"fsdp": 4}, {"data": 2, "tensor": 2}])
def test_a_mesh_shares_the_work_and_changes_no_number(sizes):
    sampler, params, _ = made()
    mesh = make_mesh(MeshConfig(**{"data": 1, "fsdp": 1, "sequence": 1, "tensor": 1, **sizes}), jax.devices()[:4])
    _, shapes, axes = abstract_model(generator(3))
    placed = jax.device_put(params, param_shardings(axes, shapes, mesh))
    canvases = [FIRST, *OTHERS, given_canvas()]
    shared = sampler_of(rows=4, mesh=mesh)(placed, canvases)
    for one, other in zip(shared, sampler(params, canvases), strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1


CACHED = dataclasses.replace(SOLVER, steps=6, method="euler", cache=1e9)


@pytest.mark.parametrize("method", ["euler", "heun", "dpm", "unipc", "stochastic"])
def test_nothing_is_taken_over_where_nothing_may_change(method):
    config = dataclasses.replace(SOLVER, method=method)
    canvases = [FIRST, given_canvas()]
    plain, tiny = (
        sampler_of(dataclasses.replace(config, cache=cache)).latents(made()[1], canvases) for cache in (0.0, 1e-9)
    )
    for one, other in zip(plain, tiny, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_steps_are_taken_over_until_changes_add_up():
    _, params, structure = made()
    transformer = merge_model(structure, params).transformer

    def taken(cache, **changes):
        return np.asarray(taken_over(transformer, dataclasses.replace(CACHED, cache=cache, **changes), tokens=24))

    levels_I = noise_levels.schedule(6, 24, SOLVER.noise)[:-1]
    modulation = np.asarray(transformer.modulation_of(levels_I))
    change = np.abs(np.diff(modulation, axis=0)).mean(-1) / np.abs(modulation[:-1]).mean(-1)
    middle = float(change[0] + change[1]) * 1.001
    total, expected = 0.0, [False]
    for one in change:
        total += one
        expected.append(bool(total < middle))
        total = total if expected[-1] else 0.0
    expected[-1] = False
    assert not taken(1e-9).any()
    assert taken(1e9).tolist() == [False, True, True, True, True, False], "never the first and the last"
    assert taken(middle).tolist() == expected
    assert 0 < sum(expected) < 4
    assert taken(1e9, method="heun").tolist() == [False] * 2 + [True] * 8 + [False], "both of a step, one in the last"


def test_a_clip_that_takes_over_does_not_depend_on_its_company_and_is_near_the_exact_one():
    sampler, params = sampler_of(CACHED), made()[1]
    alone = sampler.latents(params, [FIRST])[0]
    company = sampler.latents(params, [*OTHERS[:2], FIRST, given_canvas()])[2]
    np.testing.assert_allclose(alone, company, atol=1e-4)
    exact = sampler_of(dataclasses.replace(CACHED, cache=0.0)).latents(params, [FIRST])[0]
    error = np.abs(alone - exact).mean()
    assert 1e-6 < error < np.abs(exact).mean()


def test_canvases_of_other_steps_have_a_solver_of_their_own(monkeypatch):
    """Which is made once, and the others keep that of the config."""
    asked = []

    def make(structure, config, *, dtype):
        asked.append(config.steps)
        return lambda params, batch: np.full_like(batch.pack["tokens_BLP"], config.steps)

    monkeypatch.setattr(sampler_module, "make_solver", make)
    codec: Any = None
    maker = Sampler(None, codec, LAYOUT, rows=2, config=SOLVER, dtype=jnp.dtype(jnp.float32))
    for _ in range(2):
        latents = maker.latents({}, [FIRST, dataclasses.replace(OTHERS[0], steps=5), OTHERS[1]])
        assert [float(latent.mean()) for latent in latents] == [3, 5, 3]
    assert asked == [3, 5]
