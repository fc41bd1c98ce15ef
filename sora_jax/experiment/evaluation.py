"""How good a run's models are, in numbers, tables and pictures, written to its workdir and printed."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import jax
from absl import logging

from sora_jax.core.distributed import is_first
from sora_jax.core.errors import UserError
from sora_jax.core.typed import typed_arguments
from sora_jax.data.clips import BadClip, Clip
from sora_jax.data.fitting import Collection, FittedSource
from sora_jax.data.media.writer import write_clip
from sora_jax.data.sources.base import FolderSource, read_ahead
from sora_jax.data.sources.remote import is_remote
from sora_jax.evaluation import show
from sora_jax.evaluation.features import load_video_features
from sora_jax.evaluation.reconstruction import Networks, ReconstructionScores, judge_autoencoder
from sora_jax.experiment import sample_log
from sora_jax.experiment.caption_evaluation import has_captions, judge_captions
from sora_jax.experiment.datasets import clip_limits, curate_all, open_collections
from sora_jax.experiment.estimate import JUDGEMENTS
from sora_jax.experiment.generator_evaluation import (
    GeneratorJudge,
    clips_of_parts,
    prompt_sets,
    without_prompts,
)
from sora_jax.experiment.heldout import make_loss_grid
from sora_jax.experiment.judged_clips import heldout_of
from sora_jax.experiment.kinds.prepare import prepare_stages
from sora_jax.experiment.loading import Weights, limits_of
from sora_jax.experiment.models import RunModels
from sora_jax.experiment.schema import Settings
from sora_jax.experiment.stage_settings import TEXT_TO_VIDEO
from sora_jax.models.codec import Codec
from sora_jax.models.perceptual import load_perceptual
from sora_jax.train.workdir import Workdir

# Sizes of the clips that the autoencoder is judged on: each is compiled for.
_SIZES_JUDGED = 12

# What may be evaluated by itself.
EvaluationPart = Literal[
    "autoencoder",
    "heldout",
    "generator",
    "tasks",
    "distribution",
    "probes",
    "refine",
    "control",
    "expand",
    "captions",
    "all",
]
PARTS: tuple[EvaluationPart, ...] = get_args(EvaluationPart)
# Of these what answers a prompt is read back: the world must be drawn.
_OF_PROMPTS: tuple[EvaluationPart, ...] = ("generator", "tasks", "refine", "control", "expand")
# No part of `all`.
_APART: tuple[EvaluationPart, ...] = ("distribution", "refine", "control", "expand")
# What parts say of the weights that they judge, where they judge any (`RunModels.facts`).
_OF_WEIGHTS = {"stage", "step", "weights", "ema", "lora"}
# Parts that do not use what may be asked for.
_UNUSED: Mapping[str, tuple[EvaluationPart, ...]] = {
    "clips": ("generator", "distribution"),
    "draws": ("autoencoder", "heldout", "distribution", "probes", "captions"),
    "captioner": tuple(part for part in PARTS if part != "expand"),
    "lpips": tuple(part for part in PARTS if part not in ("autoencoder", "all")),
}
# Instead of a folder: clips of the drawn world.
DRAWN = "shapes"


@typed_arguments
def changed(
    settings: Settings,
    *,
    draws: int | None = None,
    guidance: float | None = None,
    captioner: str | None = None,
    solver: str | None = None,
    steps: int | None = None,
    cache: float | None = None,
) -> Settings:
    """Returns the settings with other samples: draws of each prompt, scale of the guidance; other keys of sampling."""
    asked = {"captioner": captioner, "solver": solver, "steps": steps, "cache": cache}
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if steps is not None:
        given["context_steps"] = None
    sampling, evaluation = dataclasses.replace(settings.sampling, **given), settings.evaluation
    if guidance is not None:
        sampling = dataclasses.replace(sampling, guidance=dataclasses.replace(sampling.guidance, scale=guidance))
    if draws is not None:
        evaluation = dataclasses.replace(evaluation, draws=draws)
    return dataclasses.replace(settings, sampling=sampling, evaluation=evaluation)


def check_asked(
    part: EvaluationPart, data: str | None, weights: Weights, *, ema: float | None = None, **given: Any
) -> None:
    """Raises UserError where a part cannot be judged on the data, or with the weights, that are asked for.

    So where it does not use what is `given`, by name, and is not None.
    """
    if part not in PARTS:
        raise UserError(f"part {part!r} is not one of: {', '.join(PARTS)}")
    for name, value in given.items():
        if value is not None and part in _UNUSED[name]:
            how = "; --samples is how many it takes" if (name, part) == ("clips", "distribution") else ""
            raise UserError(f"--{name} changes nothing of --part={part}: leave it out{how}")
    if (clips := given.get("clips")) is not None and clips < 1:
        raise UserError(f"--clips={clips} must be at least 1")
    if part == "autoencoder" and weights != "ema":
        raise UserError(
            f"--weights={weights} are of the transformer: the autoencoder is an average, judge another part"
        )
    if part == "autoencoder" and ema is not None:
        raise UserError(f"--ema={ema:g} is of the transformer: the autoencoder has one average, judge another part")
    if data is not None and part != "autoencoder":
        raise UserError(f"--data is for the autoencoder alone: pass --part=autoencoder, not {part}")
    if data not in (None, DRAWN) and not is_remote(data) and not Path(data).is_dir():
        raise UserError(f"--data={data} is not a folder: give one with videos or images")


def load_networks(lpips: str | None, video_features: str | None) -> Networks:
    """Returns the networks of files with the weights of LPIPS and of a network of videos, None for no file."""
    return Networks(
        perceptual=jax.device_put(load_perceptual(lpips)) if lpips else None,
        video=load_video_features(video_features),
    )


def evaluate(
    models: RunModels,
    settings: Settings,
    *,
    part: EvaluationPart = "all",
    count: int | None = None,
    networks: Networks | None = None,
    judged: Callable[[int], None] = lambda done: None,
    work: contextlib.AbstractContextManager[None] | None = None,
) -> dict[str, Any]:
    """Returns the metrics of a run's models, after writing them to evaluation.json and printing them.

    `autoencoder`: as `evaluation.reconstruction` says, on `count` (by default as configured) held-out clips where there
    are any (`held_out`); a picture of the worst is written. `heldout`: the loss of the generator on `count` held-out
    clips, as `evaluation.loss_grid` says. For the drawn world the sets of `generator_evaluation.prompt_sets`; `tasks`
    and `sizes`, as `evaluation.tasks` says, on `count` clips; asked for by themselves `refine`, `control` and `expand`,
    as `evaluation.refining`, `evaluation.controlling` and `evaluation.expanding` say; of a captioner `captions`; of
    further drawn worlds `probes`, as `evaluation.probes.judge` says. Sheets of samples are written beside.
    `settings` are those of the run, or `changed`. The autoencoder is always an average, as what was prepared is made
    with it. With one of `PARTS` alone the file keeps the others, with all what `_apart` finds. `judged` is called with
    how many of the `JUDGEMENTS` are done, `work` is entered once all is loaded.
    """
    workdir, codec, sets = models.workdir, models.codec, prompt_sets(settings)
    if part in _OF_PROMPTS and not sets:
        raise UserError(without_prompts(settings))
    counts = clips_of_parts(settings, part, count, prompts=bool(sets))
    known = workdir.read_json("evaluation.json") if (workdir.path / "evaluation.json").exists() else {}
    result: dict[str, Any] = {} if part == "all" else known
    asked = counts["probes"] or (part in (*_OF_PROMPTS, "all") and sets)
    maker = GeneratorJudge(models, settings) if asked else None
    with work or contextlib.nullcontext():
        if part in ("autoencoder", "all"):
            result |= _autoencoder(workdir, settings, codec, networks, count=count, needed=part == "autoencoder")
            judged(1)
        if part in ("heldout", "all"):
            result |= _heldout(models, settings, count=count, needed=part == "heldout")
            judged(2)
        if part == "captions" or (part == "all" and has_captions(settings)):
            result |= judge_captions(models, settings, count=count)
        if maker is not None and sets and part in ("generator", "all"):
            result |= maker.follow(sets)
            judged(3)
        if maker is not None:
            result |= maker.clips(sets, limits_of(settings), counts)
    result |= _apart(models, known) if part == "all" else {}
    judged(JUDGEMENTS)
    workdir.write_json("evaluation.json", result)
    print_metrics(result)
    return result


def _apart(models: RunModels, known: dict[str, Any]) -> dict[str, Any]:
    """Returns what `all` does not make of results that are there, if of the same weights or of clips that were given.

    Asked once all is judged: of two experts `models` then knows both.
    """
    found = {name: known[name] for name in _APART if name in known}
    return {
        name: values
        for name, values in found.items()
        if "stage" not in values or {key: values[key] for key in _OF_WEIGHTS & values.keys()} == models.facts()
    }


def _autoencoder(
    workdir: Workdir, settings: Settings, codec: Codec, networks: Networks | None, *, count: int | None, needed: bool
) -> dict[str, Any]:
    """Returns how the autoencoder does; nothing where clips are not there, unless this is `needed`."""
    try:
        clips, held_out = evaluation_clips(workdir, settings, count=count)
    except UserError as error:
        if needed:
            raise UserError(f"{error}; with --data=DIR the autoencoder is judged on other clips") from error
        logging.warning("the autoencoder is not judged: %s; evaluate --data=DIR judges it on other clips", error)
        return {}
    verdict = judge_autoencoder(codec, clips, networks)
    _show_verdict(workdir, verdict, "worst_reconstructions")
    return {"autoencoder": {**verdict.facts(), "held_out": held_out}}


def _heldout(models: RunModels, settings: Settings, *, count: int | None, needed: bool) -> dict[str, Any]:
    """Returns the loss of the generator on held-out clips; nothing where there are none, unless this is `needed`."""
    if not settings.stages_of(TEXT_TO_VIDEO) or not prepare_stages(settings):
        if needed:
            raise UserError("this run trains no transformer, of which a held-out loss is: pass --part=autoencoder")
        return {}
    try:
        clips = heldout_of(models.workdir, settings, models.codec, count=count)
        params = models.params
        if not params:
            raise UserError("there are two experts of the noise levels, each with a loss of its own: see its training")
    except UserError as error:
        if needed:
            raise
        logging.warning("there is no held-out loss: %s", error)
        return {}
    table = make_loss_grid(settings, models.structure(), clips, mesh=models.mesh)(params)
    print(show.table(table.facts()["by_level"]), flush=True)
    return {"heldout": {**table.facts(), **models.facts()}}


def evaluate_data(
    models: RunModels, settings: Settings, path: str, *, count: int | None = None, networks: Networks | None = None
) -> dict[str, Any]:
    """Returns how a run's autoencoder does on the videos and images of a folder, captioned or not, fitted as its own.

    The path `DRAWN` stands for held-out clips of the drawn world, whatever the run was trained on.

    Up to `count` of them, by default as configured, spread evenly; those that cannot be used are named and counted.
    Written to evaluation_autoencoder.json and printed.
    """
    workdir, codec = models.workdir, models.codec
    data = settings.data
    count = count or settings.evaluation.clips
    if path == DRAWN:
        source = settings.shapes.source(seed=settings.seed, split="heldout", num_clips=count)
    else:
        source = FolderSource(path, captions_required=False, max_frames=data.max_frames, fps=data.fps)
    limits = clip_limits(settings, data)
    skipped = []

    def read(index: int) -> Clip | BadClip:
        try:
            return limits.fit(source, index).clip
        except BadClip as error:
            return error

    def usable() -> Iterator[Clip]:
        indices = sample_log.evenly(len(source), count)
        with read_ahead(read, indices, readers=data.readers) as found:
            for one in found:
                if isinstance(one, BadClip):
                    logging.warning("left out: %s", one)
                    skipped.append(one.source_id)
                else:
                    yield one

    verdict = judge_autoencoder(codec, usable(), networks)
    result = {"autoencoder": {**verdict.facts(), "data": path, "skipped": len(skipped)}}
    _show_verdict(workdir, verdict, "worst_reconstructions_data")
    workdir.write_json("evaluation_autoencoder.json", result)
    print_metrics(result)
    return result


def _show_verdict(workdir: Workdir, verdict: ReconstructionScores, name: str) -> None:
    """Prints the table and writes the picture of the worst clips."""
    print(show.table([*verdict.groups, {"frames": "all", "size": "all", **verdict.total}]), flush=True)
    if not is_first():
        return
    folder = workdir.path / "samples" / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    write_clip(folder / f"{name}.png", show.worst_picture(verdict.worst)[None], fps=1.0)


def evaluation_clips(workdir: Workdir, settings: Settings, *, count: int | None = None) -> tuple[list[Clip], bool]:
    """Returns the clips that the autoencoder is judged on, and whether training never saw them.

    The drawn world holds clips out, others do with `data.heldout_share`. Where none are, their own clips are judged and
    the result says so.
    """
    count = count or settings.evaluation.clips
    if settings.data.source == "shapes":
        world = settings.shapes.source(seed=settings.seed, split="heldout", num_clips=count)
        limits = clip_limits(settings, settings.data)
        held_out, collections = True, [Collection(name="heldout", source=world, limits=limits, readers=1)]
    else:
        collections = curate_all(open_collections(settings), settings, workdir, writes=False)
        held = [dataclasses.replace(one, source=one.heldout) for one in collections if one.heldout is not None]
        held_out, collections = bool(held), held or collections
    clips = sample_log.choose_clips(FittedSource(collections), count=count, sizes=_SIZES_JUDGED)
    return clips, held_out


def print_metrics(result: dict[str, Any]) -> None:
    """Prints evaluation results, a line for each part; lists and scores with intervals are left to tables."""
    for part, values in result.items():
        words = [
            f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}"
            for name, value in values.items()
            if not isinstance(value, list | dict)
        ]
        print(f"{part}: {', '.join(words)}", flush=True)
