"""What a stage trains and how: the one definition that training runs and that plans compile."""

import dataclasses
import functools

import jax
from jax.sharding import Mesh

from sora_jax.core.errors import UserError
from sora_jax.core.precision import compute_dtype
from sora_jax.experiment.loading import build_autoencoder, build_generator
from sora_jax.experiment.settings import Settings
from sora_jax.experiment.stage_settings import AutoencoderStage, DiffusionStage
from sora_jax.models.perceptual import load_perceptual, lpips, smallest_side
from sora_jax.objectives import autoencoder, diffusion
from sora_jax.train.optimizer import make_optimizer
from sora_jax.train.state import StateMaker
from sora_jax.train.step import Objective, StepConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A stage without its data.

    Attributes:
      objective: `(model, batch, key) -> (loss, metrics)`.
      maker: Builds states.
      step: What fixes the step.
    """

    objective: Objective
    maker: StateMaker
    step: StepConfig


def autoencoder_recipe(settings: Settings, name: str, mesh: Mesh) -> Recipe:
    """Returns the recipe of an autoencoder stage; UserError where a window is too small for the perceptual network."""
    stage = settings.stages[name]
    assert isinstance(stage, AutoencoderStage), stage
    objective = autoencoder.make_objective(
        settings.autoencoder_loss,
        adversarial=stage.adversarial,
        perceptual=perceptual_distance(settings, name, stage),
        dtype=compute_dtype(settings.precision),
    )
    return _recipe(settings, name, mesh, objective)


def diffusion_recipe(settings: Settings, name: str, mesh: Mesh) -> Recipe:
    """Returns the recipe of a diffusion stage."""
    stage = settings.stages[name]
    assert isinstance(stage, DiffusionStage), stage
    objective = diffusion.make_objective(settings.diffusion, stage.known, dtype=compute_dtype(settings.precision))
    return _recipe(settings, name, mesh, objective)


def state_maker(settings: Settings, name: str, mesh: Mesh) -> StateMaker:
    """Returns what builds the states of a stage that trains."""
    stage = settings.stages[name]
    if isinstance(stage, AutoencoderStage):
        build, optimizer = functools.partial(build_autoencoder, settings, stage), stage.optimizer
    else:
        build, optimizer = functools.partial(build_generator, settings), settings.optimizer
    assert isinstance(stage, AutoencoderStage | DiffusionStage), stage
    return StateMaker(
        build=build,
        make_optimizer=functools.partial(make_optimizer, optimizer),
        ema=settings.ema,
        mesh=mesh,
        trainable=stage.trainable,
        frozen_dtype=stage.frozen_dtype,
    )


def perceptual_distance(settings: Settings, name: str, stage: AutoencoderStage) -> autoencoder.Distance | None:
    """Returns the distance that the configured network sees; UserError where a window is too small for it."""
    if settings.perceptual_weights is None:
        return None
    weights = load_perceptual(settings.perceptual_weights)
    least = smallest_side(weights)
    for frames, height, width, _ in stage.crops.buckets:
        if min(height, width) < least:
            raise UserError(
                f"stages.{name}.crops.buckets has windows of {frames} frames of {height}x{width} px, and the network "
                f"of perceptual_weights needs {least} px a side: make them larger, or turn it off"
            )
    # A program over the devices of several processes takes no array of one of them.
    return functools.partial(lpips, weights if jax.process_count() > 1 else jax.device_put(weights))


def _recipe(settings: Settings, name: str, mesh: Mesh, objective: Objective) -> Recipe:
    stage = settings.stages[name]
    assert isinstance(stage, AutoencoderStage | DiffusionStage), stage
    step = StepConfig(
        name=name,
        seed=settings.seed,
        steps=stage.steps,
        accumulate=stage.accumulate,
        schedule=stage.schedule,
        ema=settings.ema,
        guard=settings.guard,
    )
    return Recipe(objective=objective, maker=state_maker(settings, name, mesh), step=step)
