"""Two experts: one model for the high noise levels and one for the low, of which one at a time is in memory.

Every canvas passes from the one to the other once. What the solver looks back to goes with it, so two experts of equal
weights are one model.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.core.compiling import run_often
from sora_jax.core.distributed import to_host, together
from sora_jax.core.errors import UserError
from sora_jax.core.tree import Params, merge_model
from sora_jax.diffusion import solvers
from sora_jax.generate.canvas import Canvas, CanvasBatch
from sora_jax.generate.denoiser import SolverConfig
from sora_jax.generate.sampler import Sampler, walk_batch

HIGH, LOW = 0, 1
# Their names, in files and messages.
EXPERTS = ("high", "low")


class Experts:
    """The weights of two experts, HIGH and LOW, of which the one that was asked for last is in memory.

    Args:
      load: Returns the parameters of one.
    """

    def __init__(self, load: Callable[[int], Params]):
        self._load = load
        self._held: tuple[int, Params] | None = None

    def take(self, number: int) -> Params:
        """Returns the parameters of an expert, after letting go of the other's."""
        if self._held is None or self._held[0] != number:
            self._held = None
            self._held = number, self._load(number)
        return self._held[1]

    def forget(self) -> None:
        """Lets go of the one in memory: it may have changed where it comes from."""
        self._held = None


class ExpertsSampler(Sampler):
    """A sampler whose weights are those of `experts`; what it is called with in their place is not looked at.

    All canvases of a call pass the boundary together, and experts are changed twice in a call at most.
    """

    def __init__(self, experts: Experts, structure: Any, *args: Any, config: SolverConfig, dtype: Any, **options: Any):
        super().__init__(structure, *args, config=config, dtype=dtype, **options)
        assert config.experts is not None
        assert config.grid is not None
        self._experts, self._config, self._grid = experts, config, config.grid
        boundary, scale = config.experts
        self._boundary = boundary
        below = dataclasses.replace(config, guidance=dataclasses.replace(config.guidance, scale=scale))
        self._parts = [_part(structure, one, dtype=dtype) for one in (config, below)]

    def latents(self, params: Params, canvases: list[Canvas]) -> list[np.ndarray]:
        """Returns the latents as `Sampler.latents`; those that start elsewhere meet the boundary in another step."""
        found: dict[int, np.ndarray] = {}
        for strength in sorted({canvas.strength for canvas in canvases}, reverse=True):
            numbers = [number for number, canvas in enumerate(canvases) if canvas.strength == strength]
            made = super().latents(params, [canvases[number] for number in numbers])
            found |= dict(zip(numbers, made, strict=True))
        return [found[number] for number in range(len(canvases))]

    def _solve_all(self, params: Params, batches: list[CanvasBatch], steps: int) -> list[np.ndarray]:
        del params
        if steps != self._config.steps:
            said = "leave out sampling.context_steps and refiner.steps, of which one says"
            raise UserError(f"two experts take {self._config.steps} steps: {said} {steps}")
        start = float(min(np.min(batch.strength_BS) for batch in batches))  # of absent canvases it is 1
        turn = self._grid.above(self._boundary, steps, start=start)
        carries: list[Any] = [None] * len(batches)
        for number, part in ((HIGH, (0, turn)), (LOW, (turn, steps))):
            if part[0] < part[1]:
                weights, run = self._experts.take(number), self._parts[number](part)
                carries = [run(weights, batch, carry) for batch, carry in zip(batches, carries, strict=True)]
        return [to_host(carry[0]) for carry in carries]


def _part(structure: Any, config: SolverConfig, *, dtype: jnp.dtype) -> Callable[[tuple[int, int]], Any]:
    """Returns steps -> the jitted `(params, batch, carry) -> carry` of them, each made once."""

    @functools.cache
    def made(steps: tuple[int, int]) -> Any:
        def run(params: Params, batch: CanvasBatch, carry: solvers.Carry | None) -> solvers.Carry:
            return walk_batch(merge_model(structure, params), batch, carry, config, dtype=dtype, steps=steps)

        return together(jax.jit(run, compiler_options=run_often()), every_time=True)

    return made
