"""Modules as (structure, flat dict of arrays): the form in which state is trained, sharded and saved.

A parameter's name is its path in the module, joined by dots: "blocks.attn1.to_q.kernel". Flat dicts make names the
one handle for sharding, optimizer groups, checkpoints and foreign weights.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

Params = dict[str, jax.Array]
Batch = dict[str, jax.Array]
PyTree = Any
Axes = dict[str, tuple[str | None, ...]]


def split_model(model: nnx.Module) -> tuple[Any, Params, Axes]:
    """Returns (structure, parameters by name, logical axes by name) of a module or an abstract module.

    Everything in the module must be a parameter that names its axes: hidden state would be lost in silence under
    `jax.jit`, and a parameter without axes would be replicated in silence.
    """
    structure, state = nnx.split(model)
    params: Params = {}
    axes: Axes = {}
    for path, variable in nnx.to_flat_state(state):
        name = ".".join(str(part) for part in path)
        assert isinstance(variable, nnx.Param), f"{name} is not a parameter"
        params[name] = variable.get_value()
        axes[name] = variable.get_metadata()["axes"]
        assert len(axes[name]) == params[name].ndim, f"{name}: axes {axes[name]} for shape {params[name].shape}"
    return structure, params, axes


def merge_model(structure: Any, params: Params) -> Any:
    """Returns the module of `structure` holding `params`; the inverse of `split_model`."""
    nested: dict[Any, Any] = {}
    for name, value in params.items():
        parts = [int(part) if part.isdigit() else part for part in name.split(".")]
        node = nested
        for part in parts[:-1]:
            node = node.setdefault(part, {})
        node[parts[-1]] = value
    return nnx.merge(structure, nested)


def abstract_model(build: Callable[[jax.Array], nnx.Module]) -> tuple[Any, Params, Axes]:
    """Returns `split_model` of `build(key)` with shapes in place of arrays; nothing is computed."""
    return split_model(nnx.eval_shape(lambda: build(jax.random.key(0))))


def init_params(build: Callable[[jax.Array], nnx.Module], key: jax.Array) -> Params:
    """Returns the initial parameters of `build(key)`, by name; traceable, so jit it with output shardings."""
    return split_model(build(key))[1]


def count_parameters(params: Params) -> int:
    """Returns the number of scalars in `params` (arrays or shapes)."""
    return sum(value.size for value in params.values())
