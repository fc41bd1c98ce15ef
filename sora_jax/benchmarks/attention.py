"""Seconds and FLOP/s of attention over a packed row, by way of computing it and by number of segments.

  python -m sora_jax.benchmarks.attention --json=attention.json
  python -m sora_jax.benchmarks.attention --tokens=8192 --segments=16
  python -m sora_jax.benchmarks.attention --visits

One row of L tokens is cut into segments of uneven length. Compared are the backends of `nn.attention` that run on this
platform; `plain`, which is `jax.nn.dot_product_attention` with a mask; and `torch`, its `scaled_dot_product_attention`
on one segment after the other, without any mask. FLOPs are the mathematics' alone: 4 H for each pair of tokens of a
segment and head forwards, twice that backwards.

Letters: B = 1 row, L tokens, N heads, H head width.
"""

import functools
import importlib.util
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.benchmarks.ceilings import ceiling_figures
from sora_jax.benchmarks.figures import Figure, publish
from sora_jax.benchmarks.peers import peer
from sora_jax.benchmarks.turns import CLOCKS, fewest_seconds
from sora_jax.benchmarks.visits import visit_figures
from sora_jax.core import rng
from sora_jax.core.commands import Flags, run_command
from sora_jax.core.errors import UserError
from sora_jax.core.host_memory import use_huge_pages
from sora_jax.core.precision import compute_dtype
from sora_jax.nn.attention import attend
from sora_jax.nn.kernels import cudnn, pallas_gpu

_FLAGS = Flags()
_JSON = _FLAGS.figures()
_CLOCK = _FLAGS.choice(
    "clock", "wall", CLOCKS, "`process` counts this process's seconds on a CPU that others use, too."
)
_VISITS = _FLAGS.switch(
    "visits", False, "Count instead the blocks that the TPU kernel visits in 8 segments of 2,048; takes two minutes."
)
_TOKENS = _FLAGS.integer("tokens", None, "L; by default 2,048 on a CPU, else 32,768.", least=1)
_SEGMENTS = _FLAGS.integers("segments", [1, 4, 16, 64], "Of the row; may be repeated.", least=1)
_HEADS = _FLAGS.integer("heads", None, "N; by default 4 on a CPU, else 16.", least=1)
_HEAD_WIDTH = _FLAGS.integer("head_width", None, "H; by default 64 on a CPU, else 128.", least=1)
_ROUNDS = _FLAGS.integer("rounds", 5, "Turns of each contestant; the fastest counts.", least=1)

# Backends that each platform can run; "dense", as `plain`, where all scores take no more than this many bytes.
_BACKENDS = {
    "cpu": ("dense", "blocked"),
    "gpu": ("dense", "blocked", "pallas_gpu", "cudnn"),
    "tpu": ("dense", "blocked", "splash", "pallas_tpu"),
}
_SCORE_BYTES = 8e9

# Takes and returns arrays of one framework: query, key, value (1, L, N, H).
AttentionCall = Callable[[Any, Any, Any], Any]


def main(_: Sequence[str]) -> None:
    """Measures and publishes."""
    if _VISITS.value:
        publish(visit_figures([2048] * 8, block=512), _JSON.value)
        return
    on_cpu = jax.default_backend() == "cpu"
    tokens = _TOKENS.value or (2_048 if on_cpu else 32_768)
    shape = (1, tokens, _HEADS.value or (4 if on_cpu else 16), _HEAD_WIDTH.value or (64 if on_cpu else 128))
    with_torch = jax.default_backend() in ("cpu", "gpu") and importlib.util.find_spec("torch") is not None
    if not with_torch:
        print('torch is not compared: it needs a CPU or a GPU, and pip install -e ".[parity]"')
    print(f"{shape[1]:,} tokens, {shape[2]} heads of {shape[3]}, {compute_dtype(None)}, {jax.devices()[0].device_kind}")
    figures = [] if on_cpu else ceiling_figures()
    for segments in _SEGMENTS.value:
        lengths = cut(tokens, segments)
        figures += attention_figures(shape, lengths, rounds=_ROUNDS.value, with_torch=with_torch, clock=_CLOCK.value)
    publish(figures, _JSON.value)


def cut(tokens: int, segments: int) -> list[int]:
    """Returns the lengths of `segments` uneven parts of a row, each at least 1; always the same."""
    if segments > tokens:
        raise UserError(f"{tokens} tokens cannot be cut into {segments} segments: --segments={tokens} or fewer")
    generator = rng.generator(0, "segments of a row", segments)
    ends = np.sort(generator.choice(np.arange(1, tokens), segments - 1, replace=False))
    return np.diff([0, *ends.tolist(), tokens]).tolist()


