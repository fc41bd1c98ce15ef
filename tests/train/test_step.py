"""The one train step: the same losses on any mesh and however a batch is cut, and nothing from a bad batch."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sora_jax.core.mean import Mean, weight_name
from sora_jax.core.mesh import MeshConfig, make_mesh
from sora_jax.core.rng import Rngs
from sora_jax.core.sharding import batch_sharding
from sora_jax.core.tree import abstract_model
from sora_jax.data.packing.packs import PackLayout, stack_rows
from sora_jax.data.packing.plan import Budget
from sora_jax.data.tokens import BYTE_TOKENIZER
from sora_jax.models.autoencoder import Autoencoder
from sora_jax.nn.linear import Linear
from sora_jax.objectives import autoencoder as autoencoder_objective
from sora_jax.objectives import diffusion as diffusion_objective
from sora_jax.train.guard import ONLY_FINITE
from sora_jax.train.loop import to_device
from sora_jax.train.optimizer import OptimizerConfig, ScheduleConfig, make_optimizer
from sora_jax.train.state import EmaConfig, StateMaker
from sora_jax.train.step import StepConfig, digest_and_norm, make_step, mean_gradient
from tests import small
from tests.small import generator

MESHES = {
    "one device": {},
    "fsdp 8": {"fsdp": 8},
    "data 2 fsdp 4": {"data": 2, "fsdp": 4},
    "data 2 fsdp 2 tensor 2": {"data": 2, "fsdp": 2, "tensor": 2},
    "fsdp 2 sequence 2 tensor 2": {"fsdp": 2, "sequence": 2, "tensor": 2},
    "sequence 4 tensor 2, ring": {"sequence": 4, "tensor": 2},
}
STEPS = 20
STEP = StepConfig(
    name="videos",
    seed=0,
    steps=STEPS,
    accumulate=1,
    schedule=ScheduleConfig(learning_rate=1e-2, warmup_steps=1, decay_share=0.5, final_share=0.1),
    ema=EmaConfig(widths=(0.1,), snapshots=None),
    guard=ONLY_FINITE,
)
LAYOUT = PackLayout(
    budget=Budget(tokens=16, text_tokens=8, segments=2),
    patch=(1, 1, 1),
    channels=4,
    temporal_stride=4,
    time_rate=2.0,
    tokenizer=BYTE_TOKENIZER,
)


def build_autoencoder(key):
    shape = dataclasses.replace(
        small.AUTOENCODER, width=8, decoder_width=8, multipliers=(1, 1), space_down=(False,), time_down=(True,)
    )
    return Autoencoder(shape, rngs=Rngs(key))


def packs(seed):
    rng, rows = np.random.default_rng(seed), []
    for number in range(8):
        row = LAYOUT.row()
        for grid, kept in (((2, 2, 2), slice(number % 2, None)), ((1, 1 + number % 3, 2), slice(None))):
            tokens = rng.normal(size=(np.prod(grid), 4)).astype(np.float32)
            (text,) = BYTE_TOKENIZER.encode(["a red circle"[:number]])
            row.put(sample=number, grid=grid, fps=8.0, text=text, tokens_LP=tokens, kept=kept)
        rows.append(row)
    return stack_rows(rows)


def clips(seed):
    return {"clip_BTHWC": np.random.default_rng(seed).integers(0, 256, size=(8, 3, 8, 8, 3), dtype=np.uint8)}


def objectives(kind):
    """Returns (build, objective, batch of a step, optimizer)."""
    if kind == "diffusion":
        config = diffusion_objective.DiffusionConfig(
            path=small.path_config(), noise=small.noise_config(), caption_dropout=0.2, loss_bands=None
        )
        objective = diffusion_objective.make_objective(config, small.known_config(), dtype=jnp.dtype(jnp.float32))
        return generator(4, depth=1), objective, packs, "adamw"
    if kind == "diffusion in a ring":
        return generator(4, depth=1, exchange="ring"), *objectives("diffusion")[1:]
    if kind == "diffusion of a wide block":
        return generator(4, depth=1, width=128, mlp_width=256), *objectives("diffusion")[1:]
    if kind == "diffusion of two blocks":
        return generator(4, depth=2), *objectives("diffusion")[1:]
    weights = autoencoder_objective.AutoencoderLossConfig(
        squared=1.0, absolute=0.1, gradient=0.1, perceptual=0.0, bottleneck=1e-3, latent_noise=0.5
    )
    return build_autoencoder, autoencoder_objective.make_objective(weights), clips, "adamw"


@functools.cache
def prepared(kind, mesh_name):
    """Returns (maker, step function, mesh)."""
    build, objective, _, optimizer = objectives(kind)
    sizes = {"data": 1, "fsdp": 1, "sequence": 1, "tensor": 1} | MESHES[mesh_name]
    mesh = make_mesh(MeshConfig(**sizes), jax.devices()[: np.prod(list(sizes.values()))])
    config = OptimizerConfig(name=optimizer, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0)
    make = functools.partial(make_optimizer, config)
    maker = StateMaker(build=build, make_optimizer=make, ema=STEP.ema, mesh=mesh)
    structure, _, axes = abstract_model(build)
    return maker, make_step(objective, structure, make(axes), STEP), mesh


@functools.cache
def initial(kind):
    """Returns a fresh state in numpy; `test_state.py` shows that no mesh changes it."""
    maker, _, mesh = prepared(kind, "one device")
    with jax.set_mesh(mesh):
        return jax.tree.map(np.array, maker.fresh(jax.random.key(0)))


def begin(kind, mesh_name):
    """Returns the initial state on a mesh."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, prepared(kind, mesh_name)[0].abstract())
    return jax.device_put(initial(kind), shardings)


