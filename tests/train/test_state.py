"""The training state: averages of the weights, placement, what a new stage keeps."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sora_jax.checkpoints import leaves
from sora_jax.core.errors import UserError
from sora_jax.core.mesh import MeshConfig, make_mesh
from sora_jax.core.rng import Rngs
from sora_jax.nn.linear import Linear
from sora_jax.train.optimizer import OptimizerConfig, make_optimizer
from sora_jax.train.state import (
    EmaConfig,
    StateMaker,
    begin_stage,
    carry_over,
    ema_exponent,
    next_stage,
    track_name,
    update_ema,
)

EMA = EmaConfig(widths=(0.1, 0.05), snapshots=None)


def test_the_exponent_solves_its_equation():
    for width in (0.01, 0.05, 0.1, 0.2, 0.25):
        gamma = ema_exponent(width)
        np.testing.assert_allclose((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)), width**2, rtol=1e-9)
    # The paper's own numbers (arXiv 2312.02696, section 3.1).
    np.testing.assert_allclose([ema_exponent(0.05), ema_exponent(0.1)], [16.97, 6.94], rtol=1e-3)


def test_an_average_is_a_power_function_of_the_past():
    steps, rng = 40, np.random.default_rng(0)
    weights = rng.normal(size=(steps, 3)).astype(np.float32)
    tracks = {track_name(width): {"w": jnp.full(3, 1e9)} for width in EMA.widths}
    for number, params in enumerate(weights, start=1):
        tracks = update_ema(tracks, {"w": jnp.asarray(params)}, jnp.int32(number), EMA)
    for width in EMA.widths:
        power = ema_exponent(width) + 1
        # The share of update i: it enters with 1 - beta_i, and every later beta shrinks it.
        betas = [(1 - 1 / number) ** power for number in range(1, steps + 1)]
        shares = np.array([(1 - betas[i]) * np.prod(betas[i + 1 :]) for i in range(steps)])
        assert shares.sum() == pytest.approx(1)
        np.testing.assert_allclose(tracks[track_name(width)]["w"], shares @ weights, rtol=1e-3, atol=1e-5)
        # The share follows i^gamma, so all shares up to i come to (i / steps)^(gamma + 1).
        np.testing.assert_allclose(np.cumsum(shares), (np.arange(1, steps + 1) / steps) ** power, atol=1e-9)


@pytest.mark.parametrize("updates", [1, 2, 1000, 3_000_000, 40_000_000])
def test_the_share_of_an_update_is_exact_however_late_it_is(updates):
    tracks = {track_name(width): {"w": jnp.zeros(2)} for width in EMA.widths}
    found = update_ema(tracks, {"w": jnp.ones(2)}, jnp.int32(updates), EMA)
    for width in EMA.widths:
        # 1 - (1 - 1 / updates)^power without cancellation.
        exact = 1.0 if updates == 1 else -math.expm1((ema_exponent(width) + 1) * math.log1p(-1 / updates))
        np.testing.assert_allclose(found[track_name(width)]["w"], exact, rtol=1e-6)


def test_the_width_is_the_spread_of_the_average_over_time():
    steps = 2000
    power = ema_exponent(0.1) + 1
    shares = np.diff((np.arange(steps + 1) / steps) ** power)
    time = np.arange(1, steps + 1) / steps
    deviation = np.sqrt(shares @ time**2 - (shares @ time) ** 2)
    assert deviation == pytest.approx(0.1, rel=1e-2)


@pytest.mark.parametrize("widths", [(), (0.0,), (0.1, 0.28), (-0.1,)])
def test_widths_that_no_exponent_has_are_refused(widths):
    with pytest.raises(UserError, match=r"must be one or more numbers in \(0, 0.28\)"):
        EmaConfig(widths=widths, snapshots=None)


class Model(nnx.Module):
    def __init__(self, key):
        rngs = Rngs(key)
        self.first = Linear(8, 16, axes=("embed", "mlp"), rngs=rngs)
        self.second = Linear(16, 8, axes=("mlp", "embed"), rngs=rngs)


@pytest.fixture(scope="module", params=["adamw", "muon"])
def maker(request):
    optimizer = OptimizerConfig(name=request.param, b1=0.9, b2=0.95, weight_decay=0.0, clip_norm=1.0)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, sequence=1, tensor=2))
    return StateMaker(build=Model, make_optimizer=functools.partial(make_optimizer, optimizer), ema=EMA, mesh=mesh)


@functools.cache
def seeded(maker):
    """Returns the state that seed 0 gives, which no test donates."""
    return maker.fresh(jax.random.key(0))


def test_a_fresh_state_lies_as_the_abstract_one_says(maker):
    abstract, state = maker.abstract(), seeded(maker)
    assert jax.tree.structure(abstract) == jax.tree.structure(state)
    for shape, leaf in zip(jax.tree.leaves(abstract), jax.tree.leaves(state), strict=True):
        assert (leaf.shape, leaf.dtype) == (shape.shape, shape.dtype)
        assert leaf.sharding.is_equivalent_to(shape.sharding, leaf.ndim)
    kernel = state.params["first.kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(4, 8)}, "split over fsdp and tensor"
    assert all(leaf.dtype == jnp.float32 for leaf in (*state.params.values(), *state.ema["width_0.1"].values()))


def test_leaves_have_the_names_that_checkpoints_have(maker):
    names = set(leaves.by_name(maker.abstract()))
    counters = {"step", "updates", "skipped", "unbroken", "spikes", "usual/count", "usual/mean_2", "usual/variance_2"}
    assert counters == {name for name in names if not name.startswith(("params/", "ema/", "opt_state/"))}
    assert {"params/first.kernel", "ema/width_0.05/second.bias"} <= names


def test_moments_and_averages_lie_where_their_parameters_lie(maker):
    state = seeded(maker)
    for name, value in state.params.items():
        for track in state.ema.values():
            assert track[name].sharding == value.sharding
            np.testing.assert_array_equal(track[name], value)
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == (8, 16)]
    assert moments
    assert all(leaf.sharding == state.params["first.kernel"].sharding for leaf in moments)


def test_the_initial_weights_do_not_depend_on_the_mesh(maker):
    alone = make_mesh(MeshConfig(data=1, fsdp=1, sequence=1, tensor=1), jax.devices()[:1])
    single = StateMaker(build=maker.build, make_optimizer=maker.make_optimizer, ema=maker.ema, mesh=alone)
    for name, value in maker.fresh(jax.random.key(7)).params.items():
        np.testing.assert_array_equal(value, single.fresh(jax.random.key(7)).params[name])


def test_a_new_stage_keeps_all_but_its_counters(maker):
    state = seeded(maker)
    ones = jax.tree.map(lambda leaf: leaf + jnp.ones((), leaf.dtype), state)
    begun = begin_stage(ones)
    assert [int(x) for x in (begun.step, begun.skipped, begun.consecutive_skips, begun.updates)] == [0, 0, 0, 1]
    for kept in ("params", "ema", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(begun, kept), getattr(ones, kept))


class Larger(Model):
    def __init__(self, key):
        super().__init__(key)
        self.judge = Linear(8, 4, axes=("embed", "mlp"), rngs=Rngs(key))


def test_what_is_new_in_a_stage_begins_fresh_beside_what_is_carried_over(maker):
    before = jax.tree.map(lambda leaf: leaf + jnp.ones((), leaf.dtype), seeded(maker))
    larger = StateMaker(build=Larger, make_optimizer=maker.make_optimizer, ema=maker.ema, mesh=maker.mesh)
    fresh = larger.fresh(jax.random.key(1))
    begun = carry_over(fresh, before, average="width_0.1")
    assert [int(x) for x in (begun.step, begun.skipped, begun.consecutive_skips, begun.updates)] == [0, 0, 0, 1]
    for name in fresh.params:
        source = fresh if name.startswith("judge") else before
        np.testing.assert_array_equal(begun.params[name], source.params[name])
        np.testing.assert_array_equal(begun.ema["width_0.1"][name], source.ema["width_0.1"][name])
    moments = {path: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(begun.opt_state)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(before.opt_state):
        np.testing.assert_array_equal(moments[path], leaf)
    new = [leaf for path, leaf in moments.items() if "judge.kernel" in str(path)]
    assert new
    assert not np.any(new[0])
    same = carry_over(maker.fresh(jax.random.key(1)), before, average="width_0.1")
    jax.tree.map(np.testing.assert_array_equal, same, begin_stage(before))


def test_what_is_frozen_has_no_moments_and_no_averages_and_lies_where_it_would_be_trained(maker):
    partly = dataclasses.replace(maker, trainable=r"first\..*", frozen_dtype="bfloat16")
    abstract, state = partly.abstract(), partly.fresh(jax.random.key(0))
    whole = seeded(maker)
    assert {n.split(".")[0] for n in (*state.params, *state.ema["width_0.1"], *state.ema["width_0.05"])} == {"first"}
    assert set(state.frozen) == {"second.kernel", "second.bias"}
    assert "second" not in str(jax.tree_util.tree_leaves_with_path(state.saved))
    for name, value in state.frozen.items():
        assert (value.dtype, abstract.frozen[name].dtype) == (jnp.bfloat16, jnp.bfloat16)
        assert value.sharding.is_equivalent_to(whole.params[name].sharding, value.ndim)
        np.testing.assert_array_equal(value, whole.params[name].astype(jnp.bfloat16))
    with pytest.raises(UserError, match=r"trainable 'frist.*' matches none of the 4 parameters, such as first.bias"):
        dataclasses.replace(maker, trainable="frist.*").fresh(jax.random.key(0))


def test_a_stage_freezes_averages_and_a_later_one_trains_them_on(maker):
    whole = seeded(maker)
    one, two = ({n: jnp.full_like(v, x) for n, v in whole.params.items()} for x in (0.1, 2.0))
    whole = dataclasses.replace(whole, ema={"width_0.1": one, "width_0.05": two})
    partly = dataclasses.replace(maker, trainable=r"first\..*", frozen_dtype="bfloat16")
    begun = next_stage(partly, whole, jax.random.key(1))
    for name in begun.params:
        np.testing.assert_array_equal(begun.params[name], whole.params[name])
        np.testing.assert_array_equal(begun.ema["width_0.05"][name], two[name])
    assert all(np.all(np.array(value) == jnp.bfloat16(0.1)) for value in begun.frozen.values()), "the first average"
    thawed = next_stage(maker, begun, jax.random.key(2))
    assert thawed.frozen == {}
    for name, value in begun.frozen.items():
        for weights in (thawed.params, *thawed.ema.values()):
            assert weights[name].dtype == jnp.float32
            np.testing.assert_array_equal(weights[name], value.astype(jnp.float32))
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves([s.data for s in shards(thawed)])]
    assert len(buffers) == len(set(buffers)), "each is donated once"
    kept = next_stage(partly, begun, jax.random.key(3))
    jax.tree.map(np.testing.assert_array_equal, kept, begin_stage(begun))


def test_a_stage_initialises_nothing_that_would_not_stay(maker, monkeypatch):
    before = seeded(maker)
    partly = dataclasses.replace(maker, trainable=r"first\..*", frozen_dtype="bfloat16")
    expected = carry_over(partly.fresh(jax.random.key(1)), before, average="width_0.1")
    with monkeypatch.context() as patch:
        patch.setattr(StateMaker, "fresh", lambda *_: pytest.fail("what is there already is initialised"))
        begun = next_stage(partly, before, jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, begun, expected)
    lacks = dataclasses.replace(before, params={n: v for n, v in before.params.items() if n != "second.bias"})
    made = next_stage(maker, lacks, jax.random.key(1))
    np.testing.assert_array_equal(made.params["second.bias"], maker.fresh(jax.random.key(1)).params["second.bias"])


def shards(state):
    return [leaf.addressable_shards[0] for leaf in jax.tree.leaves([state.params, state.ema])]


class Files:
    """A model on disk that has `first`, its kernel all sevens."""

    place, dtype = "models/public", jnp.dtype(jnp.bfloat16)

    def has(self, name):
        return name.startswith("first.")

    def load(self, wanted):
        return {n: jax.device_put(jnp.full(one.shape, 7, one.dtype), one.sharding) for n, one in wanted.items()}


@pytest.mark.parametrize("trainable", [None, r"(?!first\.).*"])
def test_a_state_begins_with_the_files_of_a_model(maker, trainable):
    """What they have is frozen in its dtype, or trained in float32 with averages of its own."""
    frozen_dtype = None if trainable is None else "bfloat16"
    begun = dataclasses.replace(maker, source=Files(), trainable=trainable, frozen_dtype=frozen_dtype)
    state, plain = begun.fresh(jax.random.key(3)), maker.fresh(jax.random.key(3))
    given = {name for name in plain.params if name.startswith("first.")}
    assert given
    where = state.params if trainable is None else state.frozen
    assert {str(where[name].dtype) for name in given} == {"float32" if trainable is None else "bfloat16"}
    assert all(np.all(where[name] == 7) for name in given)
    assert state.ema["width_0.1"].keys() == state.params.keys()
    for name in state.params:
        expected = where[name] if name in given else plain.params[name]
        np.testing.assert_array_equal(state.params[name], expected)
        np.testing.assert_array_equal(state.ema["width_0.1"][name], expected)
        assert state.params[name] is not state.ema["width_0.1"][name]
    assert jax.tree.structure(state) == jax.tree.structure(begun.abstract())
    for leaf, shape in zip(jax.tree.leaves(state), jax.tree.leaves(begun.abstract()), strict=True):
        assert leaf.sharding.is_equivalent_to(shape.sharding, leaf.ndim)
