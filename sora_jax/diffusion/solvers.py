"""Integration of dx / dsigma = velocity(x, sigma) from noise to data.

A token moves by its own change of sigma. So a token whose level stands still keeps its content, bit for bit:
known tokens need no mask, only a constant level (`known.level_table`).

Letters: B rows, L tokens, P patch width, G levels of a row, I steps.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sora_jax.core.errors import UserError
from sora_jax.diffusion import known

Velocity = Callable[[jax.Array, jax.Array], jax.Array]
Spread = Callable[[jax.Array], jax.Array]


def solve(
    velocity: Velocity,
    x: jax.Array,
    sigmas: jax.Array,
    *,
    method: str = "euler",
    level_BL: jax.Array | None = None,
) -> jax.Array:
    """Returns x (..., P) carried along `sigmas` (I + 1, ...) from sigmas[0], the level of `x`, to sigmas[-1].

    velocity(x, sigma) receives one entry of `sigmas` as it is and returns the velocity, shaped as x. An entry
    broadcasts to the leading axes of x (a scalar, or (B, L)); with `level_BL` it is a table levels_BG instead
    and a token's level is column level_BL of it. Raises UserError on an unknown method.
    """
    if method not in METHODS:
        raise UserError(f"solver {method!r} is not one of: {', '.join(METHODS)}")
    assert len(sigmas) >= 2, sigmas.shape

    def spread(sigma: jax.Array) -> jax.Array:
        return (sigma if level_BL is None else known.token_level(sigma, level_BL))[..., None]

    return METHODS[method](velocity, x.astype(jnp.float32), sigmas, spread)


def _euler(velocity: Velocity, x: jax.Array, sigmas: jax.Array, spread: Spread) -> jax.Array:
    """First order, one evaluation per step."""

    def step(x, levels):
        here, there = levels
        return x + spread(there - here) * velocity(x, here), None

    return jax.lax.scan(step, x, (sigmas[:-1], sigmas[1:]))[0]


def _heun(velocity: Velocity, x: jax.Array, sigmas: jax.Array, spread: Spread) -> jax.Array:
    """Second order, two evaluations per step (arXiv 2206.00364, algorithm 1), one in the last step.

    The last step is Euler's because it ends at sigma = 0, where a network has no velocity to learn. One such
    step leaves the order at two.
    """

    def step(x, levels):
        here, there = levels
        change, slope = spread(there - here), velocity(x, here)
        corrected = velocity(x + change * slope, there)
        return x + change * (slope + corrected) / 2, None

    x, _ = jax.lax.scan(step, x, (sigmas[:-2], sigmas[1:-1]))
    return _euler(velocity, x, sigmas[-2:], spread)


METHODS: dict[str, Callable[[Velocity, jax.Array, jax.Array, Spread], jax.Array]] = {
    "euler": _euler,
    "heun": _heun,
}
