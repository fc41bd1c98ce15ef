"""What a compiled program reads from and writes to the memory of one device.

Each operation reads its operands and writes its result once; what is fused into one stays on the chip, and so does what
XLA for TPU has placed there. Of an array that is only sliced, or updated in place, the slice counts. A kernel written
by hand counts what it is given and what it gives, though it may read that more than once. Text in, numbers out.
"""

import re
from collections.abc import Mapping

import numpy as np

from sora_jax.planning.hlo import Instruction, Module, size_of

# These move nothing: they name, group or wait; what they call counts by itself.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id", "replica-id", "iota"),
    *("while", "conditional", "call", "after-all", "opt-barrier", "async-start", "async-update", "async-done"),
}
_SLICES = ("dynamic-slice", "slice", "gather")


def hbm_bytes(module: Module) -> float:
    """Returns the bytes that one run of the program moves between a device's memory and its cores."""
    total = 0
    for visit in module.visits:
        if visit.within is None:
            inside = module.computations[visit.name]
            total += visit.times * sum(_moved(module, inside, one) for one in inside.values())
    return float(total)


def _moved(module: Module, inside: Mapping[str, Instruction], one: Instruction) -> int:
    if one.op in _FREE or one.op.endswith("-done") or '"AllocateBuffer"' in one.attributes:
        return 0
    if one.op in ("copy-start", "send", "recv") or one.op.endswith("-start"):
        return size_of(one.shape, in_hbm=True)
    shapes = [inside[name].shape for name in one.operands]
    written = size_of(one.shape, in_hbm=True)
    if one.op in _SLICES:
        return 2 * written
    if one.op == "dynamic-update-slice":
        return 2 * size_of(shapes[1], in_hbm=True)
    if one.op == "fusion":
        return _moved_by_fusion(module, one, shapes, written)
    return written + sum(size_of(shape, in_hbm=True) for shape in shapes)


def _moved_by_fusion(module: Module, one: Instruction, shapes: list[str], written: int) -> int:
    name = one.called("calls")
    assert name is not None, one
    inside = module.computations[name]
    total = 0
    for parameter in (other for other in inside.values() if other.op == "parameter"):
        shape = shapes[int(parameter.literal)]
        whole = size_of(shape, in_hbm=True)
        uses = _uses(inside, parameter.name)
        if uses and all(user.op in _SLICES and place == 0 for user, place in uses):
            total += min(whole, sum(size_of(user.shape) for user, _ in uses))
        elif uses and all(user.op == "dynamic-update-slice" and place == 0 for user, place in uses):
            # In place: what is written is the update, and the rest of the result is what was there.
            updates = sum(size_of(inside[user.operands[1]].shape) for user, _ in uses)
            written = max(0, written - whole) + updates if whole else written
        else:
            total += whole
    return total + written


def _uses(inside: Mapping[str, Instruction], name: str) -> list[tuple[Instruction, int]]:
    """Returns who uses a value and as which operand, past what only names it otherwise."""
    found = []
    for other in inside.values():
        for place, operand in enumerate(other.operands):
            if operand == name:
                found += _uses(inside, other.name) if other.op == "bitcast" and not other.root else [(other, place)]
    return found


def matmul_flops(module: Module) -> float:
    """Returns the FLOPs of the matrix products and convolutions that one device does, loops counted as they run.

    A kernel written by hand counts nothing: it cannot be looked into.
    """
    total = 0
    for visit in module.visits:
        inside = module.computations[visit.name]
        total += visit.times * sum(_flops(inside, one) for one in inside.values())
    return float(total)


def _flops(inside: Mapping[str, Instruction], one: Instruction) -> int:
    if one.op == "dot":
        left = _dimensions(inside[one.operands[0]].shape)
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.attributes)
        axes = [int(axis) for axis in contracted[1].split(",") if axis] if contracted else []
        return 2 * _product(_dimensions(one.shape)) * _product([left[axis] for axis in axes])
    if one.op == "convolution":
        return _convolution_flops(inside, one)
    return 0


def _convolution_flops(inside: Mapping[str, Instruction], one: Instruction) -> int:
    """Returns the FLOPs of a convolution; products with padding and with holes count nothing.

    Holes matter: XLA for TPU writes a product of batches of matrices as a convolution over the batch with holes.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes)
    assert labels is not None, one
    given, kernel, made = (
        dict(zip(label, _dimensions(shape), strict=True))
        for label, shape in zip(
            labels.groups(), (*(inside[name].shape for name in one.operands[:2]), one.shape), strict=True
        )
    )
    spatial = sorted(set(given) - {"b", "f"})
    groups = re.search(r"batch_group_count=(\d+)", one.attributes)
    count = given["b"] * kernel["i"] * made["f"] // (int(groups[1]) if groups else 1)
    for place, name in enumerate(spatial):
        window = {key: _window(one.attributes, key, place) for key in ("stride", "lhs_dilate", "rhs_dilate")}
        before = int((_window_text(one.attributes, "pad", place) or "0_0").split("_")[0])
        count *= _products(given[name], kernel[name], made[name], before=before, **window)
    return 2 * count


def _window(attributes: str, key: str, place: int) -> int:
    return int(_window_text(attributes, key, place) or 1)


def _window_text(attributes: str, key: str, place: int) -> str | None:
    found = re.search(rf"window=\{{[^}}]*\b{key}=([\d_x\-]+)", attributes)
    return found[1].split("x")[place] if found else None


def _products(given: int, kernel: int, made: int, *, before: int, stride: int, lhs_dilate: int, rhs_dilate: int) -> int:
    """Returns how many pairs of a result and a weight along one dimension meet a number that is there."""
    result, weight = np.arange(made)[:, None], np.arange(kernel)[None]
    place = result * stride - before + weight * rhs_dilate
    return int(np.count_nonzero((place >= 0) & (place % lhs_dilate == 0) & (place < given * lhs_dilate)))


def _dimensions(shape: str) -> list[int]:
    found = re.search(r"\[([\d,]*)\]", shape)
    return [int(size) for size in found[1].split(",") if size] if found else []


def _product(sizes: list[int]) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result
