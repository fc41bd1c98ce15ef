"""Machines that are described instead of owned: a slice of TPUs, or a number of simulated CPU devices.

Nothing here imports jax before it is needed: `prepare_environment` must run before jax is imported.
"""

import dataclasses
import importlib.util
import itertools
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from sora_jax.core.chips import CHIPS, Chip
from sora_jax.core.errors import UserError

# What can be described, with an example of each.
EXAMPLES = {"v5e": "v5e:4x4", "v5p": "v5p:4x4x4", "v6e": "v6e:16x16", "cpu": "cpu:8"}
_SIMULATED = "--xla_force_host_platform_device_count"
# Chips of one host, along the dimensions of the slice.
_HOST = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """A described machine.

    Attributes:
      name: As the user gave it.
      chip: What each device can do; None for CPUs, of which nothing is claimed.
      devices: Of all slices.
      slices: Joined by the network.
    """

    name: str
    chip: Chip | None
    devices: Sequence[Any]
    slices: int


def prepare_environment(topology: str, *, slices: int = 1) -> None:
    """Sets what jax and libtpu read when they are imported, for a machine of this name.

    Raises UserError for a name that is not known and for more slices than it can have.
    """
    kind, sizes = _parse(topology)
    if slices < 1 or (kind == "cpu" and slices > 1):
        raise UserError(f"--slices={slices}: give 1 or more, and more than 1 for a TPU alone")
    os.environ["JAX_PLATFORMS"] = "cpu"
    if kind == "cpu":
        kept = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if not flag.startswith(_SIMULATED)]
        os.environ["XLA_FLAGS"] = " ".join([*kept, f"{_SIMULATED}={sizes[0]}"])
        return
    # Without these libtpu looks for a TPU of its own and waits; the type says no more than that there is one.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
    os.environ["TPU_ACCELERATOR_TYPE"] = "v5p-8"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # nothing is run: several plans at once are no conflict


def describe_machine(topology: str, *, slices: int = 1) -> Machine:
    """Returns the machine; raises UserError where libtpu is missing or refuses the slice."""
    import jax
    from jax.experimental import topologies

    kind, sizes = _parse(topology)
    if kind == "cpu":
        return Machine(name=topology, chip=None, devices=jax.devices(), slices=1)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f'{topology} is described by libtpu, which is not here: pip install "sora_jax[tpu]"')
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if math.prod(sizes) < _HOST:
        options["chips_per_host_bounds"] = [*sizes, 1, 1][:3]
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except Exception as error:
        said = str(error).splitlines()[0]
        raise UserError(
            f"libtpu refuses topology {topology}: {said}; a slice such as {EXAMPLES[kind]} is known"
        ) from error
    name = topology if slices == 1 else f"{slices} x {topology}"
    return Machine(name=name, chip=CHIPS[kind], devices=described.devices, slices=slices)


def _parse(topology: str) -> tuple[str, list[int]]:
    kind, _, shape = topology.partition(":")
    dimensions = {"cpu": (1,), "v5e": (2,), "v6e": (2,)}.get(kind, (3,))
    sizes = [int(size) for size in shape.split("x")] if re.fullmatch(r"\d+(x\d+)*", shape) else []
    if kind not in EXAMPLES or len(sizes) not in dimensions or min(sizes) < 1:
        raise UserError(f"topology {topology!r} is not known: give one such as {', '.join(EXAMPLES.values())}")
    return kind, sizes


def links(devices: np.ndarray, axes: Sequence[int], chip: Chip) -> int:
    """Returns over how many links a device reaches the others of its group: two for each ring, one for an open line.

    Args:
      devices: Of one slice, in the layout of the mesh.
      axes: The dimensions of `devices` over which the group varies.
      chip: Of the devices.
    """
    group = devices[tuple(slice(None) if axis in axes else 0 for axis in range(devices.ndim))]
    members = np.array([device.coords for device in group.ravel()])
    whole = np.array([device.coords for device in devices.ravel()]).max(axis=0) + 1
    count = 0
    for dimension, extent in itertools.zip_longest(range(members.shape[1]), whole.tolist()):
        reached = len(set(members[:, dimension].tolist()))
        ring = chip.whole_ring is not None and reached == extent and extent % chip.whole_ring == 0
        count += 0 if reached == 1 else 2 if ring else 1
    return max(1, count)
