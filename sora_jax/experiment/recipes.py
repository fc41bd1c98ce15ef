"""What a stage trains and how, by its name: the one definition that training runs and that plans compile."""

from jax.sharding import Mesh

from sora_jax.core.errors import UserError
from sora_jax.experiment.kinds import KINDS, training
from sora_jax.experiment.kinds.base import TrainKind
from sora_jax.experiment.kinds.recipe import Recipe
from sora_jax.experiment.schema import Settings
from sora_jax.train.state import StateMaker


def recipe_of(settings: Settings, name: str, mesh: Mesh) -> Recipe:
    """Returns the recipe of a stage; raises UserError if it is none that trains."""
    return train_kind(settings, name).recipe(settings, name, mesh)


def state_maker(settings: Settings, name: str, mesh: Mesh) -> StateMaker:
    """Returns what builds the states of a stage; raises UserError if it is none that trains."""
    return train_kind(settings, name).maker(settings, name, mesh)


def train_kind(settings: Settings, name: str) -> TrainKind:
    """Returns the kind of a stage; raises UserError if it is none that trains."""
    kind = KINDS[settings.stages[name].kind] if name in settings.stages else None
    if isinstance(kind, TrainKind):
        return kind
    raise UserError(f"{name!r} is no stage that trains: --stage is one of {', '.join(training(settings))}")
