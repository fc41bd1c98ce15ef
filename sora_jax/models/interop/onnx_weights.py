"""ONNX files: the graph of a network and its weights, read without the library.

A file comes from a stranger. It is a protocol buffer, which runs nothing when it is read: fields of a number and a
value, that lie one behind the other. Lengths are checked before anything is taken from them; weights that lie in other
files are refused, as a name there could be any path.
"""

import dataclasses
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sora_jax.core.errors import UserError

# Numbers of the fields that are read, by the messages of onnx.proto.
_GRAPH = 7
_NODE, _INITIALIZER, _INPUT, _OUTPUT = 1, 5, 11, 12
_DTYPES = {1: np.dtype("<f4"), 6: np.dtype("<i4"), 7: np.dtype("<i8"), 10: np.dtype("<f2"), 11: np.dtype("<f8")}
_LONGEST_VARINT = 10  # bytes
_REMEDY = "download it again"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """One operation: the names of what it takes and gives, and its attributes as numbers, texts and lists of them."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnnxGraph:
    """Operations in an order in which they can be done, the arrays that are known, and the names of the others.

    Attributes:
      nodes: Operations.
      weights: Arrays by name, as the file has them.
      inputs: Names of what is given to the graph.
      outputs: Names of what it is for.
    """

    nodes: tuple[Node, ...]
    weights: dict[str, np.ndarray]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read_onnx(path: str | Path) -> OnnxGraph:
    """Returns the graph of a file.

    Raises UserError where the file is absent, is no whole ONNX file, or holds an array of a type that is not read here,
    or one whose values lie in another file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; give an ONNX file")
    try:
        graph = _graph(memoryview(path.read_bytes()))
    except (AttributeError, LookupError, TypeError, struct.error, ValueError) as error:
        raise UserError(f"{path} is not a whole ONNX file that is read here ({error}); {_REMEDY}") from error
    if not graph.nodes:
        raise UserError(f"{path} is no ONNX file: it holds no operation; {_REMEDY}")
    return graph


def _graph(data: memoryview) -> OnnxGraph:
    parts = [value for number, value in _fields(data) if number == _GRAPH]
    if len(parts) != 1:
        raise ValueError(f"{len(parts)} graphs")
    found: dict[int, list[memoryview]] = {_NODE: [], _INITIALIZER: [], _INPUT: [], _OUTPUT: []}
    for number, value in _fields(parts[0]):
        if number in found:
            found[number].append(value)
    weights = dict(map(_array, found[_INITIALIZER]))
    inputs, outputs = ([_text(_one(value, 1)) for value in found[number]] for number in (_INPUT, _OUTPUT))
    return OnnxGraph(
        nodes=tuple(map(_node, found[_NODE])),
        weights=weights,
        inputs=tuple(name for name in inputs if name not in weights),
        outputs=tuple(outputs),
    )


def _node(data: memoryview) -> Node:
    attributes = dict(_attribute(value) for number, value in _fields(data) if number == 5)
    inputs, outputs = (tuple(_text(value) for n, value in _fields(data) if n == number) for number in (1, 2))
    return Node(kind=_text(_one(data, 4)), inputs=inputs, outputs=outputs, attributes=attributes)


def _attribute(data: memoryview) -> tuple[str, Any]:
    """Returns the name and the value: a number, a text, a list of integers or of floats."""
    name = _text(_one(data, 1))
    value: Any = None
    for number, field in _fields(data):
        if number == 2:
            (value,) = struct.unpack("<f", field)
        elif number == 3:
            value = _signed(field)
        elif number == 4:
            value = _text(field)
        elif number == 7:
            value = [*(value or []), *struct.unpack(f"<{len(field) // 4}f", field)]
        elif number == 8:
            value = [*(value or []), *(map(_signed, _packed(field)))]
        elif number in (5, 6, 9, 10, 11):
            raise ValueError(f"attribute {name} is of a kind that is not read here")
    return name, value


def _array(data: memoryview) -> tuple[str, np.ndarray]:
    """Returns the name and the array of an initializer."""
    fields = list(_fields(data))
    name = _text(_one(data, 8))
    if any(number in (13, 14) and value for number, value in fields):
        raise ValueError(f"the values of {name} lie in another file")
    shape = [_signed(one) for number, value in fields if number == 1 for one in _packed(value)]
    kind = _one(data, 2)
    if kind not in _DTYPES:
        raise ValueError(f"{name} is of type {kind}")
    values = next((value for number, value in fields if number == 9), None)
    dtype = _DTYPES[kind]
    if values is None or min(shape, default=1) < 0 or math.prod(shape) * dtype.itemsize != len(values):
        raise ValueError(f"{name} of shape {tuple(shape)} has {0 if values is None else len(values)} bytes")
    return name, np.frombuffer(values, dtype).reshape(shape)


def _one(data: memoryview, wanted: int) -> Any:
    """Returns the first field of a number; LookupError where there is none."""
    for number, value in _fields(data):
        if number == wanted:
            return value
    raise LookupError(f"field {wanted} is missing")


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Yields the number and the value of each field: an integer, or bytes."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, place = _varint(data, place)
        else:
            if wire == 2:
                length, place = _varint(data, place)
            else:
                length = {1: 8, 5: 4}[wire]
            if length > len(data) - place:
                raise ValueError(f"a field of {length} bytes ends beyond the file")
            value, place = data[place : place + length], place + length
        yield number, value


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """Returns an integer of 7 bits a byte, and the place behind it."""
    value = 0
    for count in range(_LONGEST_VARINT):
        byte = data[place + count]
        value |= (byte & 127) << 7 * count
        if byte < 128:
            return value, place + count + 1
    raise ValueError("an integer of more than 64 bits")


def _packed(field: int | memoryview) -> Iterator[int]:
    """Yields the integers of a repeated field, which writers may pack into one."""
    if isinstance(field, int):
        yield field
        return
    place = 0
    while place < len(field):
        value, place = _varint(field, place)
        yield value


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _text(value: memoryview) -> str:
    return bytes(value).decode()
