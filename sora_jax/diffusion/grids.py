"""The schedules of the public Wan models, number for number: another grid is another video at the same seed.

Both are evenly spaced before the shift, end at 0, and hand the model a whole number of thousandths.

Letters: I steps.
"""

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.core.errors import UserError
from sora_jax.diffusion import noise_levels

# First and last even level of a grid; the last one is no level but where the next would be.
_ENDS = {
    "wan": (float(np.float32(0.999)), 0.0),  # of the code that came with the models
    "diffusers": (1.0, 0.001),  # of diffusers' UniPCMultistepScheduler
}
GRIDS = tuple(_ENDS)
# Below 1 by so much a level of 1 is taken, at which the clean share is 0 and has no logarithm.
_BELOW_ONE = 1e-6
THOUSANDTHS = 1000


def levels(grid: str, steps: int, shift: float) -> np.ndarray:
    """Returns sigma float64 (steps + 1,), falling to exactly 0; raises UserError on less than one step."""
    if steps < 1:
        raise UserError(f"{steps} sampling steps: at least 1 is needed")
    even = np.linspace(*_ENDS[grid], steps + 1)[:-1]
    sigma = shift * even / (1 + (shift - 1) * even)
    return np.append(np.minimum(sigma, 1 - _BELOW_ONE), 0.0)


def times(sigma: np.ndarray) -> np.ndarray:
    """Returns the thousandths that a model is told of levels, int64: what is over a whole one is cut off."""
    return (THOUSANDTHS * np.asarray(sigma, np.float64)).astype(np.int64)


def schedule(grid: str, steps: int, shift: float, *, start: jax.Array | float = 1.0) -> jax.Array:
    """Returns sigma float32 (steps + 1, *start.shape), as `noise_levels.schedule`: from 1 the levels of the grid.

    From less than 1, in [0, 1], the even levels begin at that share of what they are.
    """
    start = jnp.asarray(start, jnp.float32)
    whole, even = (jnp.asarray(levels(grid, steps, one), jnp.float32) for one in (shift, 1.0))
    whole, even = (one.reshape(-1, *[1] * start.ndim) for one in (whole, even))
    return jnp.where(start < 1, noise_levels.shift(even * start, jnp.float32(shift)), whole)


def told(sigma: jax.Array, grid: str, steps: int, shift: float) -> jax.Array:
    """Returns the levels, whole thousandths, that a model is told of levels of a schedule, float32 of their shape.

    Those of the grid are cut off in double precision, as the public code does; the others as they are.
    """
    exact = levels(grid, steps, shift)
    of_grid_I, times_I = jnp.asarray(exact, jnp.float32), jnp.asarray(times(exact), jnp.float32)
    same = sigma[..., None] == of_grid_I
    thousandths = jnp.where(
        jnp.any(same, axis=-1),
        jnp.max(jnp.where(same, times_I, 0.0), axis=-1),
        jnp.floor(sigma * THOUSANDTHS),
    )
    return thousandths / THOUSANDTHS


def above(boundary: float, grid: str, steps: int, shift: float, *, start: float = 1.0) -> int:
    """Returns how many steps of a schedule from `start` begin at or above a boundary, by the thousandths told."""
    sigma = levels(grid, steps, shift)
    if start < 1:
        even = levels(grid, steps, 1.0) * start
        sigma = shift * even / (1 + (shift - 1) * even)
    return int(np.sum(times(sigma[:-1]) >= boundary * THOUSANDTHS))
