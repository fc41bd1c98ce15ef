"""The one door to attention over packed rows: each query sees the keys of its own segment, if causal none behind it.

Behind it are several ways to the same numbers (`BACKENDS`); which one is taken depends on the platform and the lengths,
is said in the log, and can be overridden. On a mesh each device attends for its rows, heads and queries; keys that are
spread over the mesh axis `sequence` are gathered, or passed around in a ring.

Letters: B rows, L queries, M keys, N heads, H head width, S segments.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from sora_jax.core.errors import UserError
from sora_jax.core.mesh import current_platform
from sora_jax.core.sharding import RULES, spec, ways
from sora_jax.nn.flash import NOTHING, Kernel, KeyPart, flash, flash_with_logsum, merge
from sora_jax.nn.kernels import cudnn, pallas_gpu, pallas_tpu
from sora_jax.nn.kernels.blocked import Blocks, blocked
from sora_jax.nn.kernels.dense import dense
from sora_jax.nn.kernels.seen import causal_ids, segment_of
from sora_jax.nn.kernels.splash import attend_splash

BACKENDS = {
    "dense": "all scores at once, under a mask: for short rows",
    "blocked": "plain XLA, block by block, blocks of other segments skipped: anywhere",
    "pallas_tpu": "TPU kernel, blocks of other segments skipped",
    "pallas_gpu": "GPU kernel of any maker, blocks of other segments skipped",
    "splash": "JAX's TPU kernel, blocks of other segments computed and masked",
    "cudnn": "GPU (Hopper and later), segment by segment",
}
# How keys that are spread over devices come to the queries.
EXCHANGES = ("gather", "ring")
# Scores of a row and head up to which holding all of them is fastest: less on CPU, where they leave its caches.
_FEW_SCORES = {"cpu": 256 * 256, "gpu": 1024 * 1024, "tpu": 1024 * 1024}


def _blocked(queries: int, keys: int, causal: bool) -> Kernel:
    """Returns blocks of plain XLA. On CPU small ones multiply hardly slower; few keys are those of short texts."""
    if current_platform() != "cpu":
        return blocked(Blocks(causal=causal))
    return blocked(Blocks(queries=128, keys=64 if keys >= queries else 32, causal=causal))


# Backends whose results over parts of a row can be merged: kernels for numbers of queries and of keys, causal or not.
_KERNELS: dict[str, Callable[[int, int, bool], Kernel]] = {
    "dense": lambda _, __, causal: dense(causal=causal),
    "blocked": _blocked,
    "pallas_tpu": lambda _, __, causal: pallas_tpu.pallas_tpu(pallas_tpu.Blocks(causal=causal)),
    "pallas_gpu": lambda _, __, causal: pallas_gpu.pallas_gpu(pallas_gpu.Blocks(causal=causal)),
}


class Repeated(NamedTuple):
    """One more key of every segment, which counts as often as the segment has it."""

    key_NH: jax.Array
    value_NH: jax.Array
    log_count_BL: jax.Array  # float32 logarithm of how often each query sees it, or `NOTHING`; added to its score


class Alone(NamedTuple):
    """Tokens that see those of their own group alone, and are seen by the others of their segment all the same."""

    id_BL: jax.Array  # int32 group, 1...`groups`; 0 for a token that sees its whole segment, and for padding
    groups: int

    def marked(self, segment_BL: jax.Array, mark: int) -> jax.Array:
        """Returns the segments with `mark` in the place of those of these tokens."""
        return jnp.where(self.id_BL > 0, mark, segment_BL)


def attend(
    query_BLNH: jax.Array,
    key_BMNH: jax.Array,
    value_BMNH: jax.Array,
    query_segment_BL: jax.Array,
    key_segment_BM: jax.Array,
    *,
    segments: int | None = None,
    causal: bool = False,
    along: tuple[str, str] = ("length", "length"),
    backend: str = "auto",
    exchange: str = "gather",
    repeated: Repeated | None = None,
    further: KeyPart | None = None,
) -> jax.Array:
    """Returns softmax(q k / sqrt(H)) v within segments, (B, L, N, H) in the dtype of the queries.

    Segment 0 is padding: such queries give zeros, such keys are never seen. A query whose segment has no key gives
    zeros too, but for what is `repeated`. Scores and softmax are float32.

    Args:
      query_BLNH: Queries.
      key_BMNH: Keys.
      value_BMNH: Values.
      query_segment_BL: int32 segment of each query.
      key_segment_BM: int32 segment of each key.
      segments: S, the largest id that can occur, of segments in one piece each; None if unknown, which rules out cuDNN.
      causal: Whether a query sees no key behind it in the row. Queries and keys are then of the same L tokens. Where
        these are spread over devices, "splash" and "cudnn", which do not know their places, leave it to "auto".
      along: Logical axes (`core.sharding.RULES`) of L and M.
      backend: One of `BACKENDS`, or "auto".
      exchange: One of `EXCHANGES`, for keys that are spread over several devices.
      repeated: A key that is seen besides. Backends whose results cannot be merged leave it to "auto".
      further: More keys, with their values and segments, along the same axis as the others; not with `causal`. They
        too are left to "auto" by backends whose results cannot be merged.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if causal:
        if query_BLNH.shape[1] != key_BMNH.shape[1]:
            raise ValueError(f"causal attention of {query_BLNH.shape[1]} queries to {key_BMNH.shape[1]} keys")
        # Made of whole rows, before any is spread.
        query_segment_BL, key_segment_BM = causal_ids(query_segment_BL), causal_ids(key_segment_BM)
    attend_here = functools.partial(_attend_here, segments=segments, causal=causal, backend=backend)
    arrays = query_BLNH, key_BMNH, value_BMNH, query_segment_BL, key_segment_BM
    if mesh.empty or mesh.size == 1:
        return attend_here(*arrays, repeated, further, ring=None, spread=False)
    return _attend_over(mesh, attend_here, arrays, repeated, further, along=along, exchange=exchange)


