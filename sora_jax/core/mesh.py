"""The device mesh: data (replicas, across slices), fsdp, sequence, tensor."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from sora_jax.core.errors import UserError

MESH_AXES = ("data", "fsdp", "sequence", "tensor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each mesh axis; None for at most one axis takes all that are left."""

    data: int | None
    fsdp: int | None
    sequence: int | None
    tensor: int | None

    def __post_init__(self):
        for axis in MESH_AXES:
            size = getattr(self, axis)
            if size is not None and size < 1:
                raise UserError(f"{axis} is {size}: give 1 or more devices, or None for all that are left")


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh over `devices` (default: all of all processes).

    Of several slices `data` is the axis that crosses from one to another, where the network is slow: each slice holds a
    run of replicas. Raises UserError when the sizes do not multiply to the number of devices, or `data` is not a
    multiple of the slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config, axis) for axis in MESH_AXES]
    known = math.prod(size for size in sizes if size is not None)
    free = [axis for axis, size in zip(MESH_AXES, sizes, strict=True) if size is None]
    if len(free) > 1:
        raise UserError(f"mesh: only one axis may be None, not {len(free)} ({', '.join(free)})")
    if len(devices) % known or (not free and known != len(devices)):
        raise UserError(
            f"mesh: {' x '.join(f'{a}={s}' for a, s in zip(MESH_AXES, sizes, strict=True))} does not fit "
            f"{len(devices)} devices; set one axis to None to take what is left"
        )
    sizes = [len(devices) // known if size is None else size for size in sizes]
    slices = count_slices(devices)
    if sizes[0] % slices:
        raise UserError(
            f"mesh: data={sizes[0]} over {slices} slices: make it a multiple of {slices}, because data is the axis "
            "that crosses from slice to slice"
        )
    # An axis need not be made of whole axes of the torus: neighbours stay close where that can be had.
    if slices == 1:
        places = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    else:
        within, across = (sizes[0] // slices, *sizes[1:]), (slices, *(1 for _ in sizes[1:]))
        places = mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)
    return Mesh(np.asarray(places), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def count_slices(devices: Sequence[Any]) -> int:
    """Returns the number of slices that the devices belong to; devices that name none are one slice.

    So are GPUs: to jax each machine of theirs is a slice, but the network between them carries every axis of the mesh.
    """
    if devices[0].platform == "gpu":
        return 1
    return len({getattr(device, "slice_index", None) or 0 for device in devices})


def current_platform() -> str:
    """Returns "cpu", "gpu" or "tpu": of the devices of the mesh that is set, which may only be described, or of this
    machine."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    platform = device.platform if device is not None else jax.default_backend()
    return "gpu" if platform in ("cuda", "rocm") else platform
