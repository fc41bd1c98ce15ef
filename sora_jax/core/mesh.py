"""The device mesh: data (replicas, across slices), fsdp, sequence, tensor."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
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

    Raises UserError when the sizes do not multiply to the number of devices.
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
    auto = (AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=auto, devices=devices)
