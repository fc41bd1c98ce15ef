"""Which programs of a run are planned."""

from jax.sharding import Mesh

from sora_jax.core.errors import UserError
from sora_jax.experiment.codec_programs import codec_programs
from sora_jax.experiment.kinds import training
from sora_jax.experiment.kinds.prepare import prepare_stages
from sora_jax.experiment.programs import Program, sampling_program, text_program
from sora_jax.experiment.schema import Settings
from sora_jax.experiment.stage_settings import AUTOENCODER


def planned_programs(
    settings: Settings,
    mesh: Mesh,
    *,
    part: str,
    names: list[str] | None,
    segment_tokens: int | None,
    size: str | None,
    seconds: float | None,
) -> list[Program]:
    """Returns the programs of a part of a run: "train", "sample", "autoencoder", "text", or "all".

    `names` are the stages whose step is planned; None: the largest of each kind. Rows are full of segments of
    `segment_tokens`, by default `data.max_tokens`; `size` and `seconds` are those of what is sampled or encoded, by
    default of the config. Raises UserError for what the run cannot have.
    """
    names = names or largest_stages(settings)
    if part == "autoencoder":
        names = [name for name in names if name in settings.stages_of(AUTOENCODER)]
    found = []
    if part not in ("sample", "text"):
        tokens = settings.data.max_tokens if segment_tokens is None else segment_tokens
        found += train_programs(settings, mesh, names, segment_tokens=tokens)
    if part in ("sample", "all"):
        found.append(sampling_program(settings, mesh, size=size, seconds=seconds))
    if part in ("autoencoder", "all"):
        clips = max((stage.batch for stage in prepare_stages(settings)), default=1)
        found += codec_programs(settings, mesh, size=size, clips=clips)
    if part in ("text", "all") and (encoding := text_program(settings, mesh)) is not None:
        found.append(encoding)
    if not found:
        raise UserError(f"--part={part}: the run has nothing of it, with text.encoder {settings.text.encoder!r}")
    return found


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