def attend_but_alone(
    query_BLNH: jax.Array,
    key_BLNH: jax.Array,
    value_BLNH: jax.Array,
    segment_BL: jax.Array,
    alone: Alone,
    *,
    segments: int | None,
    along: tuple[str, str] = ("length", "length"),
    backend: str = "auto",
    exchange: str = "gather",
) -> jax.Array:
    """Returns what `attend` does for queries and keys of the same tokens, of which some see their group alone."""
    options = {"along": along, "backend": backend, "exchange": exchange}
    call = functools.partial(attend, query_BLNH, key_BLNH, value_BLNH, **options)
    # Each query is of one of the two calls, and padding of the other, which gives zeros: exact for every backend.
    seeing = call(alone.marked(segment_BL, 0), segment_BL, segments=segments)
    return seeing + call(alone.id_BL, alone.id_BL, segments=alone.groups)


def _attend_over(
    mesh: AbstractMesh,
    attend_here: Callable[..., jax.Array],
    arrays: tuple[jax.Array, ...],
    repeated: Repeated | None,
    further: KeyPart | None,
    *,
    along: tuple[str, str],
    exchange: str,
) -> jax.Array:
    """Returns what `attend` does, where each device of a mesh has a part of the arrays, in the order of `attend`."""
    spread = _axis_of_several(along[1], mesh)
    # Heads of small models may not divide, nor do single clips; each device then has all of them.
    heads = "heads" if arrays[0].shape[2] % ways("heads", mesh) == 0 else None
    batch = "batch" if arrays[0].shape[0] % ways("batch", mesh) == 0 else None
    query, key = (spec((batch, name, heads, None)) for name in along)
    one = spec((heads, None))
    part = key, key, P(*key[:2])
    # Of what is not there a spec is none either.
    more = (one, one, P(*query[:2])) if repeated is not None else None, part if further is not None else None

    def on_device(*given: Any) -> jax.Array:
        query, key, value, query_segment, key_segment, once_more, further = given
        if spread and exchange == "gather":
            gather = functools.partial(jax.lax.all_gather, axis_name=spread, axis=1, tiled=True)
            (key, value, key_segment), further = jax.tree.map(gather, ((key, value, key_segment), further))
        ring = spread if exchange == "ring" else None
        repeated = None if once_more is None else Repeated(*once_more)
        arrays = query, key, value, query_segment, key_segment
        return attend_here(*arrays, repeated, further, ring=ring, spread=bool(spread))

    return jax.shard_map(
        on_device, in_specs=(query, *part[:2], P(*query[:2]), part[2], *more), out_specs=query, check_vma=False
    )(*arrays, None if repeated is None else tuple(repeated), further)


def _axis_of_several(name: str, mesh: AbstractMesh) -> str | None:
    """Returns the mesh axis over whose devices a logical axis is spread; None where they are not several."""
    axis = RULES[name]
    return axis if isinstance(axis, str) and mesh.shape[axis] > 1 else None


def _attend_here(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_segment: jax.Array,
    key_segment: jax.Array,
    repeated: Repeated | None,
    further: KeyPart | None,
    *,
    segments: int | None,
    causal: bool,
    backend: str,
    ring: str | None,
    spread: bool,
) -> jax.Array:
    """Returns attention of what one device has, and of what comes around the `ring`, a mesh axis.

    `spread` are keys that came from several devices. With `causal` segments are those of `causal_ids`.
    """
    if causal and spread:
        backend, segments = backend if backend in _KERNELS else "auto", None
    if repeated is not None or further is not None:
        parts = [(key, value, key_segment), *([] if further is None else [further])]
        backend = backend if backend in _KERNELS else "auto"
        return _merged(query, query_segment, parts, repeated, causal=causal, backend=backend, ring=ring)
    backend = choose(backend, query, key, segments=segments, ring=ring is not None, causal=causal)
    arrays = query, key, value, query_segment, key_segment
    if backend in _KERNELS:
        return flash(_KERNELS[backend](query.shape[1], key.shape[1], causal), ring, *arrays)
    whole = *arrays[:3], *(segment_of(ids, causal=causal) for ids in arrays[3:])
    if backend == "splash":
        return attend_splash(*whole, causal=causal)
    assert segments is not None
    return cudnn.attend_cudnn(*whole, segments=segments, causal=causal)