def train(kind, mesh_name):
    _, step, mesh = prepared(kind, mesh_name)
    state, losses = begin(kind, mesh_name), []
    with jax.set_mesh(mesh):
        for number in range(STEPS):
            state, metrics = step(state, to_device(objectives(kind)[2](number), mesh), STEP.scalars)
            losses.append({name: float(value) for name, value in metrics.items()})
    return state, losses


@functools.cache
def alone(kind):
    return train(kind, "one device")


@pytest.mark.parametrize(
    ("kind", "mesh_name"),
    [
        ("diffusion", "fsdp 8"),
        pytest.param("diffusion of two blocks", "data 2 fsdp 4", marks=pytest.mark.slow),
        # The two around it have each of its axes.
        pytest.param("diffusion", "data 2 fsdp 2 tensor 2", marks=pytest.mark.slow),
        ("diffusion", "fsdp 2 sequence 2 tensor 2"),
        # A ring changes attention alone: its numbers and gradients on a mesh are those of tests/nn/test_attention.py.
        pytest.param("diffusion in a ring", "sequence 4 tensor 2, ring", marks=pytest.mark.slow),
        ("autoencoder", "fsdp 8"),
    ],
)
def test_losses_and_weights_are_those_of_one_device(kind, mesh_name):
    state, losses = train(kind, mesh_name)
    expected_state, expected = alone(kind.removesuffix(" in a ring"))
    for number in range(STEPS):
        for name in ("loss", "gradient_norm", "learning_rate"):
            np.testing.assert_allclose(
                losses[number][name], expected[number][name], rtol=1e-4, err_msg=f"{name} {number}"
            )
    assert len({line["loss"] for line in losses}) == STEPS, "it moves"
    for name, value in state.params.items():
        value, wanted = np.array(value), np.array(expected_state.params[name])
        if name == "text.blocks.to_qkv.bias":
            # Those of keys move every score of a query alike: their gradient is rounding, which Adam makes steps of.
            keys = slice(value.shape[-1] // 3, 2 * value.shape[-1] // 3)
            value[..., keys] = wanted[..., keys] = 0
        np.testing.assert_allclose(value, wanted, atol=1e-3, err_msg=name)
    for name in ("params", "ema"):
        flat = jax.tree.leaves(getattr(state, name))
        assert any(not leaf.sharding.is_fully_replicated for leaf in flat), "it was really split"


@pytest.mark.parametrize("mesh_name", ["fsdp 8", pytest.param("data 2 fsdp 4", marks=pytest.mark.slow)])
def test_no_device_ever_holds_the_tokens_of_the_whole_batch(mesh_name):
    maker, step, mesh = prepared("diffusion", mesh_name)
    place = batch_sharding(mesh)
    batch = {n: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=place) for n, v in packs(0).items()}
    state = maker.abstract()
    with jax.set_mesh(mesh):
        lowered = step.lower(state, batch, STEP.scalars)
        text = lowered.compile().as_text()
    width = small.TRANSFORMER.width
    assert re.search(rf"f32\[1,16,{width}\]", text), "each has its own row"
    assert not re.search(rf"f32\[8,16,{width}\]", text)


