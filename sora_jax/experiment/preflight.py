"""What must hold before a run starts, and what it can only tell once its devices and weights are known."""

from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh

from sora_jax.core.errors import UserError
from sora_jax.core.mesh import make_mesh
from sora_jax.core.sharding import batch_part, ways
from sora_jax.experiment.kinds import KINDS, training
from sora_jax.experiment.loading import example_jobs
from sora_jax.experiment.sample_prompts import configured_examples
from sora_jax.experiment.schema import Settings


def check_start(settings: Settings, devices: Sequence[Any] | None = None, *, samples: bool = True) -> Mesh:
    """Returns the mesh over `devices` (default: all); raises UserError for what they and the config cannot do.

    `samples` is whether what is sampled as training proceeds is looked at, which takes the files of a text encoder.
    """
    mesh = make_mesh(settings.mesh, devices)
    split = ways("batch", mesh)
    batch_part(mesh)
    for name in settings.run:
        KINDS[settings.stages[name].kind].check(settings, name, mesh)
    problems = []
    for name, kind in training(settings).items():
        parts = split * kind.of(settings, name).accumulate
        planned = kind.batches(settings, name, segment_tokens=settings.data.max_tokens)
        problems += [f"{one.what}, not a multiple of {parts}" for one in planned if one.size % parts]
    if problems:
        raise UserError(
            f"each batch is split over {split} devices (mesh data x fsdp), times the stage's `accumulate`: "
            f"{'; '.join(dict.fromkeys(problems))}"
        )
    if samples:
        example_jobs(settings, configured_examples(settings), frames=settings.sampling.frames)
    _check_tile(settings)
    return mesh


def _check_tile(settings: Settings) -> None:
    """Raises UserError where a refiner could not make frames in tiles of the size that is given."""
    tile, (_, rows, columns) = settings.sampling.refiner.tile, settings.token_stride
    # Tiles begin at whole tokens of the smallest clip beside, and need three of these to overlap.
    least = 3 * max(settings.context.low.space) * max(rows, columns)
    if tile is not None and (tile < least or tile % rows or tile % columns):
        raise UserError(
            f"sampling.refiner.tile is {tile}: give a multiple of the {rows}x{columns} px of a token, {least} or more"
        )
