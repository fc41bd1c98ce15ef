"""Runs the graph of an ONNX file in jax: the operations of convolutional classifiers, one function each."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.core.errors import UserError
from sora_jax.models.interop.onnx_weights import Node, OnnxGraph

_Attributes = Mapping[str, Any]


def check_operations(graph: OnnxGraph, *, what: str) -> None:
    """Raises UserError, which begins with `what`, for operations and forms of them that are not known here."""
    if unknown := sorted({node.kind for node in graph.nodes} - OPERATIONS.keys()):
        raise UserError(f"{what}: {', '.join(unknown)} is not among the operations that are run here")
    for node in graph.nodes:
        if node.attributes.get("auto_pad", "NOTSET") != "NOTSET" or node.attributes.get("ceil_mode", 0):
            raise UserError(f"{what}: {node.kind} pads in a way that is not run here")


def run_graph(graph: OnnxGraph, weights: Mapping[str, Any], given: Mapping[str, jax.Array], wanted: str) -> jax.Array:
    """Returns the array `wanted` of a graph that `check_operations` let pass; what it does not need is not computed.

    Args:
      graph: Of `read_onnx`.
      weights: Its float arrays by name, which may lie on devices; integers stay in the graph, as they are shapes.
      given: The inputs of the graph by name.
      wanted: Name of any array in it; KeyError where none gives it.
    """
    makers = {name: node for node in graph.nodes for name in node.outputs}
    known: dict[str, Any] = {**graph.weights, **weights, **given}
    for node in _order(makers, wanted, known.keys()):
        known[node.outputs[0]] = OPERATIONS[node.kind]([known[name] for name in node.inputs if name], node.attributes)
    return known[wanted]


def _order(makers: Mapping[str, Node], wanted: str, known: Any) -> list[Node]:
    """Returns the operations that `wanted` depends on, each after those that it needs."""
    found: dict[str, Node] = {}
    left = [wanted]
    while left:
        name = left[-1]
        node = makers.get(name)
        if name in known or name in found or node is None:
            left.pop()
        elif lacking := [one for one in node.inputs if one and one not in known and one not in found and one in makers]:
            left += lacking
        else:
            found[name] = node
            left.pop()
    return list(found.values())


def _convolve(inputs: Sequence[Any], attributes: _Attributes) -> jax.Array:
    x, kernel = inputs[:2]
    dims = kernel.ndim - 2
    letters = "DHW"[-dims:]
    y = jax.lax.conv_general_dilated(
        x,
        jnp.asarray(kernel),
        attributes.get("strides", (1,) * dims),
        _pads(attributes, dims),
        rhs_dilation=attributes.get("dilations", (1,) * dims),
        feature_group_count=attributes.get("group", 1),
        dimension_numbers=(f"NC{letters}", f"OI{letters}", f"NC{letters}"),
    )
    return y + inputs[2].reshape(1, -1, *(1,) * dims) if len(inputs) > 2 else y


def _max_pool(inputs: Sequence[Any], attributes: _Attributes) -> jax.Array:
    return _reduce(inputs[0], attributes, -jnp.inf, jax.lax.max)


def _average_pool(inputs: Sequence[Any], attributes: _Attributes) -> jax.Array:
    total = _reduce(inputs[0], attributes, 0.0, jax.lax.add)
    if attributes.get("count_include_pad", 0):
        return total / np.prod(attributes["kernel_shape"])
    return total / _reduce(jnp.ones_like(inputs[0][:1, :1]), attributes, 0.0, jax.lax.add)


def _reduce(x: jax.Array, attributes: _Attributes, start: float, combine: Callable[..., Any]) -> jax.Array:
    window = attributes["kernel_shape"]
    stride = attributes.get("strides", (1,) * len(window))
    pads = [(0, 0), (0, 0), *_pads(attributes, len(window))]
    return jax.lax.reduce_window(x, start, combine, (1, 1, *window), (1, 1, *stride), pads)


def _pads(attributes: _Attributes, dims: int) -> list[tuple[int, int]]:
    """Returns (before, behind) of each dimension; the file has those before first."""
    pads = attributes.get("pads", (0,) * 2 * dims)
    return list(zip(pads[:dims], pads[dims:], strict=True))


def _reshape(inputs: Sequence[Any], attributes: _Attributes) -> jax.Array:
    """Returns the array in another shape, in which 0 keeps a side and -1 is what is left."""
    del attributes
    x, shape = inputs
    return x.reshape([x.shape[axis] if side == 0 else int(side) for axis, side in enumerate(np.asarray(shape))])


# What is done with the inputs and the attributes, by the name of the operation in ONNX.
OPERATIONS: Mapping[str, Callable[[Sequence[Any], _Attributes], jax.Array]] = {
    "Add": lambda inputs, _: inputs[0] + inputs[1],
    "AveragePool": _average_pool,
    "Conv": _convolve,
    "MatMul": lambda inputs, _: inputs[0] @ inputs[1],
    "MaxPool": _max_pool,
    "Relu": lambda inputs, _: jax.nn.relu(inputs[0]),
    "Reshape": _reshape,
    "Softmax": lambda inputs, attributes: jax.nn.softmax(inputs[0], axis=attributes.get("axis", -1)),
    "Transpose": lambda inputs, attributes: jnp.transpose(inputs[0], attributes["perm"]),
}
