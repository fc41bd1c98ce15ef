"""One table from logical axes to mesh axes; what has no rule or does not divide is an error."""

from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from sora_jax.core import sharding
from sora_jax.core.errors import UserError
from sora_jax.core.mesh import MESH_AXES, MeshConfig, make_mesh


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=2, fsdp=2, sequence=1, tensor=2))


def shape(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.float32)


def test_every_rule_names_axes_of_the_mesh():
    for rule in sharding.RULES.values():
        names = (rule,) if isinstance(rule, str) else rule or ()
        assert set(names) <= set(MESH_AXES)


def test_logical_axes_become_mesh_axes():
    assert sharding.spec(("batch", "length", "features")) == P(("data", "fsdp"), "sequence", None)
    assert sharding.spec((None, "embed")) == P(None, "fsdp")


def test_an_axis_without_a_rule_is_an_error(mesh):
    with pytest.raises(KeyError, match="depth"):
        sharding.spec(("embed", "depth"))
    with pytest.raises(KeyError, match="depth"):
        sharding.param_shardings({"w": ("depth",)}, {"w": shape(8)}, mesh)


def test_parameters_are_laid_out_by_the_table(mesh):
    axes = {"w": ("layers", "embed", "mlp"), "b": ("mlp",), "tiny": ("embed",)}
    shapes = {"w": shape(3, 4, 6), "b": shape(6), "tiny": shape(1)}
    placed = sharding.param_shardings(axes, shapes, mesh)
    assert placed["w"].spec == P(None, "fsdp", "tensor")
    assert placed["b"].spec == P("tensor")
    assert placed["tiny"].spec == P(None), "smaller than the axis: left whole"


def test_a_dimension_that_does_not_divide_is_told_with_both_numbers(mesh):
    with pytest.raises(
        UserError, match=r"parameter w: dimension 1 \(mlp\) of size 5 is not divisible by the 2 devices"
    ):
        sharding.param_shardings({"w": ("layers", "mlp")}, {"w": shape(3, 5)}, mesh)


@pytest.mark.parametrize("optimizer", [optax.adamw(1e-3), optax.contrib.muon(1e-3), optax.sgd(1e-3, momentum=0.9)])
def test_moments_lie_where_their_parameters_lie(mesh, optimizer):
    axes = {"w": ("embed", "mlp"), "b": ("mlp",)}
    params = {"w": jnp.ones((4, 6)), "b": jnp.ones(6)}
    placed = sharding.param_shardings(axes, params, mesh)
    state = jax.eval_shape(optimizer.init, params)
    shardings = sharding.optimizer_shardings(state, params, placed, mesh)
    wanted = {(4, 6): placed["w"], (6,): placed["b"]}
    found = []
    for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
        found.append(leaf.shape)
        assert place == wanted.get(leaf.shape, sharding.replicated(mesh))
    assert wanted.keys() <= set(found)


def test_constrain_is_silent_without_a_mesh_and_lays_out_with_one(mesh):
    x = jnp.arange(32.0).reshape(8, 4)
    assert sharding.constrain(x, "batch", "features") is x
    with jax.set_mesh(mesh):
        y = jax.jit(lambda x: sharding.constrain(x, "batch", "features"))(x)
    assert y.sharding.is_equivalent_to(sharding.batch_sharding(mesh), 2)
    np.testing.assert_array_equal(x, y)


def test_the_batch_is_split_over_data_and_fsdp(mesh):
    assert sharding.ways("batch", mesh) == 4
    x = jax.device_put(np.arange(8), sharding.batch_sharding(mesh))
    assert {shard.data.shape for shard in x.addressable_shards} == {(2,)}


class Device(NamedTuple):
    """What the share of a process depends on."""

    id: int
    process_index: int


def parts(shape, owners, monkeypatch):
    """Returns (index, count) of each process, by number, on a mesh of `shape` of devices that belong to `owners`."""
    devices = np.empty(len(owners), object)
    devices[:] = [Device(id=number, process_index=owner) for number, owner in enumerate(owners)]
    mesh = SimpleNamespace(devices=devices.reshape(shape), shape=dict(zip(MESH_AXES, shape, strict=True)))
    found = {}
    for process in sorted(set(owners)):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        found[process] = sharding.batch_part(mesh)
    return found


def test_each_process_reads_what_its_devices_hold(monkeypatch):
    assert parts((2, 4, 1, 1), [0] * 8, monkeypatch) == {0: (0, 1)}
    assert parts((4, 2, 1, 1), [0, 0, 0, 0, 1, 1, 1, 1], monkeypatch) == {0: (0, 2), 1: (1, 2)}
    assert parts((1, 8, 1, 1), [1, 1, 1, 1, 0, 0, 0, 0], monkeypatch) == {1: (0, 2), 0: (1, 2)}
    torus = [0, 0, 1, 1, 0, 0, 1, 1]
    assert parts((1, 8, 1, 1), torus, monkeypatch) == {0: (0, 2), 1: (1, 2)}, "parts need not lie side by side"


def test_processes_that_split_rows_read_the_same(monkeypatch):
    assert parts((1, 1, 8, 1), [0, 0, 0, 0, 1, 1, 1, 1], monkeypatch) == {0: (0, 1), 1: (0, 1)}
    owners = [0, 0, 1, 1, 2, 2, 3, 3]
    assert parts((2, 1, 1, 4), owners, monkeypatch) == {0: (0, 2), 1: (0, 2), 2: (1, 2), 3: (1, 2)}


def test_a_mesh_that_cuts_a_batch_unevenly_is_told(monkeypatch):
    with pytest.raises(UserError, match=r"the 2 parts of a batch .* do not come out even over 3 processes"):
        parts((2, 1, 3, 1), [0, 0, 1, 1, 2, 2], monkeypatch)


def test_an_array_is_put_whole_on_every_device(mesh):
    put = sharding.put_whole(np.arange(3.0), mesh)
    assert put.sharding.is_equivalent_to(sharding.replicated(mesh), 1)
    np.testing.assert_array_equal(put, np.arange(3.0))