def test_stages_that_differ_in_numbers_share_a_program_and_no_randomness():
    other = dataclasses.replace(
        STEP,
        name="images",
        steps=7 * STEPS,
        schedule=ScheduleConfig(learning_rate=3e-3, warmup_steps=5, decay_share=0.1, final_share=1.0),
    )
    build, objective, batches, _ = objectives("diffusion")
    maker, own, mesh = prepared("diffusion", "one device")
    structure, _, axes = abstract_model(build)
    state, steps = (
        begin("diffusion", "one device"),
        [own, make_step(objective, structure, maker.optimizer(axes), other)],
    )
    with jax.set_mesh(mesh):
        batch = to_device(batches(0), mesh)
        one, another = (
            step.lower(state, batch, config.scalars).as_text()
            for step, config in zip(steps, (STEP, other), strict=True)
        )
        assert one == another
        _, metrics = steps[0](jax.tree.map(jnp.copy, state), batch, STEP.scalars)
        _, others = steps[0](state, batch, other.scalars)
    assert float(metrics["loss"]) != float(others["loss"]), "other noise"
    assert float(metrics["learning_rate"]) == pytest.approx(1e-2)
    assert float(others["learning_rate"]) == pytest.approx(3e-3 / 5)


def test_memory_held_by_a_device_falls_with_their_number():
    """Of the compiled step: parameters, two moments and an average, split n ways, and the small rest that is not."""

    def held(kind, mesh_name):
        maker, step, mesh = prepared(kind, mesh_name)
        batch = {
            name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=batch_sharding(mesh))
            for name, value in packs(0).items()
        }
        whole = sum(leaf.size * leaf.dtype.itemsize for leaf in maker.abstract_params().values())
        with jax.set_mesh(mesh):
            memory = step.lower(maker.abstract(), batch, STEP.scalars).compile().memory_analysis()
        assert memory.alias_size_in_bytes >= 0.99 * (memory.output_size_in_bytes), "the state is donated"
        return memory.argument_size_in_bytes, whole

    (alone, whole), given = held("diffusion", "one device"), sum(value.nbytes for value in packs(0).values())
    assert alone == pytest.approx(4 * whole + given, rel=0.05)
    # Of the small one what is not split is no small part.
    split, whole = held("diffusion of a wide block", "fsdp 8")
    assert split == pytest.approx(4 * whole / 8, rel=0.1)


def test_training_lowers_the_loss_of_one_batch():
    _, step, mesh = prepared("autoencoder", "one device")
    state, batch, losses = begin("autoencoder", "one device"), clips(0), []
    with jax.set_mesh(mesh):
        for _ in range(8):
            state, metrics = step(state, to_device(batch, mesh), STEP.scalars)
            losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.9 * losses[0]


def test_the_state_is_donated_and_its_counters_count():
    _, step, mesh = prepared("diffusion", "one device")
    state = begin("diffusion", "one device")
    with jax.set_mesh(mesh):
        new, metrics = step(state, to_device(packs(0), mesh), STEP.scalars)
    assert all(leaf.is_deleted() for leaf in (*state.params.values(), *state.ema["width_0.1"].values()))
    assert [int(x) for x in (new.step, new.updates, new.skipped, new.consecutive_skips)] == [1, 1, 0, 0]
    for name, value in new.params.items():
        np.testing.assert_array_equal(new.ema["width_0.1"][name], value, err_msg="the first update is the average")
    before = initial("diffusion").params
    moved = {name: np.array(value) - before[name] for name, value in new.params.items()}
    for norm, values in (("update_norm", moved), ("param_norm", new.params)):
        expected = np.sqrt(sum(np.square(np.array(value, np.float64)).sum() for value in values.values()))
        assert float(metrics[norm]) == pytest.approx(expected, rel=1e-3), norm
    assert 0 < float(metrics["fill"]) < 1
    assert float(metrics[weight_name("fill")]) == 8 * 16, "of all places of its rows"


def test_the_digest_is_that_of_the_weights_on_any_mesh():
    digest = jax.jit(lambda params: digest_and_norm(params)[0])

    def of(params, mesh_name):
        maker, _, mesh = prepared("diffusion", mesh_name)
        places = {name: leaf.sharding for name, leaf in maker.abstract_params().items()}
        with jax.set_mesh(mesh):
            return int(digest(jax.device_put(params, places)))

    # Also of biases, which begin at zero: without bits.
    shapes = prepared("diffusion", "one device")[0].abstract_params()
    params = {name: np.array(value) for name, value in small.random_params(shapes).items()}
    bits = sum(int(value.view(np.uint32).sum(dtype=np.uint64)) for value in params.values())
    assert {of(params, mesh_name) for mesh_name in ("one device", "fsdp 8")} == {bits % 2**32}
    name = max(params, key=lambda name: params[name].size)
    params[name].flat[5] = np.nextafter(params[name].flat[5], np.float32(9))
    assert of(params, "one device") != bits % 2**32, "one element by one unit in the last place"


