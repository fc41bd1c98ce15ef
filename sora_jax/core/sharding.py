"""One table from logical axes to mesh axes, for parameters and for activations.

Parameters and activations have separate logical names, so an experiment with shardings is an edit of this table. An
axis without a rule is an error: silence would replicate it.
"""

from typing import Any

import jax
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


def spread(x_BTHWC: jax.Array) -> jax.Array:
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


def batch_ways(mesh: Mesh) -> int:
    """Returns the number of parts that the batch is split into."""
    return _ways(RULES["batch"], mesh)


def _ways(rule: str | tuple[str, ...] | None, mesh: Mesh | jax.sharding.AbstractMesh) -> int:
    names = (rule,) if isinstance(rule, str) else rule or ()
    ways = 1
    for name in names:
        ways *= mesh.shape[name]
    return ways
