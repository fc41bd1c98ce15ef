"""A public model as it was downloaded, in the place of the models of a run."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, SingleDeviceSharding

from sora_jax.core.errors import UserError
from sora_jax.core.precision import compute_dtype
from sora_jax.core.sharding import param_shardings
from sora_jax.core.tree import Params, abstract_model
from sora_jax.experiment.adapters import NO_ADAPTERS, Adapters, without_adapters
from sora_jax.experiment.loading import build_generator, given_codec, given_statistics
from sora_jax.experiment.models import RunModels
from sora_jax.experiment.settings import Settings
from sora_jax.generate.experts import EXPERTS
from sora_jax.models.codec import Codec
from sora_jax.models.interop.model_folder import ModelFiles
from sora_jax.models.interop.wan import load_wan
from sora_jax.train.workdir import Workdir

_TRANSFORMER = "transformer."


class PublicModels(RunModels):
    """The autoencoder, the text encoder and the transformers of a public model; what is made lies in this folder.

    The text encoder is let go of before a transformer is loaded, and of two experts one is in memory.

    Args:
      settings: With a `model`.
      mesh: As of `RunModels`.
      adapters: As of `RunModels`.
    """

    def __init__(self, settings: Settings, *, mesh: Mesh | None = None, adapters: Adapters = NO_ADAPTERS):
        super().__init__(Workdir(Path.cwd()), settings, mesh=mesh, adapters=adapters)
        assert settings.public is not None
        self.files: ModelFiles = settings.public

    @functools.cached_property
    def codec(self) -> Codec:
        """The autoencoder of the model."""
        statistics = given_statistics(self.settings)
        if statistics is None:
            raise UserError(
                f"{self.files.autoencoder} has {self.settings.autoencoder.channels} channels, as no public "
                "autoencoder, and no config.json with latents_mean and latents_std beside it: add one"
            )
        return given_codec(self.settings, *statistics, mesh=self._mesh)

    def check_run(self) -> None:
        """Raises UserError: there is none."""
        raise UserError(f"{self.files.folder} is a model and no run: there are no held-out clips to evaluate it on")

    def facts(self) -> dict[str, Any]:
        """Returns which model it is, and how it is sampled."""
        sampling = self.settings.sampling
        return {
            "model": self.files.name,
            "grid": sampling.grid,
            "shift": sampling.shift,
            **self._adapters.facts(),
        }

    def _load(self, number: int) -> Params:
        """Returns the parameters of one transformer, products in the dtype of the computation, the rest in float32."""
        settings = without_adapters(self.settings)
        _, shapes, axes = abstract_model(lambda key: build_generator(settings, key))
        if self._mesh is None:
            places: Mapping[str, Any] = dict.fromkeys(shapes, SingleDeviceSharding(jax.local_devices()[0]))
        else:
            places = param_shardings(axes, shapes, self._mesh)
        product = compute_dtype(self.settings.precision)
        wanted = {
            name.removeprefix(_TRANSFORMER): jax.ShapeDtypeStruct(
                one.shape, product if _is_product(name) else one.dtype, sharding=places[name]
            )
            for name, one in shapes.items()
        }
        path, expert = self.files.transformers[number], EXPERTS[number] if self._two else None
        if self._adapters.own != 1:
            raise UserError(f"--lora=own:{self._adapters.own:g} is of a run, and this is a public model: name a file")
        added = self._adapters.read({name: one.shape for name, one in wanted.items()}, expert=expert)
        changed = set[str]().union(*(one.names for one in added))
        loaded = load_wan(path, {name: one for name, one in wanted.items() if name not in changed})
        for name in sorted(changed):
            # One at a time: it is in float32 until all is added.
            whole = jax.ShapeDtypeStruct(wanted[name].shape, jnp.float32, sharding=wanted[name].sharding)
            value = load_wan(path, {name: whole})[name]
            for one in added:
                value = one.to(name, value)
            loaded[name] = value.astype(wanted[name].dtype)
        return {f"{_TRANSFORMER}{name}": value for name, value in loaded.items()}


def _is_product(name: str) -> bool:
    """Whether a parameter is a matrix of a block; what else there is takes little memory and counts for much."""
    return name.startswith(f"{_TRANSFORMER}blocks.") and name.endswith(".kernel")
