"""The kinds of stage: one table, in the order in which a run has them. A new kind is a module and a row."""

from collections.abc import Iterable
from typing import Any

from sora_jax.experiment.kinds.autoencoder import AutoencoderKind
from sora_jax.experiment.kinds.base import Kind, TrainKind
from sora_jax.experiment.kinds.captioner import CaptionerKind
from sora_jax.experiment.kinds.diffusion import DiffusionKind
from sora_jax.experiment.kinds.prepare import PrepareKind
from sora_jax.experiment.schema import Settings

KINDS: dict[str, Kind[Any]] = {
    "autoencoder": AutoencoderKind(),
    "prepare": PrepareKind(),
    "diffusion": DiffusionKind(),
    "captioner": CaptionerKind(),
}


def training(settings: Settings, names: Iterable[str] | None = None) -> dict[str, TrainKind[Any]]:
    """Returns the kinds of those of the stages `names` that train, by name; None: of the stages of the run."""
    kinds = {name: KINDS[settings.stages[name].kind] for name in (settings.run if names is None else names)}
    return {name: kind for name, kind in kinds.items() if isinstance(kind, TrainKind)}


def names_until(settings: Settings, until: str | None) -> list[str]:
    """Returns the stages of a run up to the last of the kind `until`, in order; None: all.

    Where the run has none of that kind, up to those that such a stage would come after.
    """
    if until is None:
        return list(settings.run)
    kinds = [settings.stages[name].kind for name in settings.run]
    last = {until} if until in kinds else {*KINDS[until].after}
    return list(settings.run[: max((place + 1 for place, kind in enumerate(kinds) if kind in last), default=0)])
