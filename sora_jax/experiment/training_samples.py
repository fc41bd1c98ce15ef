"""What a stage that trains the transformer shows: the same prompts as it trains, with its adapters and without."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sora_jax.core.tree import Params
from sora_jax.experiment.loading import example_jobs, limits_of, make_sampler, solver_config
from sora_jax.experiment.sample_prompts import Example
from sora_jax.experiment.schema import Settings
from sora_jax.generate.experts import Experts, ExpertsSampler
from sora_jax.generate.sampler import Sampler
from sora_jax.generate.scheduler import make_all
from sora_jax.models.codec import Codec
from sora_jax.nn.lora import OUT, adapters_of

# Returns the parameters of another transformer of the public model.
Other = Callable[[int], Params]


class TrainingSamples:
    """Samples of some prompts, the same at every moment.

    Args:
      settings: Of the run.
      codec: Decodes them.
      structure: Of the generator.
      mesh: Holds its weights.
      examples: What they show.
      frames: Of each sample.
      expert: Which of two transformers is trained.
      other: Gives the one that is not; of two both are then in memory while samples are made.
    """

    def __init__(
        self,
        settings: Settings,
        codec: Codec,
        structure: Any,
        *,
        mesh: Mesh,
        examples: Sequence[Example],
        frames: int,
        expert: int,
        other: Other,
    ):
        self.jobs, self._limits = example_jobs(settings, examples, frames=frames), limits_of(settings)
        self._trained: Params = {}
        # Not kept from one expert to the next: what is trained changes.
        experts = Experts(lambda number: self._trained if number == expert else other(number))
        two = solver_config(settings).experts is not None
        kind = functools.partial(ExpertsSampler, experts) if two else Sampler
        self._sampler = make_sampler(settings, codec, structure, mesh=mesh, kind=kind)
        self._experts = experts
        self._before: list[np.ndarray] | None = None

    def made(self, params: Params) -> list[np.ndarray]:
        """Returns the clip of each job by these parameters."""
        self._trained = params
        self._experts.forget()
        return [one.clip for one in make_all(self._sampler, params, self.jobs, self._limits)]

    def without_adapters(self, params: Params) -> list[np.ndarray]:
        """Returns the clips without adapters, none where there are none; made once, as what they adapt stays."""
        names = [f"{name}.{OUT}" for name in adapters_of(params)]
        if names and self._before is None:
            self._before = self.made(params | {name: jnp.zeros_like(params[name]) for name in names})
        return self._before or []
