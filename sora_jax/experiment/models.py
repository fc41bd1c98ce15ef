"""The models of a run, loaded when they are first asked for, once."""

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
from jax.sharding import Mesh

from sora_jax.core.errors import UserError
from sora_jax.core.tree import Params, abstract_model
from sora_jax.data.tokens import clean_caption
from sora_jax.experiment.adapters import NO_ADAPTERS, Adapters, without_adapters
from sora_jax.experiment.loading import (
    Weights,
    build_generator,
    load_codec,
    load_generator,
    make_sampler,
    solver_config,
)
from sora_jax.experiment.settings import Settings
from sora_jax.generate.denoiser import SolverConfig
from sora_jax.generate.experts import EXPERTS, HIGH, Experts, ExpertsSampler
from sora_jax.generate.sampler import Sampler
from sora_jax.models.codec import Codec
from sora_jax.train.workdir import Workdir
from sora_jax.video import latents


class RunModels:
    """The autoencoder and the generator of a run.

    Attributes:
      workdir: Of the run.
      settings: Of the run.
      weights: Of the generator: their average, or what its last step left. The autoencoder's are always an average.
      ema: Relative width of that average; None: the first of the run.

    Args:
      step: Of the generator's checkpoint, as in `load_generator`.
      mesh: Devices, also of several processes, that share the work; None: the first one.
      adapters: What is added to the weights of the generator.
    """

    def __init__(
        self,
        workdir: Workdir,
        settings: Settings,
        *,
        step: int | None = None,
        weights: Weights = "ema",
        ema: float | None = None,
        mesh: Mesh | None = None,
        adapters: Adapters = NO_ADAPTERS,
    ):
        self.workdir, self.settings = workdir, settings
        self.weights: Weights = weights
        self.ema = ema
        self._step, self._mesh, self._adapters = step, mesh, adapters
        self._samplers: dict[tuple[SolverConfig, int], Sampler] = {}
        self._two = solver_config(settings).experts is not None
        self._experts, self._found = Experts(self._load), dict[int, tuple[str, int]]()

    @functools.cached_property
    def codec(self) -> Codec:
        """The autoencoder; raises UserError while it is not trained."""
        return load_codec(self.workdir, self.settings, mesh=self._mesh)

    def encode(self, clip_THWC: np.ndarray) -> np.ndarray:
        """Returns the latent, float32 (t, h, w, C) of about unit variance, of a uint8 clip (T, H, W, 3).

        Raises UserError for a size or a number of frames that the strides do not divide.
        """
        raw_BTHWC = self.codec.encode(clip_THWC[None])
        return latents.normalise(raw_BTHWC, self.codec.mean_C, self.codec.scale_C)[0]

    @property
    def params(self) -> Params:
        """The parameters of the generator; none where there are two experts, which the sampler takes in turn.

        Raises UserError while there is no checkpoint of it.
        """
        return {} if self._two else self._experts.take(HIGH)

    @property
    def mesh(self) -> Mesh | None:
        """The devices that share the work; None: the first one."""
        return self._mesh

    def facts(self) -> dict[str, Any]:
        """Returns which weights the generator has: stage, step, and whether they are an average; of two, those read."""
        if not self._found:
            self._experts.take(HIGH)
        stages, steps = zip(*self._found.values(), strict=True)
        return {
            "stage": ", ".join(stages),
            "step": max(steps),
            "weights": self.weights,
            **({} if self.ema is None else {"ema": self.ema}),
            **self._adapters.facts(),
        }

    def sampler(self, solver: SolverConfig | None = None, *, videos: int | None = None) -> Sampler:
        """Returns a sampler, the same one for the same solver (None: the configured one), as `make_sampler` makes it.

        It is for up to `videos` at once, rounded up so that few programs serve all; None: for as many as a batch holds.
        """
        solver = solver_config(self.settings) if solver is None else solver
        rows = self.settings.packing.rows
        rows = rows if videos is None else min(rows, 1 << (videos - 1).bit_length())
        if (solver, rows) not in self._samplers:
            self._samplers[solver, rows] = self._make_sampler(solver, rows)
        return self._samplers[solver, rows]

    def check_run(self) -> None:
        """Raises UserError where these are no models of a run, with clips that were held out."""

    def read_texts(self, texts: Iterable[str]) -> None:
        """Encodes texts that are about to be sampled and lets go of a frozen encoder, before the rest needs the memory.

        One that is trained with the transformer has nothing to do before.
        """
        tokenizer = self.settings.text_encoder.tokenizer
        if tokenizer.stored:
            tokenizer.encode(sorted({"", *map(clean_caption, texts)}))
            self.settings.text_encoder.release()

    def _make_sampler(self, solver: SolverConfig, rows: int) -> Sampler:
        kind = Sampler if solver.experts is None else functools.partial(ExpertsSampler, self._experts)
        return make_sampler(
            self.settings, self.codec, self.structure(), solver=solver, mesh=self._mesh, videos=rows, kind=kind
        )

    def _load(self, number: int) -> Params:
        """Returns the parameters of the generator, or of one of two experts."""
        expert, title = (number, EXPERTS[number]) if self._two else (None, None)
        params, stage, step = load_generator(
            self.workdir,
            self.settings,
            step=self._step,
            weights=self.weights,
            ema=self.ema,
            mesh=self._mesh,
            expert=expert,
        )
        self._found[number] = stage, step
        return self._adapters.merged(params, self.settings.transformer.lora, expert=title)

    def structure(self) -> Any:
        """Returns the structure of the generator, as `params` fill it."""
        settings = without_adapters(self.settings)
        return abstract_model(lambda key: build_generator(settings, key))[0]


def step_of(checkpoint: str | int) -> int | None:
    """Returns the step of a checkpoint that a user names, None for "latest"; UserError for what is neither."""
    if checkpoint == "latest":
        return None
    if not str(checkpoint).isdecimal():
        raise UserError(f"--checkpoint={checkpoint!r} is neither a step nor latest")
    return int(checkpoint)
