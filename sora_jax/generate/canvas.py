"""A canvas: all that a solver needs to know of one video to make.

Letters: L tokens, P patch width, B rows, S segments.
"""

import dataclasses
import math

import jax
import numpy as np

from sora_jax.core import rng
from sora_jax.core.errors import UserError
from sora_jax.data.captions import count_tokens
from sora_jax.data.packing import plan_window
from sora_jax.data.packs import Pack, PackLayout, stack_rows
from sora_jax.video import shapes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Canvas:
    """One video to make, from noise alone.

    Attributes:
      prompt: What it shows; empty for no guidance by text.
      grid: Token grid (t, h, w).
      fps: Frames per second.
      seed: Of its noise, which depends on nothing else.
    """

    prompt: str
    grid: shapes.Size
    fps: float
    seed: int

    def noise(self, patch_width: int) -> np.ndarray:
        """Returns noise_LP, float32, the same whatever shares the batch."""
        key = rng.key(self.seed, "canvas")
        return np.asarray(jax.random.normal(key, (math.prod(self.grid), patch_width)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a canvas lies: the batch, the row in it, the tokens of that row."""

    batch: int
    row: int
    tokens: slice


def lay_out(canvases: list[Canvas], layout: PackLayout, *, rows: int) -> tuple[list[Pack], list[Placement]]:
    """Returns packs of `rows` rows with the canvases' noise as tokens, and where each canvas is.

    Raises UserError when a canvas or its prompt does not fit a row.
    """
    budget = layout.budget
    tokens_N = np.array([math.prod(canvas.grid) for canvas in canvases])
    text_N = np.array([count_tokens(canvas.prompt) for canvas in canvases])
    plan = plan_window(tokens_N, text_N, budget, seed=0, window=0)
    if plan.rejected:
        raise UserError(f"request {plan.rejected[0].sample} cannot be sampled: {plan.rejected[0].reason}")
    filled, places = [], {}
    for number in range(len(plan)):
        row = layout.row()
        for index in plan.row(number).tolist():
            canvas = canvases[index]
            noise = canvas.noise(math.prod(layout.patch) * layout.channels)
            there = row.put(sample=index, grid=canvas.grid, fps=canvas.fps, caption=canvas.prompt, tokens_LP=noise)
            places[index] = Placement(batch=number // rows, row=number % rows, tokens=there)
        filled.append(row)
    filled += [layout.row() for _ in range(-len(filled) % rows)]
    packs = [stack_rows(filled[start : start + rows]) for start in range(0, len(filled), rows)]
    return packs, [places[index] for index in range(len(canvases))]
