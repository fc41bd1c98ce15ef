"""Attention over packed rows against a slow loop over single queries, and that nothing passes between segments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding

from sora_jax.core.errors import UserError
from sora_jax.core.mesh import MESH_AXES, MeshConfig, make_mesh
from sora_jax.core.sharding import spec
from sora_jax.nn import attention
from sora_jax.nn.flash import NOTHING
from sora_jax.nn.stack import REMAT_POLICIES

L, M, N, H = 14, 11, 2, 4


def slow_attend(*arrays, causal=False):
    """Returns the definition, one query of one head at a time, in float64."""
    query_BLNH, key_BMNH, value_BMNH = (np.asarray(x, np.float64) for x in arrays[:3])
    query_segment_BL, key_segment_BM = arrays[3:]
    mixed = np.zeros_like(query_BLNH)
    for row, position, head in np.ndindex(*query_BLNH.shape[:3]):
        segment = query_segment_BL[row, position]
        seen = np.flatnonzero((key_segment_BM[row] == segment) & (segment > 0))
        seen = seen[seen <= position] if causal else seen
        if len(seen):
            scores = key_BMNH[row, seen, head] @ query_BLNH[row, position, head] / np.sqrt(query_BLNH.shape[-1])
            weights = np.exp(scores - scores.max())
            mixed[row, position, head] = weights @ value_BMNH[row, seen, head] / weights.sum()
    return mixed


def row_of(lengths, total):
    """Returns the segment ids of one row, padded with 0; a length of 0 skips an id."""
    ids = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    return np.pad(ids, (0, total - len(ids))).astype(np.int32)


def inputs(seed=0, *, rows=1, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = ((rows, L, N, H), (rows, M, N, H), (rows, M, N, H))
    return [scale * rng.normal(size=shape).astype(np.float32) for shape in shapes]


QUERY_SEGMENT = np.stack([row_of([5, 1, 4], L), row_of([3, 8], L)])
# Segment 2 of the first row has queries and no keys; segment 3 of the second has keys and no queries.
KEY_SEGMENT = np.stack([row_of([3, 0, 6], M), row_of([1, 4, 2], M)])

compiled = jax.jit(attention.attend)


def attend(*arrays):
    return compiled(*[jnp.asarray(x) for x in arrays])


@settings(deadline=None, max_examples=30)
@given(
    queries=st.lists(st.integers(0, 5), max_size=3).filter(lambda x: sum(x) <= L),
    keys=st.lists(st.integers(0, 4), max_size=3).filter(lambda x: sum(x) <= M),
    order=st.randoms(use_true_random=False),
    scale=st.sampled_from([1.0, 30.0]),
)
def test_matches_a_slow_loop(queries, keys, order, scale):
    query_segment_L = list(row_of(queries, L))
    order.shuffle(query_segment_L)  # no order of ids is assumed
    segments = np.array([query_segment_L], np.int32), row_of(keys, M)[None]
    arrays = inputs(len(queries), scale=scale)
    np.testing.assert_allclose(
        attend(*arrays, *segments), slow_attend(*arrays, *segments), rtol=1e-4, atol=1e-4 * scale
    )


def test_rows_do_not_mix():
    arrays = inputs(3, rows=2)
    expected = slow_attend(*arrays, QUERY_SEGMENT, KEY_SEGMENT)
    np.testing.assert_allclose(attend(*arrays, QUERY_SEGMENT, KEY_SEGMENT), expected, rtol=1e-5, atol=1e-5)


def test_a_query_without_keys_gives_zeros_and_finite_gradients():
    arrays = inputs(1, rows=2)
    mixed = np.asarray(attend(*arrays, QUERY_SEGMENT, KEY_SEGMENT))
    assert QUERY_SEGMENT[0, 5] == 2
    assert not (KEY_SEGMENT[0] == 2).any()
    np.testing.assert_array_equal(mixed[0, 5], 0)
    np.testing.assert_array_equal(mixed[QUERY_SEGMENT == 0], 0)
    assert (mixed[0, :5] != 0).all()

    def loss(*arrays):
        return jnp.sum(jnp.sin(attend(*arrays, QUERY_SEGMENT, KEY_SEGMENT)))

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*arrays)
    for gradient in gradients:
        assert np.isfinite(gradient).all()
        assert np.any(gradient)
    np.testing.assert_array_equal(gradients[0][0, 5], 0)
    for gradient in gradients[1:]:  # padding, and keys that no query asks for
        np.testing.assert_array_equal(gradient[KEY_SEGMENT == 0], 0)
        np.testing.assert_array_equal(gradient[1][KEY_SEGMENT[1] == 3], 0)


@pytest.mark.parametrize("changed", [0, 1, 3])
def test_nothing_leaks_from_a_segment_or_from_padding(changed):
    arrays = inputs(2, rows=2)
    before = np.asarray(attend(*arrays, QUERY_SEGMENT, KEY_SEGMENT))
    query, key, value = (x.copy() for x in arrays)
    query[changed == QUERY_SEGMENT] += 7
    key[changed == KEY_SEGMENT] -= 50
    value[changed == KEY_SEGMENT] *= -1000
    after = np.asarray(attend(query, key, value, QUERY_SEGMENT, KEY_SEGMENT))
    elsewhere = changed != QUERY_SEGMENT
    np.testing.assert_array_equal(after[elsewhere], before[elsewhere])
    if changed:
        here = ~elsewhere & (QUERY_SEGMENT > 0)
        assert (after[here] != before[here]).all()


@pytest.mark.parametrize("backend", ["dense", "blocked"])
def test_a_causal_query_sees_its_segment_up_to_itself(backend):
    query, key, value = inputs(9, rows=2)
    arrays = query[:, :M], key, value
    attend_causal = jax.jit(functools.partial(attention.attend, causal=True, backend=backend))
    expected = slow_attend(*arrays, KEY_SEGMENT, KEY_SEGMENT, causal=True)
    np.testing.assert_allclose(attend_causal(*arrays, KEY_SEGMENT, KEY_SEGMENT), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="causal attention of 14 queries to 11 keys"):
        attention.attend(query, key, value, QUERY_SEGMENT, KEY_SEGMENT, causal=True)


def test_bfloat16_keeps_its_dtype_and_scores_in_float32():
    # Scores near 300 differ by less than bfloat16 could tell apart there.
    query = jnp.full((1, 1, 1, 4), 12.0, jnp.bfloat16)
    key = jnp.array([[[[12.0] * 4]], [[[12.0, 12.0, 12.0, 12.0625]]]], jnp.bfloat16).reshape(1, 2, 1, 4)
    value = jnp.array([0.0, 1.0], jnp.bfloat16)[None, :, None, None] * jnp.ones((1, 2, 1, 4), jnp.bfloat16)
    ones = np.ones((1, 2), np.int32)
    mixed = attend(query, key, value, ones[:, :1], ones)
    assert mixed.dtype == jnp.bfloat16
    expected = slow_attend(query, key, value, ones[:, :1], ones)
    assert expected.min() > 0.55
    np.testing.assert_allclose(np.asarray(mixed, np.float32), expected, atol=0.01)


MESHES = [(8, 1, 1, 1), (1, 2, 4, 1), (2, 1, 2, 2), (1, 1, 8, 1)]


WAYS = [("gather", "auto", False), ("ring", "dense", False), ("ring", "blocked", False)]
CAUSAL_WAYS = [("gather", "splash", True), ("ring", "dense", True)]  # "splash" leaves spread rows to another
ON_MESHES = [(sizes, *way) for sizes in MESHES for way in WAYS] + [(MESHES[2], *way) for way in CAUSAL_WAYS]


@pytest.mark.several_devices
@pytest.mark.parametrize(("sizes", "exchange", "backend", "causal"), ON_MESHES)
def test_a_mesh_changes_no_number(sizes, exchange, backend, causal):
    """Rows, tokens and heads are spread over devices; keys are gathered, or passed around with their segments."""
    mesh = make_mesh(MeshConfig(**dict(zip(MESH_AXES, sizes, strict=True))))
    rng = np.random.default_rng(5)
    rows, length = 8, 64
    lengths = [rng.multinomial(length - 6, rng.dirichlet(np.ones(1 + row))).tolist() for row in range(rows)]
    segment = np.stack([row_of(row, length) for row in lengths])
    arrays = [rng.normal(size=(rows, length, N, H)).astype(np.float32) for _ in range(3)]
    alone = "auto" if backend == "splash" else backend

    def both(*arrays, backend=backend):
        def loss(*arrays):
            mixed = attention.attend(*arrays, segment, segment, exchange=exchange, backend=backend, causal=causal)
            return jnp.sum(jnp.sin(mixed)), mixed

        (_, mixed), gradients = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(*arrays)
        return mixed, *gradients

    expected = jax.jit(functools.partial(both, backend=alone))(*arrays)
    if causal:
        np.testing.assert_allclose(
            expected[0], slow_attend(*arrays, segment, segment, causal=True), rtol=1e-4, atol=1e-5
        )
    with jax.set_mesh(mesh):
        place = NamedSharding(mesh, spec(("batch", "length", "heads", None)))
        step = jax.jit(both)
        spread = jax.device_put(arrays, place)
        text = step.lower(*spread).compile().as_text()
        found = step(*spread)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)
    if sizes[2] > 1:
        assert ("collective-permute" in text) == (exchange == "ring")
        assert ("all-gather" in text) == (exchange == "gather")


@pytest.mark.several_devices
def test_cross_attention_of_spread_queries_needs_no_exchange():
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, sequence=4, tensor=1))
    rng = np.random.default_rng(6)
    query, key, value = (rng.normal(size=(2, size, N, H)).astype(np.float32) for size in (L + 2, M, M))
    segments = np.pad(QUERY_SEGMENT, ((0, 0), (0, 2))), KEY_SEGMENT
    attend_text = jax.jit(functools.partial(attention.attend, along=("length", "text"), exchange="ring"))
    expected = slow_attend(query, key, value, *segments)
    with jax.set_mesh(mesh):
        found = attend_text(query, key, value, *segments)
        text = attend_text.lower(query, key, value, *segments).compile().as_text()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert "collective-permute" not in text
    assert found.sharding.is_equivalent_to(NamedSharding(mesh, spec(("batch", "length", None, None))), 4)


def test_the_choice_follows_the_lengths_is_logged_and_can_be_overridden(caplog):
    short, long = (jax.ShapeDtypeStruct((1, length, N, H), jnp.float32) for length in (256, 4096))
    with caplog.at_level("INFO"):
        assert attention.choose("auto", short, short, segments=None, ring=False) == "dense"
        assert attention.choose("auto", long, long, segments=None, ring=False) == "blocked"
    assert "attention of 4096 queries to 4096 keys on cpu: blocked" in caplog.text
    assert attention.choose("auto", short, short, segments=None, ring=True) == "dense"
    assert attention.choose("pallas_tpu", short, short, segments=None, ring=True) == "pallas_tpu"
    arrays, segments = inputs(4, rows=2), (QUERY_SEGMENT, KEY_SEGMENT)
    found = jax.jit(functools.partial(attention.attend, backend="blocked"))(*arrays, *segments)
    np.testing.assert_allclose(found, slow_attend(*arrays, *segments), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("backend", "exchange", "said"),
    [
        (
            "flush",
            "gather",
            "'flush' is none of auto, dense, blocked, pallas_tpu, pallas_gpu, splash, cudnn",
        ),
        ("auto", "round", "exchange 'round' is none of gather, ring"),
        (
            "splash",
            "ring",
            "'splash' cannot merge parts of a row: with exchange 'ring' take auto,",
        ),
    ],
)
def test_names_that_are_none_and_pairs_that_cannot_work_are_refused(backend, exchange, said):
    with pytest.raises(UserError) as caught:
        attention.check_backend(backend, exchange)
    assert said in str(caught.value)


def test_cudnn_by_name_says_what_it_lacks():
    query = jax.ShapeDtypeStruct((1, 8, N, H), jnp.bfloat16)
    with pytest.raises(UserError, match="must know how many segments"):
        attention.choose("cudnn", query, query, segments=None, ring=False)
    with pytest.raises(UserError, match="does not work on this machine"):
        attention.choose("cudnn", query, query, segments=2, ring=False)


@pytest.mark.parametrize(("policy", "kept"), [("attention", True), ("dots", True), ("full", False)])
def test_a_policy_of_rematerialisation_keeps_what_attention_gave(policy, kept):
    segment = jnp.ones((1, 512), jnp.int32)

    def block(x):
        return attention.attend(x, x, x, segment, segment, backend="blocked")

    again = jax.checkpoint(block, policy=REMAT_POLICIES[policy], prevent_cse=False)
    _, backward = jax.vjp(lambda x: jnp.sum(again(2 * x)), jnp.ones((1, 512, N, H)))
    logarithms = [x for x in jax.tree.leaves(backward) if getattr(x, "shape", None) == (1, 512, N)]
    assert bool(logarithms) == kept


def copies(counts, rows=2):
    """Returns a key, its value, and arrays in which it stands as often as `counts` says, for each segment."""
    key_NH, value_NH = np.random.default_rng(8).normal(size=(2, N, H)).astype(np.float32)
    ids = np.stack([row_of(row, sum(map(max, zip(*counts, strict=True))) + 1) for row in counts])
    return key_NH, value_NH, [np.broadcast_to(x, (rows, ids.shape[1], N, H)) for x in (key_NH, value_NH)], ids


def log_counts(counts, query_segment):
    table = np.pad(np.array(counts, np.float32), ((0, 0), (1, 0)))
    with np.errstate(divide="ignore"):
        return np.maximum(np.log(np.take_along_axis(table, query_segment, axis=1)), NOTHING).astype(np.float32)


# Segment 2 of the first row has no other key; that of the second sees none of them.
COUNTS = [[2, 5, 1], [7, 0, 3]]


def with_copies(loss, query, key, value, key_NH, value_NH):
    """Returns `loss` of attention to what is there `COUNTS` times."""
    ids = copies(COUNTS)[3]
    many = (jnp.broadcast_to(x, (len(ids), ids.shape[1], N, H)) for x in (key_NH, value_NH))
    key, value = (jnp.concatenate([x, more], axis=1) for x, more in zip((key, value), many, strict=True))
    return loss(attention.attend(query, key, value, QUERY_SEGMENT, np.concatenate([KEY_SEGMENT, ids], axis=1)))


def with_one(loss, query, key, value, key_NH, value_NH, **how):
    log_count_BL = jnp.asarray(log_counts(COUNTS, QUERY_SEGMENT))
    repeated = attention.Repeated(key_NH, value_NH, log_count_BL)
    return loss(attention.attend(query, key, value, QUERY_SEGMENT, KEY_SEGMENT, repeated=repeated, **how))


def sines(mixed):
    return jnp.sum(jnp.sin(mixed)), mixed


def results(function, arrays):
    graded = jax.value_and_grad(functools.partial(function, sines), argnums=range(5), has_aux=True)
    (_, mixed), gradients = jax.jit(graded)(*arrays)
    return mixed, *gradients


@pytest.mark.parametrize("scale", [1.0, 5.0])
@pytest.mark.parametrize("backend", ["dense", "blocked", "splash"])
def test_a_repeated_key_is_as_many_keys(backend, scale):
    """In results and in every gradient; a backend that gives no logarithms of sums leaves it to another."""
    arrays = *inputs(3, rows=2, scale=scale), *copies(COUNTS)[:2]
    expected = results(with_copies, arrays)
    found = results(functools.partial(with_one, backend=backend), arrays)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale)
    mixed, value_NH = np.asarray(found[0]), arrays[4]
    np.testing.assert_array_equal(mixed[QUERY_SEGMENT == 0], 0)
    np.testing.assert_allclose(mixed[0, 5], value_NH, rtol=1e-6)


@pytest.mark.several_devices
@pytest.mark.parametrize("exchange", ["gather", "ring"])
def test_a_repeated_key_on_a_mesh_changes_no_number(exchange):
    arrays = *(np.pad(x, ((0, 0), (0, 2), (0, 0), (0, 0))) for x in inputs(3, rows=2)), *copies(COUNTS)[:2]
    segments = np.pad(QUERY_SEGMENT, ((0, 0), (0, 2))), np.pad(KEY_SEGMENT, ((0, 0), (0, 2)))
    log_count_BL = jnp.asarray(log_counts(COUNTS, segments[0]))

    def function(loss, query, key, value, key_NH, value_NH):
        repeated = attention.Repeated(key_NH, value_NH, log_count_BL)
        key, value = (jnp.pad(x, ((0, 0), (0, 3), (0, 0), (0, 0))) for x in (key, value))
        key_segment = np.pad(segments[1], ((0, 0), (0, 3)))
        return loss(attention.attend(query, key, value, segments[0], key_segment, repeated=repeated, exchange=exchange))

    expected = results(function, arrays)
    with jax.set_mesh(make_mesh(MeshConfig(data=1, fsdp=2, sequence=2, tensor=2))):
        found = results(function, arrays)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def test_tokens_that_are_alone_see_their_group_and_are_seen_by_their_segment():
    segment_L = row_of([6, 5], L)
    group_L = np.zeros(L, np.int32)
    group_L[[3, 4]], group_L[5], group_L[[9, 10]] = 1, 2, 4
    query, key, value = (x[:, :L] for x in (inputs(4)[0], inputs(5)[0], inputs(6)[0]))
    others = np.where(group_L > 0, 0, segment_L)[None]
    expected = slow_attend(query, key, value, others, segment_L[None])
    expected += slow_attend(query, key, value, group_L[None], group_L[None])
    arrays = [jnp.asarray(x) for x in (query, key, value, segment_L[None])]
    alone = attention.Alone(jnp.asarray(group_L[None]), 4)
    for backend in ("dense", "blocked"):
        found = attention.attend_but_alone(*arrays, alone, segments=2, backend=backend)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_further_keys_are_seen_with_the_others_and_cudnn_leaves_them():
    query, key, value = inputs(7, rows=2)
    more = inputs(8, rows=2)[1:]
    further = (*more, KEY_SEGMENT[::-1])
    whole = [np.concatenate(pair, axis=1) for pair in zip((key, value, KEY_SEGMENT), further, strict=True)]
    expected = slow_attend(query, *whole[:2], QUERY_SEGMENT, whole[2])
    arrays = [jnp.asarray(x) for x in (query, key, value, QUERY_SEGMENT, KEY_SEGMENT)]
    found = attention.attend(*arrays, segments=3, backend="cudnn", further=tuple(map(jnp.asarray, further)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.several_devices
@pytest.mark.parametrize("exchange", ["gather", "ring"])
def test_further_keys_on_a_mesh_change_no_number(exchange):
    query, key, value = inputs(7, rows=2)
    key, value = (np.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (key, value))
    key_segment = np.pad(KEY_SEGMENT, ((0, 0), (0, 1)))
    arrays = [jnp.asarray(x) for x in (query, key, value, QUERY_SEGMENT, key_segment)]
    further = (2.0 * arrays[1], -arrays[2], arrays[4][::-1])

    def found():
        return jax.jit(functools.partial(attention.attend, segments=3, exchange=exchange))(*arrays, further=further)

    expected = np.asarray(found())
    with jax.set_mesh(make_mesh(MeshConfig(data=1, fsdp=2, sequence=2, tensor=2))):
        np.testing.assert_allclose(found(), expected, rtol=2e-5, atol=2e-6)
