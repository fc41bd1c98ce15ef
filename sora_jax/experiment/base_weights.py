"""The weights of a public model as what stages begin with: which transformer a stage trains, and where it lies."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp

from sora_jax.core.errors import UserError
from sora_jax.experiment.schema import Settings
from sora_jax.models.interop.wan import load_wan
from sora_jax.models.roles import VECTORS
from sora_jax.nn.lora import is_factor

_TRANSFORMER = "transformer."


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublicWeights:
    """A transformer of a public model, as `checkpoints.frozen.WeightSource`.

    Attributes:
      path: File or folder.
      dtype: In which it is kept where it is frozen.
    """

    path: Path
    dtype: jnp.dtype

    @property
    def place(self) -> str:
        """Where it lies."""
        return str(self.path)

    def has(self, name: str) -> bool:
        """Returns whether a parameter is one of the model: adapters, vectors of roles, and text encoders, are not."""
        return name.startswith(_TRANSFORMER) and not is_factor(name) and name != f"{_TRANSFORMER}{VECTORS}"

    def load(self, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """Returns parameters by name, each of its dtype, where its sharding says; raises UserError as `load_wan`."""
        loaded = load_wan(self.path, {name.removeprefix(_TRANSFORMER): one for name, one in wanted.items()})
        return {f"{_TRANSFORMER}{name}": value for name, value in loaded.items()}


def expert_of(settings: Settings, levels: tuple[float, float]) -> int | None:
    """Returns which of the transformers of the public model is asked at a range of noise levels; None: of no model.

    Raises UserError where that is the range of both of two.
    """
    if settings.public is None:
        return None
    boundary = settings.public.variant.boundary
    low, high = levels
    if boundary is None or low >= boundary:
        return 0
    if high <= boundary:
        return 1
    raise UserError(
        f"levels {low:g} to {high:g} are of both experts of {settings.public.variant.title}: give each a stage of its "
        f"own, with ({boundary:g}, 1.0) and (0.0, {boundary:g})"
    )


def source_of(settings: Settings, name: str) -> PublicWeights | None:
    """Returns the transformer that a stage begins with and freezes; None: there is none."""
    dtype = settings.stages[name].keeps_frozen_in
    return public_weights(settings, transformer_of(settings, name), frozen_dtype=dtype)


def transformer_of(settings: Settings, name: str) -> int | None:
    """Returns which transformer of the public model a stage trains, as `expert_of`."""
    return expert_of(settings, settings.stages[name].levels)


def public_weights(settings: Settings, expert: int | None, *, frozen_dtype: str | None) -> PublicWeights | None:
    """Returns the transformer `expert` of the public model of a run, frozen in a dtype (None: float32), if it has one.

    Raises UserError where the folder has no such transformer.
    """
    if settings.public is None or expert is None:
        return None
    transformers = settings.public.transformers
    return PublicWeights(path=transformers[expert], dtype=jnp.dtype(frozen_dtype or "float32"))
