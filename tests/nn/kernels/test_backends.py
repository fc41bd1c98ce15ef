"""Each way to compute attention against the plain one, forward and backward; what is skipped, what is never held."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.nn.flash import flash
from sora_jax.nn.kernels import blocked, cudnn, pallas_gpu, pallas_tpu
from sora_jax.nn.kernels.dense import attend_dense, dense
from sora_jax.nn.kernels.pallas_tpu import Blocks
from sora_jax.nn.kernels.ranges import have_keys, visible_blocks
from sora_jax.nn.kernels.seen import causal_ids, sees
from sora_jax.nn.kernels.splash import attend_splash
from sora_jax.nn.stack import REMAT_POLICIES
from tests.conftest import PLATFORM

N, H = 2, 16
BLOCK = 128
INTERPRETED = Blocks(queries=BLOCK, keys=BLOCK, interpret=True)
KERNELS = {
    "dense": dense(),
    "blocked": blocked.blocked(blocked.Blocks(queries=BLOCK, keys=BLOCK)),
    "blocked, fewer keys": blocked.blocked(blocked.Blocks(queries=BLOCK, keys=32)),
    "pallas_tpu": pallas_tpu.pallas_tpu(INTERPRETED),
    "pallas_gpu": pallas_gpu.pallas_gpu(pallas_gpu.Blocks(queries=64, keys=BLOCK, interpret=True)),
}
BACKENDS = {name: functools.partial(flash, kernel, None) for name, kernel in KERNELS.items()}
BACKENDS["splash"] = functools.partial(attend_splash, interpret=True)


def rows_of(lengths, total):
    """Returns the segment ids of rows, each padded with 0; a length of 0 skips an id."""
    ids = [np.repeat(np.arange(1, len(row) + 1), row) for row in lengths]
    return np.stack([np.pad(row, (0, total - len(row))) for row in ids]).astype(np.int32)


def mixed_lengths(segments, total, seed):
    """Returns `segments` lengths, each at least 1, that leave a little padding."""
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.choice(np.arange(1, total - 10), segments, replace=False))
    return np.diff(np.concatenate([[0], cuts])).tolist()


# (lengths of the segments of queries, of keys, row lengths): self-attention, then attention to texts. A program each
# for few row lengths: none a whole number of blocks.
CASES = {
    "one segment": ([[400]], [[400]], 400, 400),
    "one segment and padding": ([[200]], [[200]], 400, 400),
    "8 segments": ([mixed_lengths(8, 400, 0)], [mixed_lengths(8, 400, 0)], 400, 400),
    "64 segments, two rows": (
        [mixed_lengths(64, 400, 1), mixed_lengths(3, 400, 2)],
        [mixed_lengths(64, 400, 1), mixed_lengths(3, 400, 2)],
        400,
        400,
    ),
    "texts": ([[100, 150, 80], [290, 20]], [[3, 20, 7], [40, 9]], 330, 50),
    "a segment without keys, keys without queries": ([[90, 60, 0, 40]], [[30, 0, 50, 100]], 200, 190),
    "nothing at all": ([[]], [[]], 400, 400),
}


def inputs(case, *, dtype=np.float32, seed=0):
    lengths, key_lengths, total, keys = CASES[case]
    rng = np.random.default_rng(seed)
    rows = len(lengths)
    shapes = ((rows, total, N, H), (rows, keys, N, H), (rows, keys, N, H))
    arrays = [jnp.asarray(2 * rng.normal(size=shape), dtype) for shape in shapes]
    return arrays, [jnp.asarray(rows_of(lengths, total)), jnp.asarray(rows_of(key_lengths, keys))]


PLAIN = list(BACKENDS)
CAUSAL_KERNELS = {
    "dense": dense(causal=True),
    "blocked": blocked.blocked(blocked.Blocks(queries=BLOCK, keys=32, causal=True)),
    "pallas_tpu": pallas_tpu.pallas_tpu(dataclasses.replace(INTERPRETED, causal=True)),
    "pallas_gpu": pallas_gpu.pallas_gpu(pallas_gpu.Blocks(queries=64, keys=BLOCK, interpret=True, causal=True)),
}
BACKENDS |= {f"causal {name}": functools.partial(flash, kernel, None) for name, kernel in CAUSAL_KERNELS.items()}
BACKENDS["causal reference"] = functools.partial(attend_dense, causal=True)
BACKENDS["causal splash"] = functools.partial(attend_splash, causal=True, interpret=True)
CAUSAL = [name for name in BACKENDS if name.startswith("causal ") and name != "causal reference"]


@functools.cache
def with_gradients(name):
    """Returns the jitted function (arrays, segments) -> result and gradients of a sum that weighs every number."""
    attend = attend_dense if name == "reference" else BACKENDS[name]

    def run(arrays, segments):
        def loss(*arrays):
            mixed = attend(*arrays, *segments)
            weights = jnp.cos(jnp.arange(mixed.size, dtype=jnp.float32)).reshape(mixed.shape)
            return jnp.sum(mixed.astype(jnp.float32) * weights), mixed

        (_, mixed), gradients = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(*arrays)
        return mixed, *gradients

    return jax.jit(run)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", PLAIN)
def test_results_and_gradients_are_those_of_the_plain_path(name, case):
    arrays, segments = inputs(case)
    expected = with_gradients("reference")(arrays, segments)
    for found, wanted in zip(with_gradients(name)(arrays, segments), expected, strict=True):
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_results_and_gradients_are_those_of_the_plain_path(name):
    for case in ("8 segments", "one segment and padding"):
        arrays, (segment, _) = inputs(case)
        ids = causal_ids(segment)
        expected = with_gradients("causal reference")(arrays, [ids, ids])
        told = segment if name == "causal splash" else ids
        for found, wanted in zip(with_gradients(name)(arrays, [told, told]), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["causal blocked", "causal pallas_tpu", "causal pallas_gpu"])
def test_causal_blocks_behind_all_queries_are_never_visited(name):
    """Neither forward nor, where keys gather their gradients, backward: what comes later is no number."""
    ids = causal_ids(jnp.ones((1, 400), jnp.int32))
    arrays, _ = inputs("one segment")
    spoilt = [x.at[:, 256:].set(jnp.nan) for x in arrays]
    mixed, to_query, *_ = with_gradients(name)(spoilt, [ids, ids])
    for found in (mixed, to_query):
        np.testing.assert_array_equal(np.isfinite(found).all(axis=(0, 2, 3)), np.arange(400) < 256)


def test_causal_ids_say_who_sees_whom_in_the_longest_row():
    row = jnp.zeros((1, 2**20), jnp.int32).at[0, -3:].set(2047).at[0, :2].set(1)
    ids = causal_ids(row)[0, jnp.asarray([0, 1, 2, -3, -2])]
    seen = np.asarray(sees(ids[:, None], ids, causal=True)).astype(int)
    np.testing.assert_array_equal(seen, [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0] * 5, [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]])
    with pytest.raises(ValueError, match="a row of 1048577 tokens"):
        causal_ids(jnp.zeros((1, 2**20 + 1), jnp.int32))


@pytest.mark.parametrize("name", PLAIN)
def test_bfloat16_stays_close_to_float32(name):
    arrays, segments = inputs("8 segments")
    halves = [x.astype(jnp.bfloat16) for x in arrays]
    expected = with_gradients("reference")([x.astype(jnp.float32) for x in halves], segments)
    for found, wanted in zip(with_gradients(name)(halves, segments), expected, strict=True):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(found, np.float32), wanted, atol=0.03 * float(np.abs(wanted).max()))


@pytest.mark.parametrize("name", PLAIN)
def test_the_first_token_of_a_segment_sees_and_is_seen_by_its_own_segment_alone(name):
    arrays, (segment, _) = inputs("8 segments")
    before = with_gradients(name)(arrays, [segment, segment])[0]
    ids = np.asarray(segment[0])
    for number in (1, 2, 8):
        first = int(np.argmax(ids == number))
        key, value = (x.at[0, first].add(100.0) for x in arrays[1:])
        after = with_gradients(name)([arrays[0], key, value], [segment, segment])[0]
        changed = np.any(np.asarray(after != before), axis=(0, 2, 3))
        np.testing.assert_array_equal(changed, ids == number)


@pytest.mark.parametrize("name", [name for name in KERNELS if name != "dense"])
def test_blocks_of_other_segments_are_never_visited(name):
    """A value that is no number spoils all that a kernel multiplies it with, however small its weight."""
    lengths = [[2 * BLOCK, BLOCK, 3 * BLOCK]]
    segment = jnp.asarray(rows_of(lengths, 6 * BLOCK))
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(size=(1, 6 * BLOCK, N, H)), jnp.float32) for _ in range(3)]
    ids = np.asarray(segment[0])
    for number in (1, 2, 3):
        mine = ids == number
        spoilt = [jnp.where(jnp.asarray(mine)[None, :, None, None], jnp.nan, x) for x in arrays]
        for found in with_gradients(name)(spoilt, [segment, segment]):
            spoilt_tokens = np.any(~np.isfinite(np.asarray(found)), axis=(0, 2, 3))
            np.testing.assert_array_equal(spoilt_tokens, mine)


def test_a_long_row_never_holds_all_its_scores():
    arrays, segments = inputs("64 segments, two rows")
    text = {name: with_gradients(name).lower(arrays, segments).as_text() for name in ("dense", "blocked")}
    assert "x400x400xf32" in text["dense"]
    assert "400x400" not in text["blocked"]
    assert "512x512" not in text["blocked"]


def test_ranges_hold_every_pair_that_shares_a_segment():
    rng = np.random.default_rng(0)
    for _ in range(20):
        # No order of ids is assumed.
        query, key = (rng.integers(0, 5, size=(2, 12)).astype(np.int32) for _ in range(2))
        ranges = visible_blocks(jnp.asarray(query), jnp.asarray(key), query_block=3, key_block=4)
        for row in range(2):
            np.testing.assert_array_equal(
                have_keys(jnp.asarray(query), jnp.asarray(key))[row], np.isin(query[row], key[row][key[row] > 0])
            )
            for block in range(4):
                mine = query[row, 3 * block : 3 * block + 3]
                needed = [j for j in range(3) if np.intersect1d(mine[mine > 0], key[row, 4 * j : 4 * j + 4]).size]
                first, count = int(ranges.first_BI[row, block]), int(ranges.count_BI[row, block])
                assert set(needed) <= set(range(first, first + count))
    ordered = jnp.asarray(rows_of([[4, 8]], 16))
    ranges = visible_blocks(ordered, ordered, query_block=4, key_block=4)
    np.testing.assert_array_equal(ranges.first_BI, [[0, 1, 1, 0]])
    np.testing.assert_array_equal(ranges.count_BI, [[1, 2, 2, 0]])


def test_cudnn_is_told_where_each_segment_lies_and_takes_some_widths():
    start, count = cudnn.spans(jnp.asarray(rows_of([[3, 0, 4], [5]], 9)), 3)
    np.testing.assert_array_equal(start, [[0, 0, 3], [0, 0, 0]])
    np.testing.assert_array_equal(count, [[3, 0, 4], [5, 0, 0]])
    assert not cudnn.takes(jnp.zeros((1, 8, 2, 64)))
    assert not cudnn.takes(jnp.zeros((1, 8, 2, 12), jnp.bfloat16))
    assert cudnn.takes(jnp.zeros((1, 8, 2, 64), jnp.bfloat16))


@pytest.mark.skipif(PLATFORM != "cpu", reason="there is a GPU")
def test_cudnn_is_refused_where_there_is_no_gpu(caplog):
    cudnn.works.cache_clear()
    assert not cudnn.works()
    assert "the platform is cpu, not a GPU" in caplog.text


@pytest.fixture
def cudnn_said_to_be_there(monkeypatch):
    from jax._src.cudnn import fused_attention_stablehlo as private

    monkeypatch.setattr(private, "check_cudnn_version", lambda: 91500)
    monkeypatch.setattr(private, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(private, "is_cuda_compute_capability_equal", lambda _: False)


def program_of_cudnn(*, causal=False, remat="none"):
    """Returns the text of the program for CUDA of results and gradients."""
    arrays, segments = inputs("8 segments" if causal else "texts", dtype=jnp.bfloat16)

    def attend(*arrays):
        return cudnn.attend_cudnn(*arrays, *segments, segments=8, causal=causal)

    attend = attend if remat == "none" else jax.checkpoint(attend, policy=REMAT_POLICIES[remat])

    def loss(*arrays):
        return jnp.sum(attend(*arrays).astype(jnp.float32) ** 2)

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    return gradient.trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.usefixtures("cudnn_said_to_be_there")
@pytest.mark.parametrize("causal", [False, True])
def test_cudnn_gets_a_program_of_the_packed_layout(causal):
    """What there is without a GPU: JAX takes the arguments and makes the call, forward and backward."""
    text = program_of_cudnn(causal=causal)
    assert "__cudnn$fmhaSoftmax" in text
    assert "__cudnn$fmhaSoftmaxBackward" in text
    assert ("PADDING_CAUSAL" in text) == causal


@pytest.mark.skipif(PLATFORM != "cpu", reason="there is a GPU")
@pytest.mark.usefixtures("cudnn_said_to_be_there")
def test_asked_while_a_program_is_traced_the_check_gets_as_far_as_the_compiler(monkeypatch, caplog):
    """Which has no such call for a CPU; within `jax.ensure_compile_time_eval` jax fails before."""
    monkeypatch.setattr(cudnn, "_refusal", lambda: "")
    cudnn.works.cache_clear()
    assert float(jax.jit(lambda x: x if cudnn.works() else -x)(jnp.ones(()))) == -1.0
    assert "'dot_product_attention_fwd' not found for platform cpu" in caplog.text
    cudnn.works.cache_clear()


@pytest.mark.usefixtures("cudnn_said_to_be_there")
@pytest.mark.parametrize(("remat", "times"), [("none", 1), ("dots", 1), ("attention", 1), ("full", 2)])
def test_where_attention_is_kept_cudnn_computes_it_once(remat, times):
    text = program_of_cudnn(remat=remat)
    assert len(re.findall(r"__cudnn\$fmhaSoftmax\b", text)) == times
    assert len(re.findall(r"__cudnn\$fmhaSoftmaxBackward\b", text)) == 1


def test_the_gpu_kernel_becomes_a_program_for_cuda():
    """What there is without a GPU: Pallas makes Triton's program of it, forward and backward."""
    arrays, segments = inputs("texts", dtype=jnp.bfloat16)

    def loss(*arrays):
        return jnp.sum(flash(pallas_gpu.pallas_gpu(), None, *arrays, *segments).astype(jnp.float32) ** 2)

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        text = gradient.trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("triton_kernel_call") + text.count("__gpu$xla.gpu.triton") >= 3
    assert pallas_gpu.takes(arrays[0])
    assert not pallas_gpu.takes(jnp.zeros((1, 8, 2, 72)))
