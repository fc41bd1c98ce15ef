"""What is sent between devices: read from programs compiled for eight devices, whose traffic is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sora_jax.core.mesh import MeshConfig, make_mesh
from sora_jax.planning.collectives import NETWORK, Traffic, bytes_by_axes, device_groups, traffic
from sora_jax.planning.hlo import Module

DEPTH, WIDTH = 5, 16
# An asynchronous all-gather in a loop, a reduce-scatter as XLA for TPU writes it, an exchange between slices, one
# operation spread over two fusions, and a loop whose length only its parts tell.
TPU = """\
HloModule jit_step, is_scheduled=true, num_partitions=4

%add.1 (x: bf16[], y: bf16[]) -> bf16[] {
  %x = bf16[] parameter(0)
  %y = bf16[] parameter(1)
  ROOT %sum = bf16[] add(%x, %y)
}

%all-reduce-scatter.1 (input: bf16[8,8]) -> bf16[4,8] {
  %input = bf16[8,8]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.1 = bf16[8,8]{1,0:T(8,128)(2,1)} all-reduce(%input), channel_id=2, replica_groups={{0,2},{1,3}}, \
use_global_device_ids=true, to_apply=%add.1
  %zero = s32[] constant(0)
  ROOT %slice = bf16[4,8]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.1, %zero, %zero), dynamic_slice_sizes={4,8}
}

%first_part (p: bf16[4,8]) -> bf16[8,8] {
  %p = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.8 = bf16[8,8]{1,0} all-gather(%p), channel_id=7, replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}
}

%second_part (p: bf16[4,8]) -> bf16[8,8] {
  %p = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.9 = bf16[8,8]{1,0} all-gather(%p), channel_id=7, replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}
}

%condition (carried: (s32[], bf16[4,8])) -> pred[] {
  %carried = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %bound = s32[]{:T(128)} constant(13)
  %counter = s32[]{:T(128)} get-tuple-element(%carried), index=0
  ROOT %more = pred[]{:T(512)} compare(%counter, %bound), direction=LT
}

%body (carried: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %carried = (s32[]{:T(128)}, /*index=1*/bf16[4,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%carried), index=0
  %two = s32[] constant(2)
  %next = s32[]{:T(128)} add(%counter, %two)
  %held = bf16[4,8]{1,0:T(8,128)(2,1)} get-tuple-element(%carried), index=1
  %start = (bf16[4,8]{1,0:T(8,128)(2,1)}, bf16[8,8]{1,0:T(8,128)(2,1)}) all-gather-start(%held), channel_id=1, \
replica_groups=mesh['axis_0'=2,'axis_1'=1,'axis_2'=2] {'axis_2'}, dimensions={0}, use_global_device_ids=true
  %whole = bf16[8,8]{1,0:T(8,128)(2,1)} all-gather-done(%start)
  %one = bf16[8,8]{1,0} fusion(%held), kind=kCustom, calls=%first_part
  %two.1 = bf16[8,8]{1,0} fusion(%held), kind=kCustom, calls=%second_part
  %part = bf16[4,8]{1,0:T(8,128)(2,1)} fusion(%whole), kind=kCustom, calls=%all-reduce-scatter.1
  %token = token[] after-all()
  %send = (bf16[4,8]{1,0}, u32[], token[]) send(%part, %token), channel_id=9, is_host_transfer=true, \
frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %result = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}) tuple(%next, %part)
}

