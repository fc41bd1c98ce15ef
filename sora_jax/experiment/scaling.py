"""The runs of a study of scale, and what they left: every width at every budget and seed, each a finished schedule.

The unit of budgets is the FLOP of the config as it stands, of all stages that train the transformer. A run has as many
steps of each of them as its budget pays for at its width, in the proportion of the config, and so is its warm-up.
"""

import dataclasses
import functools
import statistics
from collections.abc import Sequence
from typing import Any

from sora_jax.core.errors import UserError
from sora_jax.core.tree import abstract_model, count_parameters
from sora_jax.evaluation.budgets import BudgetPoint
from sora_jax.experiment.children import Child, Study, run_children, shared_child
from sora_jax.experiment.kinds import training
from sora_jax.experiment.loading import build_generator
from sora_jax.experiment.programs import work_of_rows
from sora_jax.experiment.schema import ScalingConfig, Settings
from sora_jax.experiment.stage_settings import TEXT_TO_VIDEO
from sora_jax.models.flops import step_flops
from sora_jax.train.metrics import read_metrics
from sora_jax.train.workdir import Workdir

# Fewer show nothing but the first noise of training.
_LEAST_STEPS = 10
# Of the names of parameters: the text encoder is the same at every width.
_TRANSFORMER = "transformer."
# In lines of metrics of steps.
_RATES = {"seconds_per_step", "tokens_per_second", "flops_per_second"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rung:
    """A run of the ladder.

    Attributes:
      child: Its folder and its config.
      width: Of the transformer.
      depth: Its blocks.
      compute: The budget, times the FLOP of the config as it stands.
      seed: Of the run.
      steps: Of each stage that trains the transformer.
      flops: Planned for them.
    """

    child: Child
    width: int
    depth: int
    compute: float
    seed: int
    steps: dict[str, int]
    flops: float


def scaling_of(settings: Settings) -> ScalingConfig:
    """Returns what the config says of the study; raises UserError where it says nothing."""
    if settings.scaling is None:
        raise UserError("the config has no group `scaling`: start it from configs/base.py")
    return settings.scaling


def ladder(study: Study) -> tuple[Child, list[Rung]]:
    """Returns (the run that all others share, the others: budgets rising, of each all widths, of each all seeds).

    Raises UserError for a run without a transformer, a width that the heads do not divide, or that a budget pays too
    few steps for.
    """
    settings = study.settings()
    config = scaling_of(settings)
    if not settings.stages_of(TEXT_TO_VIDEO):
        raise UserError(f"the run {', '.join(settings.run)} trains no transformer: a study of scale needs one")
    first, taken = shared_child(study)
    unit = sum(_stage_flops(settings).values())
    rungs = []
    for compute in config.compute:
        for width, depth in zip(config.widths, config.depths, strict=True):
            shape = _shape(settings, width, depth)
            sized = study.settings(Child(name="", changes=shape))
            factor = compute * unit / sum(_stage_flops(sized).values())
            steps = {name: round(factor * _steps(sized, name)) for name in _stage_flops(sized)}
            if min(steps.values()) < _LEAST_STEPS:
                name = min(steps, key=lambda name: steps[name])
                raise UserError(
                    f"a budget of {compute:g} pays for {steps[name]} steps of {name} at width {width}, and fewer than "
                    f"{_LEAST_STEPS} tell nothing: raise stages.{name}.steps, or leave out this budget or width"
                )
            flops = sum(_step_flops(sized) * count for count in steps.values())
            for seed in config.seeds:
                changes = {**taken, **shape, **_lengths(sized, steps, factor), "seed": seed}
                child = Child(name=f"w{width}-c{compute:g}-s{seed}", changes=changes)
                fixed: dict[str, Any] = {"width": width, "depth": depth, "compute": compute, "seed": seed}
                rungs.append(Rung(child=child, steps=steps, flops=flops, **fixed))
    return first, rungs


def _shape(settings: Settings, width: int, depth: int) -> dict[str, Any]:
    """Returns the changes that make a transformer of this width: the width of heads and the ratio of the MLP stay."""
    transformer = settings.transformer
    of_head = transformer.width // transformer.heads
    if width % of_head:
        raise UserError(
            f"scaling.widths {width} is no multiple of {of_head}, the width of a head (transformer.width "
            f"{transformer.width} of {transformer.heads} heads): give one that is, or other heads"
        )
    return {
        "transformer.width": width,
        "transformer.depth": depth,
        "transformer.heads": width // of_head,
        "transformer.mlp_width": round(width * transformer.mlp_width / transformer.width),
    }


def _lengths(settings: Settings, steps: dict[str, int], factor: float) -> dict[str, int]:
    """Returns the changes that make schedules of so many steps."""
    found = {}
    for name, count in steps.items():
        warmup = training(settings)[name].of(settings, name).schedule.warmup_steps
        found[f"stages.{name}.steps"] = count
        found[f"stages.{name}.schedule.warmup_steps"] = min(count // 2, round(factor * warmup))
    return found


def _steps(settings: Settings, name: str) -> int:
    return training(settings)[name].of(settings, name).steps


def _stage_flops(settings: Settings) -> dict[str, float]:
    """Returns the FLOP of each stage that trains the transformer."""
    each = _step_flops(settings)
    return {name: each * _steps(settings, name) for name in settings.stages_of(TEXT_TO_VIDEO)}


def _step_flops(settings: Settings) -> float:
    """Returns the FLOP of a step whose rows hold as many clips as they may, as rows about do."""
    packing = settings.packing
    work = work_of_rows(settings, segment_tokens=max(1, packing.tokens // packing.segments))
    return step_flops(settings.transformer, settings.text_encoder, patch_width=settings.patch_width, work=work)


def make_runs(study: Study, first: Child, rungs: Sequence[Rung]) -> None:
    """Makes the runs that are missing, `first` before all others, and says how long the rest will take.

    Raises as `run_children`, and UserError once a run was not judged on held-out clips.
    """
    planned = {rung.child.name: rung.flops for rung in rungs}
    left = sum(planned.values())
    made = spent = 0.0
    print(f"{len(rungs)} runs of {left:.3g} FLOP in all, and one for what they share", flush=True)

    def done(child: Child, seconds: float | None) -> None:
        nonlocal left, made, spent
        if child.name not in planned:
            return
        _held_out(study.workdir(child))
        left -= planned[child.name]
        if seconds is not None:
            made, spent = made + planned[child.name], spent + seconds
            rest = f"; about {left / made * spent / 60:.0f} min are left" if left > 0 else ""
            print(f"  {child.name} took {seconds / 60:.1f} min{rest}", flush=True)

    run_children(study, [first, *(rung.child for rung in rungs)], done=done)


def results_of(study: Study, rungs: Sequence[Rung]) -> list[dict[str, Any]]:
    """Returns what finished runs came to, as `scaling.json` lists them.

    Of each its shape, `parameters` of the transformer, `tokens` trained on, `flops` (model FLOP, `models.flops`), the
    held-out `loss` with its `stderr` over clips, `scores` by name, in [0, 1], and `seconds`. Raises UserError where it
    was not judged on held-out clips, or not on as many as the others.
    """
    _check_alike([study.workdir(rung.child) for rung in rungs])
    settings = study.settings()
    found = [_result_of(settings, study.workdir(rung.child), rung) for rung in rungs]
    shapes = {(rung.width, rung.depth): rung for rung in rungs}
    parameters = {shape: _parameters(study.settings(rung.child)) for shape, rung in shapes.items()}
    return [{**run, "parameters": parameters[run["width"], run["depth"]]} for run in found]


def _result_of(settings: Settings, workdir: Workdir, rung: Rung) -> dict[str, Any]:
    """Returns what one of them came to, but for its parameters; `settings` are what all have in common."""
    facts, held_out = workdir.facts(), _held_out(workdir)
    tokens, flops = _trained_on(workdir, rung.steps)
    last = settings.stages_of(TEXT_TO_VIDEO)[-1]
    scores = workdir.read_json("evaluation.json").get("shapes", {})
    return {
        "name": rung.child.name,
        "width": rung.width,
        "depth": rung.depth,
        "compute": rung.compute,
        "seed": rung.seed,
        "held_back": rung.compute >= scaling_of(settings).first_held_back,
        "steps": rung.steps,
        "tokens": tokens,
        "flops": flops,
        "learning_rate": training(settings)[last].of(settings, last).schedule.learning_rate,
        "loss": held_out["loss"],
        "stderr": held_out.get("stderr"),
        "scores": {name: value for name, value in scores.items() if isinstance(value, float)},
        "seconds": facts["seconds"],
    }


def _trained_on(workdir: Workdir, steps: dict[str, int]) -> tuple[float, float]:
    """Returns the tokens and the model FLOP of so many steps of each stage, by its lines of metrics.

    What run.json says of a stage is of the steps since its last start alone, which may be none. Raises UserError where
    lines are missing.
    """
    tokens = flops = 0.0
    metrics = read_metrics(workdir.path)
    for name, count in steps.items():
        before = 0
        for line in metrics:
            if line["stage"] == name and line.keys() >= _RATES:
                seconds = (line["step"] - before) * line["seconds_per_step"]
                tokens += seconds * line["tokens_per_second"]
                flops += seconds * line["flops_per_second"]
                before = line["step"]
        if before != count:
            raise UserError(
                f"{workdir.path} has lines of metrics of {name} up to step {before} of {count}, and the study counts "
                "their tokens: put back a copy of metrics.jsonl, or remove that folder, and the run is made again"
            )
    return tokens, flops


def _held_out(workdir: Workdir) -> dict[str, Any]:
    """Returns how a finished run does on held-out clips; raises UserError where it was not judged on any."""
    held_out = workdir.read_json("evaluation.json").get("heldout", {})
    if "loss" not in held_out:
        raise UserError(
            f"{workdir.path} has no held-out loss, which the study fits: give data.heldout_share a share of the clips, "
            "or take the drawn world"
        )
    return held_out


def _check_alike(workdirs: Sequence[Workdir]) -> None:
    """Raises UserError where losses are over different numbers of clips, and so over different clips."""
    judged = [(workdir.path, _held_out(workdir).get("clips")) for workdir in workdirs]
    for path, clips in judged[1:]:
        first, count = judged[0]
        if clips != count:
            raise UserError(
                f"{path} was judged on {clips} held-out clips and {first} on {count}: judge one of them anew, with "
                "`python -m sora_jax.evaluate --part=heldout --clips=N --workdir=DIR`"
            )


def _parameters(settings: Settings) -> int:
    """Returns how many parameters the transformer has."""
    shapes = abstract_model(functools.partial(build_generator, settings))[1]
    return count_parameters({name: leaf for name, leaf in shapes.items() if name.startswith(_TRANSFORMER)})


def cells_of(runs: Sequence[dict[str, Any]]) -> list[BudgetPoint]:
    """Returns the runs by width and budget, budgets rising."""
    groups: dict[tuple[float, int], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["compute"], run["width"]), []).append(run)
    return [
        BudgetPoint(
            width=width,
            compute=compute,
            parameters=some[0]["parameters"],
            tokens=statistics.fmean(run["tokens"] for run in some),
            flops=statistics.fmean(run["flops"] for run in some),
            losses=tuple(run["loss"] for run in some),
        )
        for (compute, width), some in sorted(groups.items())
    ]
