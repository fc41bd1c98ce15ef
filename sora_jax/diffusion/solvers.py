"""Integration of dx / dsigma = velocity(x, sigma) from noise to data.

A token moves by its own change of sigma. So a token whose level stands still keeps its content, bit for bit:
known tokens need no mask, only a constant level (`known.level_table`).

Letters: B rows, L tokens, P patch width, G levels of a row, I steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sora_jax.core.errors import UserError
from sora_jax.diffusion import known

Velocity = Callable[[jax.Array, jax.Array], jax.Array]
# (x, sigma, what the last evaluation left) -> (velocity, what this one leaves)
Remembering = Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]]
Spread = Callable[[jax.Array], jax.Array]
# (number of a step, noise that its prediction sees in x) -> the noise of the next level
Renew = Callable[[jax.Array, jax.Array], jax.Array]


class _Course(NamedTuple):
    """The way that a method goes, or a part of it."""

    sigmas: jax.Array  # (I + 1, ...)
    before: jax.Array  # (I, ...), for each evaluation the level of the one before it, its own where there is none
    older: jax.Array  # (I, ...), that of the evaluation before
    numbers: jax.Array  # (I,) of the steps, from 0 on
    spread: Spread  # an entry of these over the values of `x`
    renew: Renew | None  # of the methods, for the stochastic one alone
    past: tuple[jax.Array, ...]  # what the method looked back to at the end of the part before; none at the start


# What is known between two parts of a way: x, the memory of the velocity, and what the method looks back to.
Carry = tuple[Any, ...]


def solve(
    velocity: Velocity,
    x: jax.Array,
    sigmas: jax.Array,
    *,
    method: str = "euler",
    level_BL: jax.Array | None = None,
    renew: Renew | None = None,
) -> jax.Array:
    """Returns x (..., P) carried along `sigmas` (I + 1, ...) from sigmas[0], the level of `x`, to sigmas[-1].

    velocity(x, sigma) receives one entry of `sigmas` as it is and returns the velocity, shaped as x. An entry
    broadcasts to the leading axes of x (a scalar, or (B, L)); with `level_BL` it is a table levels_BG instead
    and a token's level is column level_BL of it. Raises UserError on an unknown method.
    """

    def forgetful(x: jax.Array, sigma: jax.Array, memory: Any) -> tuple[jax.Array, Any]:
        return velocity(x, sigma), memory

    return solve_remembering(forgetful, x, sigmas, (), method=method, level_BL=level_BL, renew=renew)


def solve_remembering(
    velocity: Remembering,
    x: jax.Array,
    sigmas: jax.Array,
    memory: Any,
    *,
    method: str,
    level_BL: jax.Array | None = None,
    piece: Callable[[jax.Array], jax.Array] | None = None,
    renew: Renew | None = None,
) -> jax.Array:
    """Returns what `solve` does, for a velocity that hands `memory` on from evaluation to evaluation.

    renew(number, noise) says which noise follows in step `number`, from 0 on, for a method that draws some.
    piece(sigmas) (I, ...) numbers the pieces of the way in which the velocity is smooth in sigma; None: it is one. What
    was seen in one piece is not extrapolated into the next: there a method that looks back begins anew.
    """
    return walk(velocity, (x, memory), sigmas, method=method, level_BL=level_BL, piece=piece, renew=renew)[0]


def walk(
    velocity: Remembering,
    carry: Carry,
    sigmas: jax.Array,
    *,
    method: str,
    level_BL: jax.Array | None = None,
    piece: Callable[[jax.Array], jax.Array] | None = None,
    renew: Renew | None = None,
    steps: tuple[int, int] | None = None,
) -> Carry:
    """Returns what is known after the steps from one number up to another, not included, along all `sigmas`.

    The first carry is (x, memory); x is the first entry of every one. Parts that follow one another, each with the
    carry of the one before, are the whole way: what looks back does so over their border. None: the whole way at once.
    The other arguments are those of `solve_remembering`.
    """
    if method not in METHODS:
        raise UserError(f"solver {method!r} is not one of: {', '.join(METHODS)}")
    assert len(sigmas) >= 2, sigmas.shape

    def spread(sigma: jax.Array) -> jax.Array:
        return (sigma if level_BL is None else known.token_level(sigma, level_BL))[..., None]

    x, memory, *past = carry
    first, end = (0, len(sigmas) - 1) if steps is None else steps
    before = _before(sigmas[:-1], piece)
    older = jnp.concatenate([before[:1], before[:-1]])
    course = _Course(
        sigmas=sigmas[first : end + 1],
        before=before[first:end],
        older=older[first:end],
        numbers=jnp.arange(first, end),
        spread=spread,
        renew=renew,
        past=tuple(past),
    )
    return METHODS[method](velocity, x.astype(jnp.float32), memory, course)


def _euler(velocity: Remembering, x: jax.Array, memory: Any, course: _Course) -> tuple[jax.Array, Any]:
    """First order, one evaluation per step."""

    def step(carry, levels):
        x, memory = carry
        here, there = levels
        slope, memory = velocity(x, here, memory)
        return (x + course.spread(there - here) * slope, memory), None

    return jax.lax.scan(step, (x, memory), (course.sigmas[:-1], course.sigmas[1:]))[0]


def _heun(velocity: Remembering, x: jax.Array, memory: Any, course: _Course) -> tuple[jax.Array, Any]:
    """Second order, two evaluations per step (arXiv 2206.00364, algorithm 1), one in the last step.

    The last step is Euler's because it ends at sigma = 0, where a network has no velocity to learn, and so is the last
    one of each piece of the way, which ends where another velocity begins. Such steps leave the order at two.
    """

    def step(carry, levels):
        x, memory = carry
        here, there, before = levels
        change = course.spread(there - here)
        slope, memory = velocity(x, here, memory)
        corrected, memory = velocity(x + change * slope, there, memory)
        share = course.spread(jnp.where(before > there, 0.5, 0.0))
        return (x + change * (slope + share * (corrected - slope)), memory), None

    carry, _ = jax.lax.scan(step, (x, memory), (course.sigmas[:-2], course.sigmas[1:-1], course.before[1:]))
    return _euler(velocity, *carry, course._replace(sigmas=course.sigmas[-2:]))


def _dpm(velocity: Remembering, x: jax.Array, memory: Any, course: _Course) -> Carry:
    """DPM-Solver++(2M), second order, one evaluation per step (arXiv 2211.01095, algorithm 2)."""

    def step(carry, levels):
        x, last, memory = carry
        before, here, there = levels
        slope, memory = velocity(x, here, memory)
        clean = x - course.spread(here) * slope
        return (_towards(x, clean, last, (before, here, there), course.spread), clean, memory), None

    levels = course.before, course.sigmas[:-1], course.sigmas[1:]
    x, *past, memory = jax.lax.scan(step, (x, *(course.past or (x,)), memory), levels)[0]
    return x, memory, *past


def _unipc(velocity: Remembering, x: jax.Array, memory: Any, course: _Course) -> Carry:
    """UniPC of second order with B(h) = exp(h) - 1, one evaluation per step (arXiv 2302.04867, algorithms 1 and 2).

    It steps as DPM-Solver++(2M) does; the evaluation where a step arrives first corrects that step.
    """
    spread = course.spread

    def step(carry, levels):
        x, start, last, older, memory = carry
        before2, before, here, there = levels
        slope, memory = velocity(x, here, memory)
        clean = x - spread(here) * slope
        of_older, of_new = (spread(weight) for weight in _correction(before2, before, here))
        gone = spread(_share(before, here))
        corrected = start + gone * (last - start + of_older * (older - last) + of_new * (clean - last))
        x = jnp.where(gone > 0, corrected, x)
        return (_towards(x, clean, last, (before, here, there), spread), x, clean, last, memory), None

    levels = course.older, course.before, course.sigmas[:-1], course.sigmas[1:]
    x, *past, memory = jax.lax.scan(step, (x, *(course.past or (x, x, x)), memory), levels)[0]
    return x, memory, *past


def _stochastic(velocity: Remembering, x: jax.Array, memory: Any, course: _Course) -> tuple[jax.Array, Any]:
    """To the clean prediction and back to the next level with fresh noise (as in consistency models, arXiv 2303.01469).

    What earlier steps got wrong is covered by new noise and seen anew, which helps networks that err (arXiv 2206.00364,
    section 4). A clean prediction is a mean of what may be: tens of steps draw it towards what is likely, and hundreds
    towards one mean, unlike the other methods, which go to the distribution itself. One evaluation per step.
    """
    renew = course.renew
    assert renew is not None, "a stochastic step draws noise"

    def step(carry, levels):
        x, memory = carry
        number, here, there = levels
        slope, memory = velocity(x, here, memory)
        here, there = course.spread(here), course.spread(there)
        clean, noise = x - here * slope, x + (1 - here) * slope
        return (jnp.where(here > there, (1 - there) * clean + there * renew(number, noise), x), memory), None

    return jax.lax.scan(step, (x, memory), (course.numbers, course.sigmas[:-1], course.sigmas[1:]))[0]


def _towards(
    x: jax.Array, clean: jax.Array, last: jax.Array, levels: tuple[jax.Array, ...], spread: Spread
) -> jax.Array:
    """Returns `x` at the third of the `levels` (before, here, there) from its clean predictions here and before.

    On our path the first order is Euler's step. The second order extrapolates the clean prediction by how it has
    changed; it is left out where there is no step before, and in the last step, which is infinitely long in `_length`,
    as is the one from sigma = 1, after which nothing is left of the extrapolation.
    """
    before, here, there = levels
    second = (before > here) & (here > there) & (there > 0)
    bend = jnp.where(second, _length(here, there) / (2 * _length(before, here)), 0.0)
    return x + spread(_share(here, there)) * (clean - x + spread(bend) * (clean - last))


def _share(here: jax.Array, there: jax.Array) -> jax.Array:
    """Returns which share of the way to the clean prediction a step goes; 0 where levels stand still."""
    return jnp.where(here > there, 1 - there / here, 0.0)


def _correction(before2: jax.Array, before: jax.Array, here: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the weights of the older and of the new change of the clean prediction in a corrected step."""
    h = _length(before, here)
    phi = -jnp.expm1(-h)
    first = 1 / phi - 1 / h
    second = 2 * (0.5 - 1 / h + phi / h**2) / phi
    ratio = _length(before2, before) / h
    of_ratio = (first - second) / (1 + ratio)
    has_older = before2 > before
    return jnp.where(has_older, -of_ratio / ratio, 0.0), jnp.where(has_older, first - of_ratio, 0.5)


def _length(here: jax.Array, there: jax.Array) -> jax.Array:
    """Returns the length of a step in log((1 - sigma) / sigma), half the logarithm of the signal-to-noise ratio."""
    return (jnp.log1p(-there) - jnp.log(there)) - (jnp.log1p(-here) - jnp.log(here))


def _before(sigmas: jax.Array, piece: Callable[[jax.Array], jax.Array] | None) -> jax.Array:
    """Returns for each entry the one before it, or itself where there is none in the same piece of the way."""
    before = jnp.concatenate([sigmas[:1], sigmas[:-1]])
    return before if piece is None else jnp.where(piece(before) == piece(sigmas), before, sigmas)


METHODS: dict[str, Callable[[Remembering, jax.Array, Any, _Course], Carry]] = {
    "euler": _euler,
    "heun": _heun,
    "dpm": _dpm,
    "unipc": _unipc,
    "stochastic": _stochastic,
}