ENTRY %main (p: bf16[4,8]) -> bf16[4,8] {
  %p = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  %three = s32[]{:T(128)} constant(3)
  %begun = s32[]{:T(128)} copy(%three)
  %in = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}) tuple(%begun, %p)
  %loop = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}) while(%in), condition=%condition, body=%body
  ROOT %out = bf16[4,8]{1,0:T(8,128)(2,1)} get-tuple-element(%loop), index=1
}
"""


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=2, fsdp=2, sequence=1, tensor=2))


def compiled(mesh, function, *arguments):
    """Returns what compiling for the mesh gives; an argument is (shape, axes of its dimensions)."""
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32, sharding=NamedSharding(mesh, P(*a))) for s, a in arguments]
    with jax.set_mesh(mesh):
        return Module(jax.jit(function).lower(*shapes).compile().as_text())


def total(found, axes):
    return sum(one.bytes for one in found if one.axes == axes)


def test_weights_split_over_fsdp_are_gathered_in_every_layer():
    mesh = make_mesh(MeshConfig(data=4, fsdp=2, sequence=1, tensor=1))

    def layer(x, kernel):
        return jax.lax.with_sharding_constraint(jnp.tanh(x @ kernel), P(("data", "fsdp"), None)), None

    def apply(kernels, x):
        return jax.lax.scan(layer, x, kernels)[0]

    kernels = ((DEPTH, WIDTH, WIDTH), (None, "fsdp", None))
    found = traffic(compiled(mesh, apply, kernels, ((8, WIDTH), (("data", "fsdp"),))), dict(mesh.shape))
    gathered = DEPTH * WIDTH * WIDTH * 4
    assert found == [Traffic(axes=("fsdp",), kind="all-gather", times=DEPTH, bytes=gathered / 2)]


def test_a_sum_over_split_features_is_an_all_reduce_over_tensor(mesh):
    def apply(x, kernel):
        return jax.lax.with_sharding_constraint(x @ kernel, P(("data", "fsdp")))

    x, kernel = ((8, WIDTH), (("data", "fsdp"), "tensor")), ((WIDTH, 4), ("tensor",))
    found = traffic(compiled(mesh, apply, x, kernel), dict(mesh.shape))
    per_device = 8 // 4 * 4 * 4
    assert found == [Traffic(axes=("tensor",), kind="all-reduce", times=1, bytes=2 * per_device / 2)]


def test_the_gradient_of_a_replicated_weight_crosses_data_and_fsdp(mesh):
    gradient = jax.grad(lambda kernel, x: jnp.sum(jnp.square(x @ kernel)))
    found = traffic(compiled(mesh, gradient, ((WIDTH, 4), ()), ((8, WIDTH), (("data", "fsdp"),))), dict(mesh.shape))
    assert bytes_by_axes(found) == {("data", "fsdp"): 2 * WIDTH * 4 * 4 * 3 / 4}


def test_a_shift_to_the_neighbour_is_a_permutation(mesh):
    def shift(x):
        return jax.lax.ppermute(x, "tensor", [(0, 1), (1, 0)])

    mapped = jax.shard_map(shift, mesh=mesh, in_specs=P("tensor"), out_specs=P("tensor"))
    found = traffic(compiled(mesh, mapped, ((8, 4), ("tensor",))), dict(mesh.shape))
    assert found == [Traffic(axes=("tensor",), kind="collective-permute", times=1, bytes=4 * 4 * 4)]


def test_exchanging_dimensions_is_an_all_to_all(mesh):
    def exchange(x):
        return jax.lax.all_to_all(x, "fsdp", split_axis=1, concat_axis=0, tiled=True)

    mapped = jax.shard_map(exchange, mesh=mesh, in_specs=P("fsdp"), out_specs=P(None, "fsdp"))
    found = traffic(compiled(mesh, mapped, ((8, 4), ("fsdp",))), dict(mesh.shape))
    assert bytes_by_axes(found) == {("fsdp",): 4 * 4 * 4 / 2}


def test_the_forms_of_a_tpu_are_read():
    module = Module(TPU)
    found = {
        (one.axes, one.kind): (one.times, one.bytes) for one in traffic(module, {"fsdp": 2, "tensor": 2}, slices=2)
    }
    trips, bytes_of_a_part = 5, 4 * 8 * 2  # 3, 5, ..., 11
    assert found == {
        (("tensor",), "all-gather"): (trips, trips * bytes_of_a_part),
        (("fsdp",), "all-gather"): (trips, trips * bytes_of_a_part),
        (("fsdp",), "reduce-scatter"): (trips, trips * bytes_of_a_part),
        ((NETWORK,), "all-reduce"): (trips, trips * bytes_of_a_part),
    }
    assert not module.unknown_loops


def test_a_loop_of_unknown_length_counts_once_and_is_named():
    module = Module(TPU.replace("constant(13)", "parameter(7)"))
    found = traffic(module, {"fsdp": 2, "tensor": 2}, slices=2)
    assert {one.times for one in found} == {1}
    assert module.unknown_loops == {"loop"}


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}, x", [[0, 2], [1, 3]]),
        ("replica_groups={}, x", [[0, 1, 2, 3]]),
        ("replica_groups=[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=[4,2]<=[2,2,2]T(0,2,1), x", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("replica_groups=mesh['a'=2,'b'=3] {'a'}", [[0, 3], [1, 4], [2, 5]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
        ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
    ],
)
def test_groups_of_devices_are_read_in_every_form(text, groups):
    np.testing.assert_array_equal(device_groups(text, 4), groups)


@pytest.mark.parametrize("text", ["no groups", "replica_groups=mesh['a'=2], device_ids=(1,0) {'a'}"])
def test_a_form_that_is_not_known_is_refused(text):
    with pytest.raises(ValueError, match="groups of devices"):
        device_groups(text, 4)


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        Module("hello")
