"""What must hold before a run starts, and what it can only tell once its devices and weights are known."""

from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh

from sora_jax.core.errors import UserError
from sora_jax.core.mesh import make_mesh
from sora_jax.core.sharding import batch_part, ways
from sora_jax.experiment.loading import limits_of
from sora_jax.experiment.recipes import perceptual_distance
from sora_jax.experiment.settings import Settings
from sora_jax.experiment.stage_settings import AutoencoderStage, DiffusionStage
from sora_jax.generate.job import Job, read_job
from sora_jax.generate.request import Request


def check_start(settings: Settings, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh over `devices` (default: all); raises UserError for what they and the config cannot do."""
    mesh = make_mesh(settings.mesh, devices)
    split = ways("batch", mesh)
    batch_part(mesh)
    problems = []
    for name in settings.run:
        stage = settings.stages[name]
        if isinstance(stage, AutoencoderStage):
            perceptual_distance(settings, name, stage)
            batches = {f"a bucket of stages.{name} has {size} clips": size for *_, size in stage.crops.buckets}
        elif isinstance(stage, DiffusionStage):
            batches = {f"packing.rows is {settings.packing.rows}": settings.packing.rows}
        else:
            continue
        parts = split * stage.accumulate
        problems += [f"{what}, not a multiple of {parts}" for what, size in batches.items() if size % parts]
    if problems:
        raise UserError(
            f"each batch is split over {split} devices (mesh data x fsdp), times the stage's `accumulate`: "
            f"{'; '.join(dict.fromkeys(problems))}"
        )
    if any(isinstance(settings.stages[name], DiffusionStage) for name in settings.run):
        _check_split(settings, mesh)
    example_jobs(settings, frames=settings.sampling.frames)
    return mesh


def _check_split(settings: Settings, mesh: Mesh) -> None:
    """Raises UserError where the mesh splits rows or heads unevenly."""
    tokens, heads = settings.packing.tokens, settings.transformer.heads
    if tokens % ways("length", mesh):
        raise UserError(
            f"packing.tokens is {tokens}, and the mesh axis sequence splits a row over {ways('length', mesh)} devices: "
            "make it a multiple of these"
        )
    if heads % ways("heads", mesh):
        raise UserError(
            f"transformer.heads is {heads}, and the mesh axis tensor splits them over {ways('heads', mesh)} devices: "
            "make them a multiple of these"
        )


def example_jobs(settings: Settings, *, frames: int) -> list[Job]:
    """Returns the configured prompts as videos of `frames` frames, at seed 0, to be made as `sample` makes them.

    Raises UserError as `read_job`.
    """
    limits = limits_of(settings)
    return [read_job(Request(prompt=(prompt,), frames=frames), limits) for prompt in settings.sampling.prompts]
