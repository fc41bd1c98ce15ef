"""What a device can do at most: a large matrix product and a large copy, beside which other figures are read."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sora_jax.benchmarks.figures import Figure
from sora_jax.benchmarks.turns import fewest_seconds
from sora_jax.core import rng
from sora_jax.core.precision import compute_dtype

# Of an accelerator; a CPU is given a sixteenth of the side.
_SIDE = 8_192
_CALLS, _ROUNDS = 10, 5


def ceiling_figures() -> list[Figure]:
    """Returns FLOP/s of a product of random square matrices and bytes/s, read and written, of a copy, on one device."""
    side = _SIDE // 16 if jax.default_backend() == "cpu" else _SIDE
    dtype = compute_dtype(None)
    a, b = (jax.random.normal(rng.key(0, name), (side, side), dtype) for name in "ab")
    large = jax.random.normal(rng.key(0, "copied"), (16 * side, side), dtype)
    calls = {
        "product": _together(jax.jit(jnp.matmul), a, b),
        "copy": _together(jax.jit(lambda x: x + jnp.ones((), x.dtype)), large),
    }
    seconds = {name: took / _CALLS for name, took in fewest_seconds(calls, rounds=_ROUNDS).items()}
    return [
        Figure(
            name="product_gflops",
            value=2 * side**3 / seconds["product"] / 1e9,
            target=None,
            meaning=f"of a product {side}^3 in {dtype}, 1e9 a second",
        ),
        Figure(
            name="copy_gbytes",
            value=2 * large.nbytes / seconds["copy"] / 1e9,
            target=None,
            meaning=f"read and written by x + 1 over {large.nbytes / 1e6:.0f} MB, 1e9 a second",
        ),
    ]


def _together(function: Callable[..., jax.Array], *arrays: jax.Array) -> Callable[[], object]:
    """Returns a call that runs `function` several times, of which all are under way together."""
    jax.block_until_ready(function(*arrays))
    return lambda: jax.block_until_ready([function(*arrays) for _ in range(_CALLS)][-1])