@pytest.mark.parametrize("mesh_name", ["one device", "fsdp 8"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_a_bad_batch_changes_no_bit_and_is_counted(mesh_name, bad):
    _, step, mesh = prepared("diffusion", mesh_name)
    poison = packs(1)
    poison["tokens_BLP"][3, 1, 2] = bad
    state = begin("diffusion", mesh_name)
    with jax.set_mesh(mesh):
        state, _ = step(state, to_device(packs(0), mesh), STEP.scalars)
        before = jax.tree.map(np.array, state)
        for count in (1, 2):
            state, metrics = step(state, to_device(poison, mesh), STEP.scalars)
            assert not np.isfinite(float(metrics["loss"]) * float(metrics["gradient_norm"]))
            assert [float(metrics[name]) for name in ("skipped", "unbroken", "update_norm")] == [count, count, 0]
        after = jax.tree.map(np.array, state)
        for name in ("params", "ema", "opt_state", "updates"):
            jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(before, name))
        assert int(after.step) == 3, "the data goes on"
        state, metrics = step(state, to_device(packs(2), mesh), STEP.scalars)
    assert [float(metrics[name]) for name in ("skipped", "unbroken")] == [2, 0]
    assert any(np.any(np.array(state.params[name]) != before.params[name]) for name in before.params)


class Weighted(nnx.Module):
    """A linear map; rows of its objective have weights of their own."""

    def __init__(self, key):
        self.map = Linear(3, 2, axes=("embed", "mlp"), rngs=Rngs(key))


def weighted_objective(model, batch, key):
    error = jnp.square(model.map(batch["x"]) - batch["y"]).sum(axis=-1)
    return Mean.of(error, batch["weight"]), {"worst": Mean.of(error)}


@pytest.mark.parametrize("accumulate", [2, 3, 6])
def test_a_batch_cut_in_parts_gives_the_gradient_of_the_whole(accumulate):
    rng = np.random.default_rng(0)
    batch = {"x": rng.normal(size=(6, 3)), "y": rng.normal(size=(6, 2)), "weight": [1.0, 5, 0, 0, 2, 0.5]}
    batch = {name: jnp.asarray(value, jnp.float32) for name, value in batch.items()}
    structure, shapes, _ = abstract_model(Weighted)
    params = {name: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) for name, leaf in shapes.items()}
    key = jax.random.key(0)
    whole = mean_gradient(weighted_objective, structure, params, batch, key, 1)
    parts = mean_gradient(weighted_objective, structure, params, batch, key, accumulate)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), parts, whole)

    def mean_loss(params):
        error = np.square(batch["x"] @ params["map.kernel"] + params["map.bias"] - batch["y"]).sum(axis=-1)
        return np.sum(error * batch["weight"]) / np.sum(batch["weight"])

    np.testing.assert_allclose(parts[1], mean_loss(params), rtol=1e-5)


def test_parts_of_a_batch_draw_their_own_noise():
    def objective(model, batch, key):
        return Mean.of(jax.random.normal(key, (2,)) + 0 * model.map(batch["x"]).sum()), {}

    structure, shapes, _ = abstract_model(Weighted)
    params = {name: jnp.zeros(leaf.shape) for name, leaf in shapes.items()}
    key = jax.random.key(4)
    loss = mean_gradient(objective, structure, params, {"x": jnp.zeros((4, 3))}, key, 2)[1]
    drawn = [jax.random.normal(part, (2,)) for part in jax.random.split(key, 2)]
    np.testing.assert_allclose(loss, np.mean(drawn), rtol=1e-5)


def test_nothing_to_weigh_is_no_loss_and_no_gradient():
    structure, shapes, _ = abstract_model(Weighted)
    params = {name: jnp.ones(leaf.shape) for name, leaf in shapes.items()}
    batch = {"x": jnp.ones((2, 3)), "y": jnp.zeros((2, 2)), "weight": jnp.zeros(2)}
    gradient, loss, _ = mean_gradient(weighted_objective, structure, params, batch, jax.random.key(0), 1)
    assert loss == 0
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0), gradient)
