"""One table from logical axes to mesh axes, for parameters and for activations.

Parameters and activations have separate logical names, so an experiment with shardings is an edit of this table. An
axis without a rule is an error: silence would replicate it.
"""

from typing import Any

import jax
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sora_jax.core.errors import UserError
from sora_jax.core.tree import Axes

RULES: dict[str | None, str | tuple[str, ...] | None] = {
    None: None,
    # activations
    "batch": ("data", "fsdp"),
    "length": "sequence",
    "segments": None,
    "text": None,
    "features": None,
    "rows": "sequence",  # of a frame of pixels; neighbours exchange what a convolution needs
    "columns": "tensor",
    # parameters
    "layers": None,
    "embed": "fsdp",  # the model width
    "heads": "tensor",  # heads x head width
    "mlp": "tensor",  # the hidden width of feed-forwards
    "patch": None,  # what a token holds
    "norm": None,
    "modulation": None,
    "vocabulary": None,
    "conv_in": None,
    "conv_out": "fsdp",
}


def spec(axes: tuple[str | None, ...]) -> P:
    """Returns the partition spec of logical axes; an unknown axis raises KeyError."""
    return P(*(RULES[axis] for axis in axes))


def param_shardings(axes: Axes, shapes: dict[str, Any], mesh: Mesh) -> dict[str, NamedSharding]:
    """Returns the sharding of each parameter by name.

    A dimension that its mesh axes do not divide is left whole when it is smaller than they are; otherwise UserError.
    """
    result = {}
    for name, names in axes.items():
        entries = []
        for dim, (axis, rule) in enumerate(zip(names, spec(names), strict=True)):
            size, ways = shapes[name].shape[dim], _ways(rule, mesh)
            if size % ways and size > ways:
                raise UserError(
                    f"parameter {name}: dimension {dim} ({axis}) of size {size} is not divisible by the {ways} devices "
                    f"of mesh axis {rule}; change the width or the mesh"
                )
            entries.append(None if size % ways else rule)
        result[name] = NamedSharding(mesh, P(*entries))
    return result


def optimizer_shardings(opt_state: Any, shapes: dict[str, Any], shardings: dict[str, NamedSharding], mesh: Mesh) -> Any:
    """Returns shardings for an optimizer's abstract state: moments like their parameters, the rest replicated.

    A moment is a leaf under the name of a parameter, of that parameter's shape.
    """

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        is_moment = bool(names) and names[-1] in shapes and shapes[names[-1]].shape == leaf.shape
        return shardings[names[-1]] if is_moment else replicated(mesh)

    return jax.tree_util.tree_map_with_path(place, opt_state)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a value that every device holds whole."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays whose first dimension is the global batch."""
    return NamedSharding(mesh, spec(("batch",)))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Returns `x`, laid out by logical `axes` if a mesh is set (`jax.set_mesh`), unchanged otherwise."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes))


def constrain_row_major(x: jax.Array, *axes: str | None) -> jax.Array:
    """Returns `x` as `constrain` does, on each device with its last axis along the registers.

    Left alone, XLA lays tokens along the registers of a TPU, and moves every tensor of a block there and back.
    """

    def row_major(part: jax.Array) -> jax.Array:
        return with_layout_constraint(part, Layout(tuple(range(part.ndim))))

    if jax.sharding.get_abstract_mesh().empty:
        return row_major(x)
    # XLA's partitioner does not know this operation: outside of shard_map it would gather the whole batch for it.
    return jax.shard_map(row_major, in_specs=spec(axes), out_specs=spec(axes), check_vma=False)(x)


def shard_space(x_BTHWC: jax.Array) -> jax.Array:
    """Returns clips laid out over the mesh if one is set, in space too where each device gets two rows or more.

    With one row on each of two devices XLA's partitioner gives wrong convolutions (jax 0.10.2); such frames stay whole.
    A batch that does not divide is laid out as XLA likes.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x_BTHWC
    batch, _, rows, columns, _ = spec(("batch", None, "rows", "columns", None))
    places: list[Any] = [batch if x_BTHWC.shape[0] % _ways(batch, mesh) == 0 else P.UNCONSTRAINED, None]
    for side, rule in zip(x_BTHWC.shape[2:4], (rows, columns), strict=True):
        ways = _ways(rule, mesh)
        places.append(rule if side % ways == 0 and side // ways >= 2 else None)
    return jax.lax.with_sharding_constraint(x_BTHWC, P(*places, None))


def ways(axis: str, mesh: Mesh | jax.sharding.AbstractMesh) -> int:
    """Returns the number of parts that a logical axis is split into."""
    return _ways(RULES[axis], mesh)


def batch_part(mesh: Mesh) -> tuple[int, int]:
    """Returns (index, count): this process's devices hold part `index` of `count` equal parts of each batch.

    Processes whose devices lie along `sequence` or `tensor` share a part. Raises UserError where parts overlap.
    """
    split = ways("batch", mesh)
    blocks: dict[int, list[int]] = {}
    for number, devices in enumerate(mesh.devices.reshape(split, -1)):
        for process in {device.process_index for device in devices}:
            blocks.setdefault(process, []).append(number)
    parts = sorted(set(map(tuple, blocks.values())))
    if sum(map(len, parts)) != split or len({len(part) for part in parts}) > 1:
        raise UserError(
            f"mesh: the {split} parts of a batch (data x fsdp) do not come out even over {len(blocks)} processes: "
            "make sequence x tensor divide the devices of a process, or be a multiple of them"
        )
    return parts.index(tuple(blocks[jax.process_index()])), len(parts)


def put_whole(value: Any, mesh: Mesh) -> jax.Array:
    """Returns an array that every device of the mesh holds whole; each process has the same `value`."""
    place = replicated(mesh)
    if place.is_fully_addressable or isinstance(value, jax.Array):
        return jax.device_put(value, place)
    # device_put would first compare what the processes have, at the cost of sending it around.
    value = np.asarray(value)
    return jax.make_array_from_callback(value.shape, place, lambda index: value[index])


def _ways(rule: str | tuple[str, ...] | None, mesh: Mesh | jax.sharding.AbstractMesh) -> int:
    names = (rule,) if isinstance(rule, str) else rule or ()
    ways = 1
    for name in names:
        ways *= mesh.shape[name]
    return ways
