"""The mesh: what fits the devices, and what is said when it does not."""

import dataclasses

import jax
import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.core.mesh import MESH_AXES, MeshConfig, count_slices, make_mesh


def config(data=1, fsdp=1, sequence=1, tensor=1):
    return MeshConfig(data=data, fsdp=fsdp, sequence=sequence, tensor=tensor)


def test_one_axis_takes_what_is_left():
    assert len(jax.devices()) == 8
    assert dict(make_mesh(config(data=None, fsdp=2)).shape) == {"data": 4, "fsdp": 2, "sequence": 1, "tensor": 1}
    assert dict(make_mesh(config(data=2, tensor=None)).shape) == {"data": 2, "fsdp": 1, "sequence": 1, "tensor": 4}
    assert tuple(make_mesh(config(data=8)).axis_names) == MESH_AXES


def test_the_devices_may_be_given():
    mesh = make_mesh(config(data=None), jax.devices()[3:5])
    assert mesh.devices.ravel().tolist() == jax.devices()[3:5]


@pytest.mark.parametrize("sizes", [{"data": 3, "fsdp": None}, {"data": 4}, {"data": 16}])
def test_sizes_that_do_not_fit_are_told_with_the_number_of_devices(sizes):
    with pytest.raises(UserError, match=r"data=\d+ x fsdp=(1|None) .* does not fit 8 devices; set one axis to None"):
        make_mesh(config(**sizes))


def test_only_one_axis_may_be_free():
    with pytest.raises(UserError, match=r"only one axis may be None, not 2 \(data, tensor\)"):
        make_mesh(config(data=None, tensor=None))


@pytest.mark.parametrize("size", [0, -2])
def test_a_size_is_at_least_one(size):
    with pytest.raises(UserError, match=f"fsdp is {size}: give 1 or more"):
        config(fsdp=size)


@dataclasses.dataclass(frozen=True)
class Device:
    """What a mesh needs to know of a device of one of several slices."""

    id: int
    slice_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"

    @property
    def process_index(self):
        return self.slice_index


def slices(count, *, chips, platform="cpu"):
    return [
        Device(id=slice_index * chips + i, slice_index=slice_index, platform=platform)
        for slice_index in range(count)
        for i in range(chips)
    ]


def test_data_is_the_axis_that_crosses_from_slice_to_slice():
    devices = slices(2, chips=4)
    mesh = make_mesh(config(data=None, fsdp=2), devices)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "sequence": 1, "tensor": 1}
    where = np.vectorize(lambda device: device.slice_index)(mesh.devices).reshape(4, 2)
    assert where.tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]], "replicas of a slice lie side by side"
    assert len(set(mesh.devices.ravel().tolist())) == 8
    assert (count_slices(devices), count_slices(jax.devices())) == (2, 1)


def test_data_must_be_a_multiple_of_the_slices():
    with pytest.raises(UserError, match="data=1 over 2 slices: make it a multiple of 2"):
        make_mesh(config(fsdp=None), slices(2, chips=4))


def test_machines_of_gpus_may_share_any_axis():
    devices = slices(2, chips=4, platform="gpu")
    mesh = make_mesh(config(fsdp=None), devices)
    assert mesh.devices.ravel().tolist() == devices, "in their order, machine by machine"
