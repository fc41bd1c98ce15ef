"""What a compiled program sends between devices, by the axes of the mesh that it crosses.

Bytes are what one device receives in one run of the program, with the fewest that the operation can do with: of n
devices that each give I bytes, an all-gather brings (n - 1) I, a reduce-scatter and an all-to-all (n - 1) / n I, an
all-reduce twice that, a permutation I. Text in, numbers out: nothing here imports jax.

Letters: N devices of the mesh.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

from sora_jax.planning.hlo import Instruction, Module, size_of

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# The axis between slices; it is no axis of the mesh: `data` crosses it.
NETWORK = "slices"

_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_LIST = re.compile(r"replica_groups=\{((?:\{[\d, ]*\},? ?)*)\}")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\]([^{]*)\{([^}]*)\}")
_IDS = re.compile(r", device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\)$")
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traffic:
    """What is sent across some axes by one kind of operation.

    Attributes:
      axes: The axes of the mesh over which the groups of devices vary, or NETWORK alone.
      kind: One of KINDS, or what crosses between slices.
      times: How many such operations one run of the program does.
      bytes: What one device receives, in all of them.
    """

    axes: tuple[str, ...]
    kind: str
    times: int
    bytes: float


def traffic(module: Module, mesh: Mapping[str, int], *, slices: int = 1) -> list[Traffic]:
    """Returns what a program sends, the most first; operations within a single device are left out.

    Args:
      module: The compiled program.
      mesh: Size of each axis of the mesh within a slice, in the order of the devices.
      slices: How many such slices there are.
    """
    found: dict[tuple[tuple[str, ...], str], list[float]] = {}
    seen: set[tuple[str, str]] = set()
    for visit in module.visits:
        inside = module.computations[visit.name]
        for one in inside.values():
            kind = one.op.removesuffix("-start")
            if kind == "send" and (transfer := _TRANSFER.search(one.attributes)):
                kind, axes, amount = transfer[1].lower().replace("_", "-"), (NETWORK,), _sent(inside, one, slices)
            elif kind in COLLECTIVES:
                if visit.within is not None and _repeated(visit.within, one, seen):
                    continue
                groups = device_groups(one.attributes, math.prod(mesh.values()))
                axes = _axes(groups, mesh)
                kind = "reduce-scatter" if kind == "all-reduce" and _is_scattered(inside, one) else kind
                amount = _received(inside, one, kind, groups)
            else:
                continue
            if axes:
                entry = found.setdefault((axes, kind), [0, 0.0])
                entry[0] += visit.times
                entry[1] += visit.times * amount
    result = [Traffic(axes=axes, kind=kind, times=int(t), bytes=b) for (axes, kind), (t, b) in found.items()]
    return sorted(result, key=lambda one: -one.bytes)


def bytes_by_axes(sent: list[Traffic]) -> dict[tuple[str, ...], float]:
    """Returns the bytes of all kinds together, the most first."""
    totals: dict[tuple[str, ...], float] = {}
    for one in sent:
        totals[one.axes] = totals.get(one.axes, 0.0) + one.bytes
    return dict(sorted(totals.items(), key=lambda item: -item[1]))


def device_groups(attributes: str, devices: int) -> np.ndarray:
    """Returns the groups of an operation as an int array (groups, members), of numbers 0 <= n < `devices`.

    A permutation's are its pairs of source and target. Reads groups that are listed, made from an iota, or named by
    axes of a mesh; raises ValueError for other forms.
    """
    if pairs := _PAIRS.search(attributes):
        return _listed(pairs[1])
    if iota := _IOTA.search(attributes):
        return _iota(iota[2], iota[3]).reshape(_numbers(iota[1]))
    if named := _MESH.search(attributes):
        order = _IDS.search(named[2].rstrip())
        if named[2].strip() and order is None:
            raise ValueError(f"these groups of devices cannot be read: {named[0]}")
        groups = _of_mesh(named[1], named[3])
        return _iota(order[1], order[2])[groups] if order else groups
    listed = _LIST.search(attributes)
    if listed is None:
        raise ValueError(f"no groups of devices in {attributes[:200]}")
    return _listed(listed[1]) if listed[1] else np.arange(devices)[None]


def _iota(dimensions: str, transposed: str | None) -> np.ndarray:
    """Returns 0, 1, ... laid out in these dimensions, transposed, flattened."""
    sizes = _numbers(dimensions)
    return np.arange(math.prod(sizes)).reshape(sizes).transpose(_numbers(transposed) if transposed else None).ravel()


def _listed(text: str) -> np.ndarray:
    return np.array([_numbers(group) for group in re.findall(r"\{([\d, ]*)\}", text)])


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.replace(" ", "").split(",")]


def _of_mesh(mesh: str, chosen: str) -> np.ndarray:
    """Returns the groups that vary over the chosen axes of a mesh, 'a'=2,'b'=4; 'b':(1)2 is a part of an axis."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    parts: dict[str, tuple[int, int]] = {}
    for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", chosen):
        parts[name] = (int(before or 1), int(size or sizes[name]))
    dims, inner, outer = [], [], []
    for name, whole in sizes.items():
        before, size = parts.get(name, (whole, 1))
        first = len(dims)
        dims += [before, size, whole // before // size]
        outer += [first, first + 2]
        inner.append(first + 1)
    order = np.arange(math.prod(dims)).reshape(dims).transpose(outer + inner)
    return order.reshape(-1, math.prod(dims[axis] for axis in inner))


def _axes(groups: np.ndarray, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Returns the axes along which the members of any group differ."""
    places = np.stack(np.unravel_index(groups, tuple(mesh.values())))
    differ = (places != places[..., :1]).any(axis=(1, 2))
    return tuple(axis for axis, differs in zip(mesh, differ, strict=True) if differs)


def _received(inside: Mapping[str, Instruction], one: Instruction, kind: str, groups: np.ndarray) -> float:
    given = sum(size_of(inside[name].shape) for name in one.operands)
    members = groups.shape[1]
    if kind == "collective-permute":
        return float(given)
    share = {"all-gather": members - 1, "all-reduce": 2 * (members - 1) / members}
    return given * share.get(kind, (members - 1) / members)


def _sent(inside: Mapping[str, Instruction], one: Instruction, slices: int) -> float:
    """Returns what one device receives of an exchange between slices, which each give what is sent here."""
    transfer = _TRANSFER.search(one.attributes)
    given = size_of(inside[one.operands[0]].shape)
    share = {"ALL_REDUCE": 2 * (slices - 1) / slices, "ALL_GATHER": slices - 1}
    rest = 1.0 if transfer is None or "ONE_TO_ONE" in transfer[1] else (slices - 1) / slices
    return given * (share.get(transfer[1], rest) if transfer else rest)


def _is_scattered(inside: Mapping[str, Instruction], one: Instruction) -> bool:
    """Whether only a slice of an all-reduce is used, within a fusion: so XLA for TPU writes a reduce-scatter."""
    users = [other for other in inside.values() if one.name in other.operands]
    return len(users) == 1 and users[0].root and users[0].op == "dynamic-slice"


def _repeated(within: str, one: Instruction, seen: set[tuple[str, str]]) -> bool:
    """Whether an operation was counted: XLA for TPU spreads one over several fusions, under one channel."""
    channel = re.search(r"channel_id=(\d+)", one.attributes)
    if channel is None:
        return False
    key = within, channel[1]
    if key in seen:
        return True
    seen.add(key)
    return False
