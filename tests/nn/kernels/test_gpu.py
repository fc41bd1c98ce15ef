"""Attention on a GPU, each way: TEST_PLATFORM=cuda python -m pytest tests/nn/kernels/test_gpu.py."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.core.rng import Rngs
from sora_jax.core.tree import merge_model, split_model
from sora_jax.models.transformer import Transformer
from sora_jax.nn import attention
from sora_jax.nn.kernels import cudnn
from tests import small
from tests.conftest import PLATFORM

pytestmark = pytest.mark.skipif(PLATFORM != "cuda", reason="needs a GPU: TEST_PLATFORM=cuda")
# Of bfloat16, relative to the largest value, as the kernels' own check; of float32.
TOLERANCES = {"bfloat16": 0.02, "float32": 2e-5}
WAYS = [
    ("dense", "bfloat16"),
    ("blocked", "bfloat16"),
    ("pallas_gpu", "bfloat16"),
    ("cudnn", "bfloat16"),
    ("blocked", "float32"),
    ("pallas_gpu", "float32"),
]
SHAPES = {"self": [700, 3, 260, 61], "many": [17] * 50 + [90]}
KEYS = {"self": [700, 3, 260, 61], "texts": [30, 5, 100, 41]}


def ids(lengths, total):
    return np.pad(np.repeat(np.arange(1, len(lengths) + 1), lengths), (0, total - sum(lengths))).astype(np.int32)


def arrays_of(rows, queries, keys, heads, width, dtype):
    rng = np.random.default_rng(0)
    shapes = [(rows, queries, heads, width)] + 2 * [(rows, keys, heads, width)]
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


@functools.partial(jax.jit, static_argnames=("backend", "segments", "causal"))
def with_gradients(arrays, query_segment, key_segment, *, backend, segments, causal=False):
    def loss(*arrays):
        mixed = attention.attend(
            *arrays, query_segment, key_segment, segments=segments, backend=backend, causal=causal
        ).astype(jnp.float32)
        return jnp.sum(jnp.sin(mixed)), mixed

    (_, mixed), gradients = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(*arrays)
    return mixed, *gradients


def assert_close(found, expected, tolerance):
    for name, a, b in zip(("result", "query", "key", "value"), found, expected, strict=True):
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        error = np.abs(a - b).max() / np.abs(b).max()
        assert error <= tolerance, (name, error)


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("kind", ["self", "texts", "causal"])
@pytest.mark.parametrize(("backend", "dtype"), WAYS)
def test_results_and_gradients_are_those_of_float32(backend, dtype, kind, width):
    lengths = SHAPES["self"]
    key_lengths = KEYS["texts" if kind == "texts" else "self"]
    segment = jnp.asarray(np.stack([ids(lengths, 1100), ids(lengths[::-1], 1100)]))
    keys = 200 if kind == "texts" else 1100
    key_segment = jnp.asarray(np.stack([ids(key_lengths, keys), ids(key_lengths[::-1], keys)]))
    arrays = arrays_of(2, 1100, keys, 3, width, dtype)
    options = {"segments": 4, "causal": kind == "causal"}
    exact = [x.astype(jnp.float32) for x in arrays]
    expected = with_gradients(exact, segment, key_segment, backend="dense", **options)
    assert_close(with_gradients(arrays, segment, key_segment, backend=backend, **options), expected, TOLERANCES[dtype])


@pytest.mark.parametrize(("backend", "dtype"), WAYS)
def test_a_segment_in_a_row_is_the_segment_alone(backend, dtype):
    """Of the whole transformer: prediction and the gradient of the tokens."""
    config = dataclasses.replace(small.TRANSFORMER, width=128, heads=2, mlp_width=256, attention=backend)
    build = functools.partial(Transformer, config, patch_width=8, text_dim=16)
    model = build(rngs=Rngs(0))
    structure, params, _ = split_model(model)
    rng = np.random.default_rng(1)
    noisy = {name: x + 0.02 * jnp.asarray(rng.normal(size=x.shape), x.dtype) for name, x in params.items()}
    lengths = SHAPES["many"]
    total = 1024

    def run(tokens, segment, text, text_segment):
        def loss(tokens):
            prediction = merge_model(structure, noisy)(
                tokens.astype(dtype),
                levels_BG=jnp.linspace(0.1, 0.9, 2 * 51)[None],
                level_BL=jnp.maximum(segment - 1, 0),
                position_BL3=position_of(segment),
                segment_BL=segment,
                extent_BL3=jnp.ones((*segment.shape, 3), jnp.float32),
                text_BKE=text.astype(dtype),
                text_segment_BK=text_segment,
            ).tokens_BLP.astype(jnp.float32)
            return jnp.sum(jnp.sin(prediction)), prediction

        return jax.jit(jax.grad(loss, has_aux=True))(tokens)

    def position_of(segment):
        place = jnp.arange(segment.shape[1]) - jnp.argmax(segment[0][None] == segment[0][:, None], axis=1)
        return jnp.stack([place // 16, place // 4 % 4, place % 4], -1)[None].astype(jnp.float32)

    segment, text_segment = jnp.asarray(ids(lengths, total))[None], jnp.asarray(ids([3] * 51, 160))[None]
    tokens = jnp.asarray(rng.normal(size=(1, total, 8)), jnp.float32)
    text = jnp.asarray(rng.normal(size=(1, 160, 16)), jnp.float32)
    packed_gradient, packed = run(tokens, segment, text, text_segment)
    ends = np.cumsum([0, *lengths])
    for number in (0, 20, 50):
        here, there = slice(ends[number], ends[number + 1]), slice(3 * number, 3 * number + 3)
        alone_gradient, alone = run(tokens[:, here], segment[:, here], text[:, there], text_segment[:, there])
        for a, b in ((packed[:, here], alone), (packed_gradient[:, here], alone_gradient)):
            assert float(jnp.abs(a - b).max() / jnp.abs(b).max()) <= TOLERANCES[dtype]


def test_cudnn_works_here():
    assert cudnn.works()
    assert cudnn.works(causal=True)
