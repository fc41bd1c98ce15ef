"""How long a run will take on this machine, before it begins: its arithmetic over what the machine can do.

The result is rough; `RunProgress` corrects it as the run proceeds.
"""

import dataclasses

from jax.sharding import Mesh

from sora_jax.core.ahead import is_possible
from sora_jax.experiment.kinds import KINDS, names_until
from sora_jax.experiment.kinds.base import TrainKind
from sora_jax.experiment.schema import Settings
from sora_jax.experiment.speed import CONVOLUTIONS, Costs, Speed
from sora_jax.experiment.stage_settings import TEXT_TO_VIDEO
from sora_jax.train.progress import Part
from sora_jax.train.workdir import Workdir

EVALUATION = "evaluation"
# Of the autoencoder, of the loss on held-out clips, of held-out prompts, of tasks.
JUDGEMENTS = 4
# Seconds to compile its programs, and to load them where they lie compiled.
COMPILING = (25.0, 12.0)
# Of a stage that is compiled as one before it trains: the share of that time that goes by in the stage itself, and the
# share that is saved, as both together use the cores better.
_LEFT, _HIDDEN = 0.2, 0.6
# The same of what measures a state on held-out clips.
_COMPILING_VALIDATION = (9.0, 2.0)
# How often `evaluation.tasks` videos are made: for each task, and for sizes and durations never seen.
_TASKS = 13


def expected_parts(
    settings: Settings, mesh: Mesh, workdir: Workdir, speed: Speed, *, clips: int, heldout: int = 0, until: str | None
) -> list[Part]:
    """Returns the stages of a run over `clips` clips, those after `until` left out, and its evaluation.

    Stages that train are measured on `heldout` clips on the way. What is done according to the workdir is marked.
    """
    finished, costs, parts = workdir.facts()["stages"], Costs(settings, mesh, speed), []
    encoded = any(workdir.heldout(name).exists() for name in settings.collections)
    for name in names_until(settings, until):
        part = KINDS[settings.stages[name].kind].expected(settings, name, costs, workdir, clips=clips)
        validating = _validation(settings, costs, part, clips=heldout)
        if validating and not encoded:
            validating, encoded = validating + heldout * _encoding(costs), True
        part = dataclasses.replace(part, once=part.once + validating)
        if name in finished:
            part = dataclasses.replace(part, took=float(finished[name]["seconds"]), done=0)
        parts.append(part if all(one.took is not None for one in parts) else _compiled_beside(part))
    if until is not None or not settings.has_autoencoder:
        return parts
    return [*parts, _evaluation(settings, costs, heldout=heldout)]


def _compiled_beside(part: Part) -> Part:
    """Returns what is expected of a stage whose programs are compiled as one before it trains."""
    if not is_possible():
        return part
    left = part.compiling * _LEFT
    return dataclasses.replace(part, once=part.once - part.compiling * _HIDDEN, compiling=left)


def _validation(settings: Settings, costs: Costs, part: Part, *, clips: int) -> float:
    """Returns the seconds in which the rest of a stage is measured on so many held-out clips; 0 where it is not."""
    kind, every = KINDS[settings.stages[part.name].kind], settings.log.validate_every
    if not every or not isinstance(kind, TrainKind):
        return 0.0
    ends_between = part.done < part.total and part.total % every > 0
    times = part.total // every - part.done // every + ends_between
    seconds = times * kind.validation_seconds(settings, part.name, costs, clips=clips)
    return seconds + costs.speed.once(*_COMPILING_VALIDATION) if seconds else 0.0


def _encoding(costs: Costs) -> float:
    """Returns the seconds in which a clip is encoded."""
    return costs.speed.seconds(costs.pixels * costs.encode, CONVOLUTIONS)


def _evaluation(settings: Settings, costs: Costs, *, heldout: int) -> Part:
    """Returns what is expected of the evaluation, which measures the last state on as many held-out clips."""
    config, speed = settings.evaluation, costs.speed
    seconds = config.clips * speed.seconds(costs.pixels * (costs.encode + costs.decode), CONVOLUTIONS)
    for name in settings.stages_of(TEXT_TO_VIDEO)[-1:]:
        kind = KINDS[settings.stages[name].kind]
        assert isinstance(kind, TrainKind), kind
        seconds += kind.validation_seconds(settings, name, costs, clips=heldout)
    if settings.probed:
        worlds = settings.shapes.worlds or ()
        seconds += costs.sampling_seconds(len(worlds) * (config.probe_clips or 0))
    elif settings.data.source == "shapes":
        seconds += costs.sampling_seconds(config.prompts) + _TASKS * costs.sampling_seconds(config.tasks)
    once = speed.once(*COMPILING)
    return Part(
        name=EVALUATION, total=JUDGEMENTS, unit="judgements", each=seconds / JUDGEMENTS, once=once, compiling=once
    )
