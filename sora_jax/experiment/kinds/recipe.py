"""A stage that trains, without its data: what training runs, replays repeat and plans compile."""

import dataclasses
import functools
from typing import Any

import jax

from sora_jax.core import sharding
from sora_jax.core.tree import abstract_model
from sora_jax.experiment import activations
from sora_jax.experiment.programs import Program, StepBatch
from sora_jax.train.state import StateMaker
from sora_jax.train.step import Objective, StepConfig, StepProgram, make_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What fixes a stage.

    Attributes:
      objective: `(model, batch, key) -> (loss, metrics)`.
      maker: Builds states.
      step: What fixes the step.
    """

    objective: Objective
    maker: StateMaker
    step: StepConfig

    @functools.cached_property
    def program(self) -> StepProgram:
        """The jitted step."""
        structure, _, axes = abstract_model(self.maker.build)
        return make_step(self.objective, structure, self.maker.optimizer(axes), self.step)

    def planned(self, batch: StepBatch) -> Program:
        """Returns the step on a batch that is not there."""
        maker, parts = self.maker, self.step.accumulate
        # Before the mesh is set, on which nothing can be computed.
        state, scalars, program = maker.abstract(), self.step.scalars, self.program
        place = sharding.batch_sharding(maker.mesh)
        shapes = {n: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=place) for n, v in batch.shapes.items()}
        micro = {n: jax.ShapeDtypeStruct((v.shape[0] // parts, *v.shape[1:]), v.dtype) for n, v in shapes.items()}
        params = {**state.frozen, **state.params}

        def kept() -> float:
            plain = {n: jax.ShapeDtypeStruct(v.shape, v.dtype) for n, v in params.items()}
            ways, structure = batch.ways(maker.mesh, state.params), abstract_model(maker.build)[0]
            return activations.kept_bytes(self.objective, structure, plain, micro, ways)

        return Program(
            name=f"{self.step.name}: train step{batch.title}",
            lower=lambda: program.lower(state, shapes, scalars),
            held={"parameters": params, "moments": state.opt_state, "ema": state.ema, "batch": shapes},
            kept=kept,
            flops=batch.flops,
            recomputed=batch.recomputed,
            facts={**batch.facts, "micro-batches": parts},
        )

    def lower(self, batch: StepBatch) -> Any:
        """Returns the step lowered for a batch that is not there; called with the mesh set."""
        return self.planned(batch).lower()
