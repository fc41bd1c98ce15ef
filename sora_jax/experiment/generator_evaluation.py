"""What the generator of a run is judged on, and the judgements: held-out prompts, tasks, sizes, probes."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sora_jax.core.distributed import is_first
from sora_jax.core.errors import UserError
from sora_jax.core.files import write_atomically
from sora_jax.data.media.writer import write_clip
from sora_jax.data.sources.shapes_prompts import PromptCase, heldout_pair_prompts, heldout_prompts, open_prompts
from sora_jax.data.sources.shapes_world import ShapesWorld
from sora_jax.evaluation import show
from sora_jax.evaluation.controlling import judge_control
from sora_jax.evaluation.evaluator import Judged, VideoScores, judge_prompts
from sora_jax.evaluation.expanding import judge_expansion
from sora_jax.evaluation.probes.judge import judge_probes
from sora_jax.evaluation.refining import judge_refining
from sora_jax.evaluation.sizes import judge_sizes
from sora_jax.evaluation.tasks import judge_tasks
from sora_jax.experiment import sample_log
from sora_jax.experiment.expanders import OWN_CAPTIONER, trained_expander
from sora_jax.experiment.loading import limits_of, solver_config
from sora_jax.experiment.models import RunModels
from sora_jax.experiment.schema import Settings
from sora_jax.experiment.stage_settings import CAPTIONER, TEXT_TO_VIDEO
from sora_jax.generate.limits import ModelLimits
from sora_jax.video import shapes

# Of the noise of evaluation; training and examples use others.
_EVALUATION_SEED = 1_000
# Of which shares are taken: enough for a hundredth.
_SCENES = 8_192


def prompt_sets(settings: Settings) -> dict[str, list[PromptCase]]:
    """Returns the held-out prompts of a drawn world by the name of their set; none where nothing answers them.

    `shapes` are about one object; where the world shows two `shapes_pairs` are about both; where captions may have
    faults `shapes_open` leave things out.
    """
    # A model that is shown frames makes nothing of a prompt alone.
    has_generator = bool(settings.stages_of(TEXT_TO_VIDEO)) and settings.shown is None
    count = settings.evaluation.prompts
    drawn = settings.data.source == "shapes" and settings.shapes.worlds is None
    if not (has_generator and drawn and count):
        return {}
    draws = settings.evaluation.draws
    sets = {"shapes": heldout_prompts(count) * draws}
    if settings.shapes.max_objects == 2:
        sets["shapes_pairs"] = heldout_pair_prompts(count) * draws
    if settings.shapes.caption_faults is not None:
        # A third as many: an evaluation is to take seconds.
        sets["shapes_open"] = open_prompts(-(-count // 3)) * draws
    return sets


def without_prompts(settings: Settings) -> str:
    """Returns why there are no `prompt_sets`, and what to do."""
    if not settings.stages_of(TEXT_TO_VIDEO):
        part = "captions" if settings.stages_of(CAPTIONER) else "autoencoder"
        return f"this run trains no transformer, which makes videos of prompts: pass --part={part}"
    if settings.shown is not None:
        return "a model that is shown frames makes nothing of a prompt alone: pass --part=heldout"
    if settings.data.source == "shapes" and settings.shapes.worlds is None:
        return (
            "evaluation.prompts is 0, and so no prompt is judged: give this run's `main` --config.evaluation.prompts=24"
        )
    return "only of a drawn world can be told how prompts are followed: pass --part=heldout"


def clips_of_tasks(settings: Settings, part: str, count: int | None) -> int:
    """Returns how many clips tasks are to be judged on, 0 for not; UserError where they are asked for and cannot be."""
    limits = limits_of(settings)
    possible = limits.knows and limits.frames > 1
    if part == "tasks" and not possible:
        raise UserError("tasks need a run whose samples are videos, trained with known tokens; this is none")
    if part == "tasks":
        return _two_or_more(count, settings.evaluation.tasks)
    return settings.evaluation.tasks if part == "all" and possible else 0


def clips_of_probes(settings: Settings, part: str, count: int | None) -> int:
    """Returns how many clips of each world are gone on with, 0 for none; UserError where that is asked for in vain."""
    possible = settings.probed and limits_of(settings).knows
    if part == "probes" and not possible:
        raise UserError(
            "probes need a run on further worlds, trained with known tokens; this is none: train configs/worlds.py"
        )
    if part == "probes":
        return count or settings.evaluation.probe_clips or 1
    return (settings.evaluation.probe_clips or 0) if part == "all" and possible else 0


def clips_of_refining(settings: Settings, part: str, count: int | None) -> int:
    """Returns how many clips refining is judged on, 0 for not; UserError where it is asked for in vain."""
    if part != "refine":
        return 0
    _check_videos(settings, "refining")
    return _two_or_more(count, settings.evaluation.clips)


def _two_or_more(count: int | None, usual: int) -> int:
    """Returns how many clips are judged where one is too few; UserError where one is asked for."""
    if count == 1:
        raise UserError("--clips=1 is too few to judge by: pass 2 or more")
    return count or max(2, usual)


def clips_of_expansion(settings: Settings, part: str, count: int | None) -> int:
    """Returns how many prompts are written out, 0 for not; UserError where it is asked for in vain."""
    if part != "expand":
        return 0
    _check_videos(settings, "expansion")
    return count or settings.evaluation.prompts * settings.evaluation.draws


def clips_of_control(settings: Settings, part: str, count: int | None) -> int:
    """Returns how many clips control is judged on, 0 for not; UserError where it is asked for in vain."""
    if part != "control":
        return 0
    _check_videos(settings, "control")
    return count or settings.evaluation.clips


def _check_videos(settings: Settings, what: str) -> None:
    if limits_of(settings).frames < 2:
        raise UserError(f"{what} is judged on videos, and the samples of this run are images (sampling.frames 1)")


def clips_of_parts(settings: Settings, part: str, count: int | None, *, prompts: bool) -> dict[str, int]:
    """Returns how many clips each part is judged on, 0 for not; `prompts`: whether the world has some that are judged.

    Raises UserError for a part that is asked for in vain.
    """
    return {
        "tasks": clips_of_tasks(settings, part, count) if prompts else 0,
        "refine": clips_of_refining(settings, part, count),
        "control": clips_of_control(settings, part, count),
        "expand": clips_of_expansion(settings, part, count),
        "probes": clips_of_probes(settings, part, count),
    }


class GeneratorJudge:
    """The generator of a run, and what it is judged on."""

    def __init__(self, models: RunModels, settings: Settings):
        self._models, self._settings, self._params = models, settings, models.params
        solver, sampling = solver_config(settings), settings.sampling
        self._sampler = models.sampler(solver)
        self._exact = models.sampler(dataclasses.replace(solver, cache=0.0))
        self._facts = {**models.facts(), "solver": f"{sampling.solver} {sampling.steps}"}
        self._folder = models.workdir.path / "samples" / "evaluation"
        self._folder.mkdir(parents=True, exist_ok=True)

    def follow(self, sets: dict[str, list[PromptCase]]) -> dict[str, Any]:
        """Returns by set how far samples follow its prompts, after writing a sheet of them, named as the set."""
        sampling = self._settings.sampling
        result = {}
        for name, cases in sets.items():
            judged = self._followed(cases)
            self._show(name, judged.clips, judged.prompts)
            self._show_verdicts(name, judged)
            result[name] = {**judged.facts(), **self._facts}
            if sampling.cache > 0:
                exact = self._followed(cases, exact=True)
                differences = [np.abs(a.astype(np.float32) - b) for a, b in zip(judged.clips, exact.clips, strict=True)]
                result[name]["cache"] = sampling.cache
                result[name]["cache_error"] = float(np.mean(differences))
        return result

    def clips(
        self, sets: dict[str, list[PromptCase]], limits: ModelLimits, counts: Mapping[str, int]
    ) -> dict[str, Any]:
        """Returns by part what is judged on clips, on as many of each as `clips_of_parts` says."""
        found: dict[str, Any] = {}
        if counts["tasks"]:
            found |= self.tasks(sets["shapes"], limits, count=counts["tasks"])
        if counts["refine"]:
            found["refine"] = self.refining(sets["shapes"], limits, count=counts["refine"])
        if counts["control"]:
            found["control"] = self.control(sets["shapes"], limits, count=counts["control"])
        if counts["expand"]:
            found["expand"] = self.expansion(sets["shapes"], limits, count=counts["expand"])
        if counts["probes"]:
            found["probes"] = self.probes(limits, count=counts["probes"])
        return found

    def tasks(self, cases: list[PromptCase], limits: ModelLimits, *, count: int) -> dict[str, Any]:
        """Returns how well each task does on `count` held-out clips, and unseen sizes on as many prompts."""
        judged = judge_tasks(self._sampler, self._params, limits, self._world(limits, count=count))
        self._show_each("task", judged)
        sizes = judge_sizes(self._sampler, self._params, limits, cases[:count], seed=_EVALUATION_SEED)
        parts = {f"task_{name}": scores for name, scores in judged.scores.items()}
        for name, one in sizes.judged.items():
            self._show_verdicts(f"size_{name}", one)
        return {**parts, **{f"size_{name}": scores for name, scores in sizes.scores.items()}}

    def refining(self, cases: list[PromptCase], limits: ModelLimits, *, count: int) -> dict[str, Any]:
        """Returns how much is won by refining, on `count` held-out clips and as many prompts."""
        world = self._world(limits, count=count)
        judged = judge_refining(self._sampler, self._params, limits, world, cases[:count], seed=_EVALUATION_SEED)
        # Without a refiner nothing is beside.
        facts = self._facts if limits.refiner is None else self._facts_beside(limits.refiner.config.steps)
        return self._show_each("refine", judged) | facts

    def control(self, cases: list[PromptCase], limits: ModelLimits, *, count: int) -> dict[str, Any]:
        """Returns how well controls are followed, on `count` held-out clips and as many prompts."""
        world = self._world(limits, count=count)
        judged = judge_control(self._sampler, self._params, limits, world, cases[:count], seed=_EVALUATION_SEED)
        return self._show_each("control", judged) | self._facts_beside()

    def _facts_beside(self, steps: int | None = None) -> dict[str, Any]:
        """Returns facts of what is made where clips are beside, in so many steps; None: in as many as are usual."""
        sampling = self._settings.sampling
        return {**self._facts, "solver": f"{sampling.solver} {steps or sampling.context_steps or sampling.steps}"}

    def expansion(self, cases: list[PromptCase], limits: ModelLimits, *, count: int) -> dict[str, Any]:
        """Returns what the captioner makes of short prompts, of `count` cases at most, and how that is followed.

        Written as well, with the texts.
        """
        settings = self._settings
        expander = trained_expander(self._models, limits, settings.sampling.captioner or OWN_CAPTIONER)
        world = settings.shapes.world(seed=settings.seed, split="train")
        scenes = [ShapesWorld(world).scene(number) for number in range(min(world.num_clips, _SCENES))]
        judged = judge_expansion(expander, self._followed, cases[:count], scenes, seed=_EVALUATION_SEED)
        for name, one in judged.judged.items():
            self._show(f"expand_{name}", one.clips, one.prompts)
        found = {**judged.scores, **self._facts}
        self._models.workdir.write_json("samples/evaluation/expand.json", found)
        lines = [f"{one.prompt} | {one.text} | {'; '.join(one.faults)}\n" for one in judged.expansions]
        if is_first():
            write_atomically(
                self._folder / "expand.txt", f"prompt | what became of it | why it stays\n{''.join(lines)}"
            )
        return found

    def _followed(self, cases: Sequence[PromptCase], *, exact: bool = False) -> Judged:
        """Returns the verdict on what is made of prompts, of the size of samples; `exact`: reusing no earlier work."""
        settings, sampling = self._settings, self._settings.sampling
        size = (sampling.frames, *sampling.size)
        grid = shapes.clip_token_grid(size, stride=settings.stride, patch=settings.transformer.patch)
        sampler = self._exact if exact else self._sampler
        return judge_prompts(sampler, self._params, cases, grid=grid, fps=sampling.fps, seed=_EVALUATION_SEED)

    def _world(self, limits: ModelLimits, *, count: int) -> ShapesWorld:
        """Returns `count` held-out clips of one moving object, at the size and of the length of samples."""
        settings = self._settings
        drawn = settings.shapes.world(seed=settings.seed, split="heldout", num_clips=count)
        of_samples = {"sides": (limits.size,), "frames": (limits.frames,), "image_share": 0.0, "max_objects": 1}
        return ShapesWorld(dataclasses.replace(drawn, **of_samples))

    def probes(self, limits: ModelLimits, *, count: int) -> dict[str, Any]:
        """Returns how far what is made keeps to the drawn worlds, on `count` clips of each."""
        settings = self._settings
        spec = settings.shapes.worlds_spec(seed=settings.seed, split="heldout")
        judged = judge_probes(self._sampler, self._params, limits, spec, count=count, seed=_EVALUATION_SEED)
        self._show_each("probe", judged)
        print(f"probes, by what is shown:\n{show.table(judged.scores['groups'])}", flush=True)
        return {**judged.scores, **self._facts}

    def _show_each(self, part: str, judged: VideoScores) -> dict[str, Any]:
        """Writes the sheets of what was made; returns the scores."""
        for name, clips in judged.clips.items():
            self._show(f"{part}_{name}", clips, judged.prompts[name])
        return judged.scores

    def _show(self, name: str, clips: list[np.ndarray], prompts: list[str]) -> None:
        sample_log.show_sheet(self._folder, name, clips, prompts, fps=self._settings.sampling.fps)

    def _show_verdicts(self, name: str, judged: Judged) -> None:
        """Prints the table of groups and writes the picture of every sample beside what the oracle says of it."""
        if judged.groups:
            print(f"{name}, by group:\n{show.table(judged.groups)}", flush=True)
        if is_first():
            write_clip(self._folder / f"{name}_verdicts.png", show.verdicts_picture(judged)[None], fps=1.0)