def _merged(
    query: jax.Array,
    query_segment: jax.Array,
    parts: list[KeyPart],
    repeated: Repeated | None,
    *,
    causal: bool,
    backend: str,
    ring: str | None,
) -> jax.Array:
    """Returns attention over keys in several parts, and over one that is repeated, each part in its own order."""
    results = []
    for key, value, key_segment in parts:
        chosen = choose(backend, query, key, segments=None, ring=ring is not None, causal=causal)
        kernel = _KERNELS[chosen](query.shape[1], key.shape[1], causal)
        found: Any = flash_with_logsum(kernel, ring, query, key, value, query_segment, key_segment)
        results.append(found)
    mixed, logsum = results[0]
    for more in results[1:]:
        mixed, logsum = merge(mixed.astype(jnp.float32), logsum, *more)
    return mixed.astype(query.dtype) if repeated is None else _with_repeated(query, mixed, logsum, repeated)


def _with_repeated(query: jax.Array, mixed: jax.Array, logsum_BLN: jax.Array, repeated: Repeated) -> jax.Array:
    """Returns the attention over the keys that gave `mixed` and `logsum_BLN` and over the repeated one."""
    key_NH, value_NH = (x.astype(jnp.float32) for x in (repeated.key_NH, repeated.value_NH))
    scaled = query.astype(jnp.float32) / math.sqrt(query.shape[-1])
    # Not left to a matrix unit, whose default on TPU is to round to bfloat16.
    score_BLN = jnp.sum(scaled * key_NH, axis=-1) + repeated.log_count_BL[..., None]
    seen_BL = repeated.log_count_BL > NOTHING / 2  # it may come from a product, so not exactly
    value = jnp.where(seen_BL[..., None, None], value_NH, 0.0)
    return merge(mixed.astype(jnp.float32), logsum_BLN, value, score_BLN)[0].astype(query.dtype)


def choose(
    backend: str, query_BLNH: Any, key_BMNH: Any, *, segments: int | None, ring: bool, causal: bool = False
) -> str:
    """Returns the backend for queries and keys of one device: `backend`, or with "auto" the best that there is.

    Raises UserError for a name that is none, and one that cannot do what is asked.
    """
    if backend != "auto":
        _check(backend, segments=segments, ring=ring, causal=causal)
        return backend
    platform = current_platform()
    few = query_BLNH.shape[1] * key_BMNH.shape[1] <= _FEW_SCORES[platform]
    if few:
        return "dense"
    if platform == "tpu":
        found = "pallas_tpu"
    elif platform == "gpu" and not ring and segments is not None and _cudnn_takes(query_BLNH, causal=causal):
        found = "cudnn"
    elif platform == "gpu" and pallas_gpu.takes(query_BLNH):
        found = "pallas_gpu"
    else:
        found = "blocked"
    _announce(found, platform, query_BLNH.shape[1], key_BMNH.shape[1])
    return found


def _cudnn_takes(query_BLNH: Any, *, causal: bool) -> bool:
    return cudnn.takes(query_BLNH) and cudnn.works(causal=causal)


def check_backend(backend: str, exchange: str) -> None:
    """Raises UserError for names that are none, and a backend that cannot work in a ring."""
    if backend not in ("auto", *BACKENDS):
        raise UserError(f"attention backend {backend!r} is none of auto, {', '.join(BACKENDS)}")
    if exchange not in EXCHANGES:
        raise UserError(f"exchange {exchange!r} is none of {', '.join(EXCHANGES)}")
    if exchange == "ring" and backend not in ("auto", *_KERNELS):
        raise UserError(
            f"attention backend {backend!r} cannot merge parts of a row: with exchange 'ring' take auto, "
            f"{', '.join(_KERNELS)}"
        )


def _check(backend: str, *, segments: int | None, ring: bool, causal: bool) -> None:
    check_backend(backend, "ring" if ring else "gather")
    if backend == "cudnn" and segments is None:
        raise UserError("attention backend 'cudnn' must know how many segments a row has: pass `segments`")
    if backend == "cudnn" and not cudnn.works(causal=causal):
        raise UserError("attention backend 'cudnn' does not work on this machine (see the log): take auto")


@functools.cache
def _announce(backend: str, platform: str, queries: int, keys: int) -> None:
    logging.info("attention of %d queries to %d keys on %s: %s", queries, keys, platform, backend)
