"""What a forward pass keeps for the backward pass, as automatic differentiation says, for one device.

These are the values that cross from the one to the other, parameters and batch left out: under rematerialisation the
inputs of the blocks, without it everything that a derivative needs. XLA may keep less, never more of them.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from sora_jax.core import sharding
from sora_jax.core.tree import Batch, Params, merge_model
from sora_jax.train.step import Objective

# Shape -> the number of devices that such a value is split over.
Ways = Callable[[tuple[int, ...]], int]


def kept_bytes(objective: Objective, structure: Any, params: Any, batch: Any, ways: Ways) -> float:
    """Returns the bytes of one device; `params` and `batch`, one micro-batch, are shapes by name."""

    def kept(params: Params, batch: Batch, key: jax.Array) -> list[jax.Array]:
        def loss(params: Params) -> tuple[jax.Array, Any]:
            mean, metrics = objective(merge_model(structure, params), batch, key)
            return mean.sum, (mean, metrics)

        return jax.tree.leaves(jax.vjp(loss, params, has_aux=True)[1])

    traced = jax.make_jaxpr(kept)(params, batch, jax.eval_shape(lambda: jax.random.key(0))).jaxpr
    given = {id(variable) for variable in (*traced.invars, *traced.constvars)}
    found = {id(value): value.aval for value in traced.outvars if id(value) not in given}
    return float(sum(one.size * one.dtype.itemsize / ways(one.shape) for one in found.values() if not _on_host(one)))


def _on_host(aval: Any) -> bool:
    """Whether a value is offloaded to the memory of the host."""
    return aval.memory_space == jax.memory.Space.Host


def of_rows(mesh: Mesh, params: Params, *, rows: int, tokens: int, split: frozenset[int]) -> Ways:
    """Returns how values over packed rows are split.

    A value with a dimension of `rows` among its first three is split over the batch's devices, and where it has
    `tokens` to a row over those of `sequence`; where its last dimension is in `split`, a width that `tensor` splits,
    over that too. What each device keeps for itself (within `jax.shard_map`) has the parts of all devices along one
    dimension. A value of the shape of a parameter, cast or sliced, lies as the parameter does.
    """
    batch, sequence, tensor = sharding.ways("batch", mesh), mesh.shape["sequence"], mesh.shape["tensor"]
    of_params = _param_ways(params)

    def ways(shape: tuple[int, ...]) -> int:
        if shape in of_params:
            return of_params[shape]
        if rows not in shape[:3]:
            return mesh.size if rows // batch * mesh.size in shape[:3] else 1
        per_row = math.prod(shape) // rows
        result = batch * (sequence if per_row >= tokens and per_row % tokens == 0 else 1)
        return result * (tensor if shape[-1] in split else 1)

    return ways


def of_clips(mesh: Mesh, params: Params, *, clips: int) -> Ways:
    """Returns how values over clips (B, T, H, W, C) are split: over the batch, and in space as `sharding.spread`."""
    of_params = _param_ways(params)

    def ways(shape: tuple[int, ...]) -> int:
        if shape in of_params:
            return of_params[shape]
        if clips not in shape[:1]:
            return 1
        result = sharding.ways("batch", mesh)
        for side, axis in zip(shape[2:4], ("sequence", "tensor"), strict=False):
            size = mesh.shape[axis]
            result *= size if len(shape) == 5 and side % size == 0 and side // size >= 2 else 1
        return result

    return ways


def _param_ways(params: Params) -> dict[tuple[int, ...], int]:
    """Returns by the shape of each parameter over how many devices it is split."""
    found = {}
    for value in params.values():
        place = value.sharding
        assert isinstance(place, NamedSharding), place
        found[value.shape] = value.size // max(1, math.prod(place.shard_shape(value.shape)))
    return found
