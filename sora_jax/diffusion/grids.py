"""The schedules of the public Wan models, number for number: another grid is another video at the same seed.

Both are evenly spaced before the shift, end at 0, and hand the model a whole number of thousandths.

Letters: I steps.
"""

import dataclasses

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """One of the `GRIDS` with its shift, more for larger videos; raises UserError on impossible values."""

    name: str
    shift: float

    def __post_init__(self):
        if self.name not in _ENDS:
            raise UserError(f"grid {self.name!r} is not one of: {', '.join(GRIDS)}")
        if self.shift <= 0:
            raise UserError(f"the shift {self.shift:g} of grid {self.name!r} must be more than 0; 5 is usual")

    def levels(self, steps: int, *, start: float = 1.0) -> np.ndarray:
        """Returns sigma float64 (steps + 1,), falling to exactly 0; raises UserError on less than one step.

        From a start of less than 1, in [0, 1], the even levels begin at that share of what they are.
        """
        if steps < 1:
            raise UserError(f"{steps} sampling steps: at least 1 is needed")
        even = np.linspace(*_ENDS[self.name], steps + 1)[:-1] * start
        sigma = self.shift * even / (1 + (self.shift - 1) * even)
        return np.append(np.minimum(sigma, 1 - _BELOW_ONE), 0.0)

    def schedule(self, steps: int, *, start: jax.Array | float = 1.0) -> jax.Array:
        """Returns `levels`, float32 (steps + 1, *start.shape), of each start."""
        start = jnp.asarray(start, jnp.float32)
        even = jnp.asarray(Grid(name=self.name, shift=1.0).levels(steps), jnp.float32)
        whole, even = (jnp.reshape(one, (-1, *[1] * start.ndim)) for one in (self.levels(steps), even))
        part = noise_levels.shift(even * start, jnp.float32(self.shift))
        return jnp.where(start < 1, part, whole.astype(jnp.float32))

    def told(self, sigma: jax.Array, steps: int) -> jax.Array:
        """Returns the levels, whole thousandths, that a model is told of levels of a schedule, float32 of their shape.

        Those of a whole way are cut off in double precision, as the public code does; the others as they are.
        """
        exact = self.levels(steps)
        same = sigma[..., None] == jnp.asarray(exact, jnp.float32)
        times_I = jnp.asarray(times(exact), jnp.float32)
        cut = jnp.floor(sigma * THOUSANDTHS)
        return jnp.where(jnp.any(same, -1), jnp.max(jnp.where(same, times_I, 0.0), -1), cut) / THOUSANDTHS

    def above(self, boundary: float, steps: int, *, start: float = 1.0) -> int:
        """Returns how many steps of a schedule begin at or above a boundary, by the thousandths told."""
        return int(np.sum(times(self.levels(steps, start=start)[:-1]) >= boundary * THOUSANDTHS))


def times(sigma: np.ndarray) -> np.ndarray:
    """Returns the thousandths that a model is told of levels, int64: what is over a whole one is cut off."""
    return (THOUSANDTHS * np.asarray(sigma, np.float64)).astype(np.int64)