def attention_figures(
    shape: tuple[int, int, int, int], lengths: Sequence[int], *, rounds: int, with_torch: bool, clock: str = "wall"
) -> list[Figure]:
    """Returns seconds and FLOP/s of every way, forward and forward with backward, over segments of these lengths."""
    row_BLNH = [rng.generator(0, name).standard_normal(shape, np.float32) for name in ("query", "key", "value")]
    calls: dict[str, Callable[[], object]] = {}
    for name, attention in ours(shape, lengths).items():
        calls |= jax_calls(name, attention, row_BLNH)
    if with_torch:
        calls |= torch_calls(row_BLNH, lengths)
    for call in calls.values():
        call()  # compiles
    seconds = fewest_seconds(calls, rounds=rounds, clock=clock)
    pairs = sum(length**2 for length in lengths)
    forward = 4 * shape[2] * shape[3] * pairs
    figures = []
    for name in calls:
        flops = (3 if name.endswith("both") else 1) * forward
        figures += [
            Figure(name=f"{name}_{len(lengths)}_ms", value=1e3 * seconds[name], target=None, meaning="milliseconds"),
            Figure(
                name=f"{name}_{len(lengths)}_gflops",
                value=flops / seconds[name] / 1e9,
                target=None,
                meaning="model FLOPs, 1e9 a second",
            ),
        ]
    return figures


def ours(shape: tuple[int, int, int, int], lengths: Sequence[int]) -> dict[str, AttentionCall]:
    """Returns the plain way, and the backends' that run here, for one row of segments of these lengths."""
    segment_BL = jnp.asarray(np.repeat(np.arange(1, len(lengths) + 1), lengths)[None], jnp.int32)
    assert segment_BL.shape == shape[:2], (segment_BL.shape, shape)

    def plain(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        seen = segment_BL[:, None, :, None] == segment_BL[:, None, None, :]
        return jax.nn.dot_product_attention(query, key, value, mask=seen)

    def through(backend: str, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return attend(query, key, value, segment_BL, segment_BL, segments=len(lengths), backend=backend)

    ways = {"plain": plain} | {name: functools.partial(through, name) for name in _BACKENDS[jax.default_backend()]}
    return {name: way for name, way in ways.items() if _runs(name, shape)}


def _runs(name: str, shape: tuple[int, int, int, int]) -> bool:
    query: Any = jax.ShapeDtypeStruct(shape, compute_dtype(None))
    if name in ("plain", "dense"):
        return 4 * shape[2] * shape[1] ** 2 <= _SCORE_BYTES
    if name == "cudnn":
        return cudnn.takes(query) and cudnn.works()
    return name != "pallas_gpu" or pallas_gpu.takes(query)


def jax_calls(name: str, attention: AttentionCall, row_BLNH: Sequence[np.ndarray]) -> dict[str, Callable[[], object]]:
    """Returns calls that run `attention`, and its gradient, to the end."""
    arrays = [jnp.asarray(x, compute_dtype(None)) for x in row_BLNH]
    forward = jax.jit(attention)

    @jax.jit
    def both(*arrays: jax.Array) -> tuple[jax.Array, Any]:
        mixed, pull = jax.vjp(attention, *arrays)
        # Any cotangent costs the same; one that is not constant cannot be folded away.
        return mixed, pull(mixed)

    def run(call: Callable[..., Any]) -> None:
        jax.block_until_ready(call(*arrays))

    return {f"{name}_forward": functools.partial(run, forward), f"{name}_both": functools.partial(run, both)}


def torch_calls(row_BLNH: Sequence[np.ndarray], lengths: Sequence[int]) -> dict[str, Callable[[], object]]:
    """Returns calls that run torch's attention, and its gradient, on one segment after the other."""
    torch = peer("torch")
    on_cpu = jax.default_backend() == "cpu"
    device, dtype = ("cpu", torch.float32) if on_cpu else ("cuda", torch.bfloat16)
    ends = np.cumsum([0, *lengths]).tolist()

    def segments(x_BLNH: np.ndarray) -> list[Any]:
        x_BNLH = torch.from_numpy(x_BLNH.swapaxes(1, 2).copy()).to(device, dtype)
        parts = [x_BNLH[:, :, start:end].contiguous() for start, end in itertools.pairwise(ends)]
        return [part.requires_grad_() for part in parts]

    row = list(zip(*map(segments, row_BLNH), strict=True))

    def finish() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def forward() -> None:
        with torch.no_grad():
            for query, key, value in row:
                torch.nn.functional.scaled_dot_product_attention(query, key, value)
        finish()

    def both() -> None:
        for arrays in row:
            mixed = torch.nn.functional.scaled_dot_product_attention(*arrays)
            torch.autograd.grad(mixed, arrays, mixed.detach())
        finish()

    return {"torch_forward": forward, "torch_both": both}


if __name__ == "__main__":
    use_huge_pages()
    run_command(main, _FLAGS)
