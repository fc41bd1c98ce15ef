"""What must hold before a run starts, and what it can only tell once its devices and weights are known."""

from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh

from sora_jax.core.errors import UserError
from sora_jax.core.mesh import make_mesh
from sora_jax.core.sharding import batch_part, ways
from sora_jax.experiment.kinds import KINDS, training
from sora_jax.experiment.loading import example_jobs
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
        example_jobs(settings, frames=settings.sampling.frames)
    return mesh
