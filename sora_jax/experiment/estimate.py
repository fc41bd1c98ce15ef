"""How long a run will take on this machine, before it begins: its arithmetic over what the machine can do.

The result is rough; `RunProgress` corrects it as the run proceeds.
"""

import dataclasses

from jax.sharding import Mesh

from sora_jax.experiment.kinds import KINDS, names_until
from sora_jax.experiment.schema import Settings
from sora_jax.experiment.speed import CONVOLUTIONS, Costs, Speed
from sora_jax.train.progress import Part
from sora_jax.train.workdir import Workdir

EVALUATION = "evaluation"
# Of the autoencoder, of the loss on held-out clips, of held-out prompts, of tasks.
JUDGEMENTS = 4
# Seconds to compile its programs, and to load them where they lie compiled.
COMPILING = (25.0, 12.0)
# How often `evaluation.tasks` videos are made: for each task, and for sizes and durations never seen.
_TASKS = 13


def expected_parts(
    settings: Settings, mesh: Mesh, workdir: Workdir, speed: Speed, *, clips: int, until: str | None
) -> list[Part]:
    """Returns the stages of a run over `clips` clips, those after `until` left out, and its evaluation.

    What is done according to the workdir is marked as such.
    """
    finished, costs, parts = workdir.facts()["stages"], Costs(settings, mesh, speed), []
    for name in names_until(settings, until):
        part = KINDS[settings.stages[name].kind].expected(settings, name, costs, workdir, clips=clips)
        if name in finished:
            part = dataclasses.replace(part, took=float(finished[name]["seconds"]), done=0)
        parts.append(part)
    return [*parts, _evaluation(settings, costs)] if until is None and settings.has_autoencoder else parts


def _evaluation(settings: Settings, costs: Costs) -> Part:
    """Returns what is expected of the evaluation."""
    config, speed = settings.evaluation, costs.speed
    seconds = config.clips * speed.seconds(costs.pixels * (costs.encode + costs.decode), CONVOLUTIONS)
    if settings.data.source == "shapes":
        seconds += costs.sampling_seconds(config.prompts) + _TASKS * costs.sampling_seconds(config.tasks)
    once = speed.once(*COMPILING)
    return Part(
        name=EVALUATION, total=JUDGEMENTS, unit="judgements", each=seconds / JUDGEMENTS, once=once, compiling=once
    )
