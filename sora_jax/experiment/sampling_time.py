"""What is silent while videos are made: that it takes long, and about how long."""

import dataclasses
import time
from collections.abc import Sequence

import numpy as np
from absl import logging

from sora_jax.experiment.models import RunModels
from sora_jax.experiment.programs import solver_evaluations
from sora_jax.experiment.speed import TRANSFORMER, measure_speed
from sora_jax.generate.canvas import Canvas
from sora_jax.generate.denoiser import SolverConfig
from sora_jax.models import flops
from sora_jax.train.progress import about

# FLOPs that no machine takes long for, and the seconds from which on a user wonders whether anything happens.
_LITTLE, _LONG = 1e12, 30.0


class RoundsTold:
    """Says before a round how long it takes, where that is long; called with its canvases.

    That is by arithmetic the first time, and then by how long the round before it took.

    Args:
      models: Of the run that makes them.
      solver: What solves.
    """

    def __init__(self, models: RunModels, solver: SolverConfig):
        self._settings, self._solver = models.settings, solver
        self._devices = 1 if models.mesh is None else models.mesh.size
        self._rounds, self._work, self._began = 0, 0.0, 0.0

    def __call__(self, canvases: Sequence[Canvas]) -> None:
        """Says it."""
        work = sum(map(self._flops, canvases))
        seconds = self._seconds(work)
        self._rounds, self._work, self._began = self._rounds + 1, work, time.monotonic()
        if seconds >= _LONG:
            logging.info(
                "sampling: round %d, windows: %d, tokens: %s; it takes about %s",
                *(self._rounds, len(canvases), f"{sum(map(self._tokens, canvases)):,}", about(seconds)),
            )

    def _seconds(self, work: float) -> float:
        if self._rounds:
            return work / self._work * (time.monotonic() - self._began)
        if work < _LITTLE:
            return 0.0
        speed = measure_speed(self._settings, self._devices, compiled=True)
        return speed.seconds(work, TRANSFORMER)

    def _tokens(self, canvas: Canvas) -> int:
        return canvas.tokens(self._settings.transformer.patch)

    def _flops(self, canvas: Canvas) -> float:
        """Returns the FLOPs of solving a canvas, with the longest caption."""
        settings, solver = self._settings, self._solver
        usual = solver.context_steps if canvas.context else None
        solver = dataclasses.replace(solver, steps=canvas.steps or usual or solver.steps)
        segment_BL, text_segment_BK = (
            np.ones((1, count), np.int32) for count in (self._tokens(canvas), settings.text.max_tokens)
        )
        once = flops.transformer_flops(
            settings.transformer,
            text_dim=settings.text_encoder.width,
            patch_width=settings.patch_width,
            work=flops.work_of(segment_BL, text_segment_BK),
        )
        return once * solver_evaluations(solver)
