"""The train steps of a run, to be planned."""

from jax.sharding import Mesh

from sora_jax.experiment.kinds import training
from sora_jax.experiment.programs import Program
from sora_jax.experiment.schema import Settings


def train_programs(settings: Settings, mesh: Mesh, names: list[str], *, segment_tokens: int) -> list[Program]:
    """Returns the train steps of those of the stages that train, one for each kind of batch.

    Packed rows are full of segments of `segment_tokens`; raises UserError for segments that no row holds.
    """
    return [
        program
        for name, kind in training(settings, names).items()
        for program in kind.programs(settings, name, mesh, segment_tokens=segment_tokens)
    ]


def largest_stages(settings: Settings) -> list[str]:
    """Returns of each kind of stage that trains the one that needs most: of the largest micro-batch the last."""
    found: dict[str, str] = {}
    for name, kind in training(settings).items():
        stage = kind.of(settings, name)
        best = found.get(stage.kind)
        if best is None or stage.accumulate <= kind.of(settings, best).accumulate:
            found[stage.kind] = name
    return list(found.values())
