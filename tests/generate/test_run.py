"""Sampling: a clip is a function of its canvas and the weights, and the solver does what its parts say."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sora_jax.core.errors import UserError
from sora_jax.core.tree import abstract_model, merge_model
from sora_jax.data.packing import Budget
from sora_jax.data.packs import PackLayout
from sora_jax.diffusion import noise_levels, path
from sora_jax.diffusion.guidance import GuidanceConfig
from sora_jax.generate.canvas import Canvas, lay_out
from sora_jax.generate.run import Sampler, SolverConfig, make_solver
from sora_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from sora_jax.models.codec import Codec
from sora_jax.models.text.bytes import TextConfig
from sora_jax.models.transformer import TransformerConfig
from sora_jax.objectives.diffusion import Generator, without_caption
from sora_jax.video.patches import unpatchify

LAYOUT = PackLayout(
    budget=Budget(tokens=20, text_tokens=16, segments=4),
    patch=(1, 1, 1),
    channels=4,
    temporal_stride=4,
    time_rate=2.0,
)
SOLVER = SolverConfig(
    steps=3,
    method="heun",
    path=path.PathConfig(),
    noise=noise_levels.NoiseConfig(shift_base_tokens=4.0),
    guidance=GuidanceConfig(scale=3.0, rescale=0.5),
)
CANVASES = [
    Canvas(prompt="a red circle moves right", grid=(2, 2, 3), fps=8.0, seed=0),
    Canvas(prompt="blue", grid=(1, 2, 2), fps=8.0, seed=1),
    Canvas(prompt="a red circle moves right", grid=(2, 2, 3), fps=8.0, seed=2),
    Canvas(prompt="", grid=(3, 1, 2), fps=24.0, seed=3),
    Canvas(prompt="still", grid=(1, 2, 2), fps=8.0, seed=1),
    Canvas(prompt="a green square", grid=(1, 4, 2), fps=8.0, seed=5),
]


def perturbed(shapes):
    """Returns random parameters that let what goes in come out: kernels of variance 1 / inputs, others small."""
    noise = np.random.default_rng(0)
    params = {}
    for name, leaf in shapes.items():
        value = noise.normal(size=leaf.shape)
        if name.endswith("kernel"):
            inputs = leaf.shape[1:-1] if "blocks." in name and leaf.ndim == 3 else leaf.shape[:-1]
            params[name] = value / np.sqrt(np.prod(inputs))
        else:
            params[name] = 0.1 * value + name.endswith("scale")
        params[name] = params[name].astype(np.float32)
    return params


@functools.cache
def generator():
    """Returns the structure and the parameters of a generator that listens to all it is told."""
    transformer = TransformerConfig(
        patch=(1, 1, 1),
        width=16,
        depth=2,
        heads=2,
        mlp_width=16,
        frequency_dim=8,
        rope_theta=100.0,
        time_rate=2.0,
        remat="none",
        pooled_text=True,
        place_features=True,
    )

    def build(key):
        text = TextConfig(width=16, depth=1, heads=2)
        return Generator(transformer, text, patch_width=4, bytes_per_token=8, rngs=nnx.Rngs(key))

    structure, shapes, _ = abstract_model(build)
    params = perturbed(shapes)
    # Louder where tokens hear each other and the noise, quieter where the noise level would drown them.
    louder = {"patch_embedding.kernel": 3, "attn1.norm_q": 6, "attn1.to_v.kernel": 4, "time_": 0.3, "attn2.to_out": 0.5}
    for part, factor in louder.items():
        for name in params:
            if part in name:
                params[name] = params[name] * np.float32(factor)
    return structure, params


@functools.cache
def codec():
    config = AutoencoderConfig(
        patch=4,
        width=4,
        multipliers=(1, 1, 1),
        space_down=(False, False),
        time_down=(True, True),
        blocks=1,
        decoder_width=4,
        decoder_blocks=1,
        channels=4,
        attention=False,
        shortcuts=True,
    )
    shapes = abstract_model(lambda key: Autoencoder(config, rngs=nnx.Rngs(key)))[1]
    return Codec(config, perturbed(shapes), mean_C=np.full(4, 0.1), scale_C=np.full(4, 0.5))


def sampler(*, layout=LAYOUT, rows=2, solver=SOLVER):
    return Sampler(generator()[0], codec(), layout, rows=rows, config=solver, dtype=jnp.float32)


@pytest.fixture(scope="module")
def shared():
    return sampler()


@pytest.fixture(scope="module")
def together(shared):
    return shared(generator()[1], CANVASES)


def assert_within_one_level(clip, expected):
    assert clip.shape == expected.shape
    assert np.abs(clip.astype(int) - expected).max() <= 1


def test_clips_come_in_the_order_of_the_canvases_at_their_sizes(together):
    for canvas, clip in zip(CANVASES, together, strict=True):
        t, h, w = canvas.grid
        assert clip.shape == (1 + 4 * (t - 1), 4 * h, 4 * w, 3)
        assert clip.dtype == np.uint8
        assert clip.std() > 2, "a picture, not one colour"
        assert np.mean((clip == 0) | (clip == 255)) < 0.5, "not clipped to where differences hide"


@pytest.mark.parametrize("number", range(len(CANVASES)))
def test_a_clip_does_not_depend_on_what_shares_its_batch(shared, together, number):
    assert_within_one_level(shared(generator()[1], [CANVASES[number]])[0], together[number])


def test_a_clip_does_not_depend_on_its_place(shared, together):
    order = [3, 5, 0, 4, 2, 1]
    shuffled = shared(generator()[1], [CANVASES[number] for number in order])
    for number, clip in zip(order, shuffled, strict=True):
        assert_within_one_level(clip, together[number])


def test_a_clip_does_not_depend_on_padding(together):
    """The same clip from a row that it fills to the last token."""
    exact = dataclasses.replace(LAYOUT, budget=Budget(tokens=12, text_tokens=6, segments=1))
    alone = sampler(layout=exact, rows=1)(generator()[1], CANVASES[:1])[0]
    assert_within_one_level(alone, together[0])


def test_the_same_seed_gives_the_same_bytes(shared, together):
    for clip, again in zip(together, shared(generator()[1], CANVASES), strict=True):
        np.testing.assert_array_equal(clip, again)


@pytest.mark.parametrize("change", [{"seed": 9}, {"prompt": "a blue circle moves right"}, {"fps": 30.0}])
def test_a_clip_depends_on_its_seed_prompt_and_rate(shared, together, change):
    other = shared(generator()[1], [dataclasses.replace(CANVASES[0], **change)])[0]
    assert np.abs(other.astype(int) - together[0]).max() > 3


def test_too_large_canvases_are_refused(shared):
    with pytest.raises(UserError, match="30 tokens do not fit a row of 20"):
        shared(generator()[1], [dataclasses.replace(CANVASES[0], grid=(5, 2, 3))])


def predictions(pack):
    """Returns the clean tokens that the model predicts from pure noise, with and without captions."""
    structure, params = generator()
    model = merge_model(structure, params)
    pack = {name: jnp.asarray(value) for name, value in pack.items()}
    segments = pack["grid_BS3"].shape[1]
    levels_BG = jnp.concatenate([jnp.ones((2, segments)), jnp.zeros((2, segments))], axis=1)
    level_BL = jnp.maximum(pack["segment_BL"] - 1, 0)
    hidden_BK = without_caption(pack, jnp.ones((2, segments), bool))
    return [
        np.asarray(
            model.predict(
                pack["tokens_BLP"],
                pack,
                levels_BG=levels_BG,
                level_BL=level_BL,
                text_BKE=model.encode_text({**pack, "text_segment_BK": visible_BK}, jnp.float32),
                text_segment_BK=visible_BK,
            )
        )
        for visible_BK in (pack["text_segment_BK"], hidden_BK)
    ]


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_one_euler_step_lands_on_the_guided_clean_prediction(scale):
    (pack, *_), _ = lay_out(CANVASES, LAYOUT, rows=2)
    config = dataclasses.replace(SOLVER, steps=1, method="euler", guidance=GuidanceConfig(scale=scale))
    solved = np.asarray(make_solver(generator()[0], config, dtype=jnp.float32)(generator()[1], jax.device_put(pack)))
    given, hidden = predictions(pack)
    real = pack["segment_BL"] > 0
    assert np.abs(given - hidden)[real].max() > 1e-2, "captions matter"
    np.testing.assert_allclose(solved[real], (hidden + scale * (given - hidden))[real], atol=1e-4)


@pytest.mark.parametrize("method", ["euler", "heun"])
def test_the_last_step_leaves_no_noise(method):
    """A model that says the clean tokens are 0 ends at 0, whatever the guard on the divisor in training."""
    (pack, *_), _ = lay_out(CANVASES, LAYOUT, rows=2)
    structure, params = generator()
    mute = params | {name: np.zeros_like(params[name]) for name in params if ".proj_out." in name}
    assert sum(not value.any() for value in mute.values()) >= 1
    guarded = dataclasses.replace(SOLVER, method=method, steps=6, path=path.PathConfig(min_sigma=0.5))
    solved = make_solver(structure, guarded, dtype=jnp.float32)(mute, jax.device_put(pack))
    np.testing.assert_allclose(np.asarray(solved)[pack["segment_BL"] > 0], 0, atol=1e-5)


def test_every_segment_follows_its_own_schedule():
    """Two Euler steps by hand: a segment's middle level is shifted by its own number of tokens."""
    (pack, *_), _ = lay_out(CANVASES, LAYOUT, rows=2)
    structure, params = generator()
    config = dataclasses.replace(SOLVER, method="euler", guidance=GuidanceConfig(scale=1.0))
    first, two = (
        np.asarray(make_solver(structure, dataclasses.replace(config, steps=steps), dtype=jnp.float32)(params, pack))
        for steps in (1, 2)
    )
    model = merge_model(structure, params)
    counts_BS = pack["grid_BS3"].prod(axis=-1)
    factor_BS = np.clip((counts_BS / 4.0) ** 0.5, 0.25, 16.0)
    middle_BS = (factor_BS / (1 + factor_BS)).astype(np.float32)
    level_BL = np.maximum(pack["segment_BL"] - 1, 0)
    middle_BL1 = np.take_along_axis(middle_BS, level_BL, axis=1)[..., None]
    x_BLP = (1 - middle_BL1) * first + middle_BL1 * pack["tokens_BLP"]
    device = {name: jnp.asarray(value) for name, value in pack.items()}
    expected = model.predict(
        jnp.asarray(x_BLP),
        device,
        levels_BG=jnp.concatenate([middle_BS, np.zeros_like(middle_BS)], axis=1),
        level_BL=jnp.asarray(level_BL),
        text_BKE=model.encode_text(device, jnp.float32),
        text_segment_BK=device["text_segment_BK"],
    )
    real = pack["segment_BL"] > 0
    assert len(np.unique(middle_BS[counts_BS > 0])) > 1
    np.testing.assert_allclose(two[real], np.asarray(expected)[real], atol=1e-4)


def test_clips_are_the_decoded_latents_of_the_solved_tokens(together):
    packs, places = lay_out(CANVASES, LAYOUT, rows=2)
    structure, params = generator()
    solve = make_solver(structure, SOLVER, dtype=jnp.float32)
    for canvas, place, clip in zip(CANVASES, places, together, strict=True):
        solved = np.asarray(solve(params, jax.device_put(packs[place.batch])))[place.row, place.tokens]
        latent = unpatchify(solved, grid=canvas.grid, patch=(1, 1, 1), channels=4)
        np.testing.assert_array_equal(codec().decode(latent[None])[0], clip)
