"""A run from config to report."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sora_jax.core import failure
from sora_jax.core.compiling import holds_programs, use_compilation_cache
from sora_jax.core.distributed import from_first, is_first, losses_named
from sora_jax.core.errors import Preempted, UserError
from sora_jax.core.stop import StopSignal
from sora_jax.core.tree import abstract_model
from sora_jax.data.clips import BadClip, Clip
from sora_jax.data.shapes_prompts import PromptCase, heldout_pair_prompts, heldout_prompts
from sora_jax.data.shapes_world import ShapesWorld
from sora_jax.data.sources import FolderSource, read_ahead
from sora_jax.data.video_output import write_clip
from sora_jax.evaluation import show
from sora_jax.evaluation.evaluator import Judged, judge_prompts
from sora_jax.evaluation.reconstruction import Networks, Verdict, judge_autoencoder
from sora_jax.evaluation.tasks import judge_sizes, judge_tasks
from sora_jax.generate.job import Limits
from sora_jax.models.codec import Codec
from sora_jax.preparation.fitted import Collection, FittedSource
from sora_jax.preparation.run import Share
from sora_jax.train import exhibits
from sora_jax.train.clock import peak_memory_gb
from sora_jax.train.estimate import EVALUATION, JUDGEMENTS, expected_parts, measure_speed
from sora_jax.train.machine import fit_to_machine
from sora_jax.train.metrics import MetricsWriter, SilentWriter
from sora_jax.train.progress import Display, Part, Progress, RunProgress, in_sentence
from sora_jax.train.report import write_report
from sora_jax.train.settings import Settings, read_settings
from sora_jax.train.shares import clips_of_share, encode_share
from sora_jax.train.stages import Run, run_stages
from sora_jax.train.start import check_start
from sora_jax.train.streams import clip_limits, curate, open_collections
from sora_jax.train.trained import (
    Weights,
    build_generator,
    limits_of,
    load_codec,
    load_generator,
    make_sampler,
    solver_config,
)
from sora_jax.train.workdir import Workdir
from sora_jax.video import shapes

# Of the noise of evaluation; training and examples use others.
_EVALUATION_SEED = 1_000
# Sizes of the clips that the autoencoder is judged on: each is compiled for.
_SIZES_JUDGED = 12

# What may be evaluated by itself.
PARTS = ("autoencoder", "generator", "tasks", "all")
# Instead of a folder: clips of the drawn world.
DRAWN = "shapes"


def run(
    config: ConfigDict, path: str | os.PathLike[str], *, until: str | None = None, fresh_data: bool = False
) -> None:
    """Trains, samples, evaluates and reports as `config` says, in the workdir `path`; goes on where it was stopped.

    `until` is a kind of stage: later ones are left for another time, and so is evaluation. With `fresh_data` stages in
    progress keep their weights and go on with data that changed, instead of refusing it.
    """
    settings = fit_to_machine(read_settings(config))
    mesh = check_start(settings)
    collections = open_collections(settings)
    compiled = holds_programs(use_compilation_cache())
    with Workdir(path) as workdir:
        workdir.claim(config)
        number, count = jax.process_index(), jax.process_count()
        with failure.recorded(workdir.path, process=number, processes=count), StopSignal() as stop, losses_named():
            evaluated = from_first("is the run evaluated", lambda: workdir.facts().get("evaluated", False))
            if evaluated and until is None:
                print(f"{workdir.path} is done: nothing is left to do", flush=True)
            else:
                began = time.monotonic()
                collections = curate_all(collections, settings, workdir, writes=is_first())
                speed = measure_speed(settings, mesh, compiled=compiled)
                clips = sum(len(one.source) for one in collections)
                with _progress(expected_parts(settings, mesh, workdir, speed, clips=clips, until=until)) as progress:
                    this_run = Run(
                        settings=settings,
                        workdir=workdir,
                        mesh=mesh,
                        metrics=MetricsWriter(workdir.path) if is_first() else SilentWriter(),
                        collections=collections,
                        stop=stop,
                        progress=progress,
                        fresh_data=fresh_data,
                    )
                    _train_and_evaluate(this_run, until=until, evaluated=evaluated, began=began)
            failure.at(stage="report")
            if is_first():
                write_report(workdir.path)
            print(f"report: {workdir.path / 'report.html'}", flush=True)


def _progress(parts: list[Part]) -> RunProgress:
    """Returns the progress of a run, after saying how long it will take."""
    print(in_sentence(parts), flush=True)
    return RunProgress(parts, display=Display() if is_first() else None)


def _train_and_evaluate(run: Run, *, until: str | None, evaluated: bool, began: float) -> None:
    """Runs the stages and what is left of the evaluation, and adds the time since `began` to the totals."""
    workdir = run.workdir
    try:
        with run.metrics:
            run_stages(run, until=until)
    except Preempted:
        record_totals(workdir, seconds=time.monotonic() - began, evaluated=evaluated)
        raise
    if until is None:
        failure.at(stage=EVALUATION)
        run.progress.begin(EVALUATION)
        # On the devices that trained, whose programs are compiled.
        evaluate(workdir, run.settings, mesh=run.mesh, judged=run.progress.update)
        run.progress.end()
    record_totals(workdir, seconds=time.monotonic() - began, evaluated=evaluated or until is None)


def prepare_share(config: ConfigDict, path: str | os.PathLike[str], share: Share) -> None:
    """Encodes the clips of one process's share, beside other processes; `run(..., until="prepare")` ends the stage.

    Raises UserError while the autoencoder is not trained.
    """
    settings = read_settings(config)
    collections = open_collections(settings)
    use_compilation_cache()
    with Workdir(path, part=share.name) as workdir:
        workdir.claim(config)
        with failure.recorded(workdir.path, process=share.index, processes=share.count), StopSignal() as stop:
            failure.at(stage="prepare")
            curated = curate_all(collections, settings, workdir, writes=share.index == 0)
            total = sum(clips_of_share(settings, curated, share))
            with contextlib.closing(Progress("prepare", total=total, unit="clips")) as progress:
                encode_share(settings, workdir, curated, share, stop, progress.update)
    print(f"share {share.index} of {share.count} is encoded: run prepare without a share when all are", flush=True)


def curate_all(
    collections: list[Collection], settings: Settings, workdir: Workdir, *, writes: bool
) -> list[Collection]:
    """Returns what curation keeps of each collection; `writes` as in `streams.curate`."""
    return [
        curate(one, settings.collections[one.name], workdir.curation(one.name), writes=writes) for one in collections
    ]


def evaluate(
    workdir: Workdir,
    settings: Settings,
    *,
    part: str = "all",
    step: int | None = None,
    count: int | None = None,
    weights: Weights = "ema",
    networks: Networks | None = None,
    mesh: Mesh | None = None,
    judged: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Returns the metrics of a run's models, after writing them to evaluation.json and printing them.

    `autoencoder`: as `evaluation.reconstruction` says, on `count` (by default as configured) held-out clips where there
    are any (`held_out`); a picture of the worst is written. For the drawn world `shapes`: on held-out prompts, and
    where it shows two objects `shapes_pairs`: on held-out prompts about two; `tasks` and `sizes`, as
    `evaluation.tasks` says, on `count` clips (by default as configured); sheets of these samples are written beside.
    `step` and `weights` are those of the generator, as in `load_generator`; the autoencoder is always an average, as
    what was prepared is made with it. With one of `PARTS` alone the file keeps what it says of the other. `mesh` are
    the devices, also of several processes, that share the work; None: the first one. `judged` is called with how many
    of the `JUDGEMENTS` are done.
    """
    codec = load_codec(workdir, settings, mesh=mesh)
    sets = _prompt_sets(settings)
    if part in ("generator", "tasks") and not sets:
        raise UserError("only of a drawn world can be told how prompts are followed: pass --evaluate=autoencoder")
    of_tasks = _clips_of_tasks(settings, part, count) if sets else 0
    result: dict[str, Any] = {}
    if part != "all" and (workdir.path / "evaluation.json").exists():
        result = workdir.read_json("evaluation.json")
    if part in ("autoencoder", "all"):
        clips, held_out = evaluation_clips(workdir, settings, count=count)
        verdict = judge_autoencoder(codec, clips, networks)
        result["autoencoder"] = {**verdict.facts(), "held_out": held_out}
        _show_verdict(workdir, verdict, "worst_reconstructions")
        judged(1)
    if part != "autoencoder" and sets:
        maker = _Maker(workdir, settings, codec, step=step, weights=weights, mesh=mesh)
        if part in ("generator", "all"):
            result |= maker.follow(sets)
            judged(2)
        if of_tasks:
            result |= maker.tasks(sets["shapes"], limits_of(settings), count=of_tasks)
    judged(JUDGEMENTS)
    workdir.write_json("evaluation.json", result)
    print_metrics(result)
    return result


def evaluate_data(
    workdir: Workdir, settings: Settings, path: str, *, count: int | None = None, networks: Networks | None = None
) -> dict[str, Any]:
    """Returns how a run's autoencoder does on the videos and images of a folder, captioned or not, fitted as its own.

    The path `DRAWN` stands for held-out clips of the drawn world, whatever the run was trained on.

    Up to `count` of them, by default as configured, spread evenly; those that cannot be used are named and counted.
    Written to evaluation_autoencoder.json and printed.
    """
    codec = load_codec(workdir, settings)
    data = settings.data
    count = count or settings.evaluation.clips
    if path == DRAWN:
        source = ShapesWorld(settings.shapes.world(seed=settings.seed, split="heldout", num_clips=count))
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
        indices = exhibits.spread(len(source), count)
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


def _show_verdict(workdir: Workdir, verdict: Verdict, name: str) -> None:
    """Prints the table and writes the picture of the worst clips."""
    print(show.table([*verdict.groups, {"frames": "all", "size": "all", **verdict.total}]), flush=True)
    if not is_first():
        return
    folder = workdir.path / "samples" / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    write_clip(folder / f"{name}.png", show.worst_picture(verdict.worst)[None], fps=1.0)


def _prompt_sets(settings: Settings) -> dict[str, list[PromptCase]]:
    """Returns the held-out prompts of a drawn world by the name of their set; none where nothing answers them."""
    has_generator = any(settings.stages[name].kind == "diffusion" for name in settings.run)
    count = settings.evaluation.prompts
    if not (has_generator and settings.data.source == "shapes" and count):
        return {}
    sets = {"shapes": heldout_prompts(count) * settings.evaluation.draws}
    if settings.shapes.max_objects == 2:
        sets["shapes_pairs"] = heldout_pair_prompts(count)
    return sets


def _clips_of_tasks(settings: Settings, part: str, count: int | None) -> int:
    """Returns how many clips tasks are to be judged on, 0 for not; UserError where they are asked for and cannot be."""
    limits = limits_of(settings)
    possible = limits.knows and limits.frames > 1
    if part == "tasks" and not possible:
        raise UserError("tasks need a run whose samples are videos, trained with known tokens; this is none")
    if part == "tasks":
        return max(2, count or settings.evaluation.tasks)
    return settings.evaluation.tasks if part == "all" and possible else 0


class _Maker:
    """The generator of a run, and what it is judged on."""

    def __init__(
        self,
        workdir: Workdir,
        settings: Settings,
        codec: Codec,
        *,
        step: int | None,
        weights: Weights,
        mesh: Mesh | None,
    ):
        self._settings = settings
        self._params, stage, at = load_generator(workdir, settings, step=step, weights=weights, mesh=mesh)
        structure, _, _ = abstract_model(lambda key: build_generator(settings, key))
        self._sampler = make_sampler(settings, codec, structure, mesh=mesh)
        sampling = settings.sampling
        exact = dataclasses.replace(solver_config(settings), cache=0.0)
        self._exact = make_sampler(settings, codec, structure, solver=exact, mesh=mesh)
        self._facts = {"stage": stage, "step": at, "weights": weights, "solver": f"{sampling.solver} {sampling.steps}"}
        self._folder = workdir.path / "samples" / "evaluation"
        self._folder.mkdir(parents=True, exist_ok=True)

    def follow(self, sets: dict[str, list[PromptCase]]) -> dict[str, Any]:
        """Returns by set how far samples follow its prompts, after writing a sheet of them, named as the set."""
        sampling, settings = self._settings.sampling, self._settings
        size = (sampling.frames, *sampling.size)
        grid = shapes.clip_token_grid(size, stride=settings.stride, patch=settings.transformer.patch)
        result = {}
        for name, cases in sets.items():
            judged = judge_prompts(
                self._sampler, self._params, cases, grid=grid, fps=sampling.fps, seed=_EVALUATION_SEED
            )
            self._show(name, judged.clips, judged.prompts)
            self._show_verdicts(name, judged)
            result[name] = {**judged.facts(), **self._facts}
            if sampling.cache > 0:
                exact = judge_prompts(
                    self._exact, self._params, cases, grid=grid, fps=sampling.fps, seed=_EVALUATION_SEED
                )
                differences = [np.abs(a.astype(np.float32) - b) for a, b in zip(judged.clips, exact.clips, strict=True)]
                result[name]["cache"] = sampling.cache
                result[name]["cache_error"] = float(np.mean(differences))
        return result

    def tasks(self, cases: list[PromptCase], limits: Limits, *, count: int) -> dict[str, Any]:
        """Returns how well each task does on `count` held-out clips, and unseen sizes on as many prompts."""
        settings = self._settings
        drawn = settings.shapes.world(seed=settings.seed, split="heldout", num_clips=count)
        of_samples = {"sides": (limits.size,), "frames": (limits.frames,), "image_share": 0.0, "max_objects": 1}
        world = ShapesWorld(dataclasses.replace(drawn, **of_samples))
        judged = judge_tasks(self._sampler, self._params, limits, world)
        for name, clips in judged.clips.items():
            self._show(f"task_{name}", clips, judged.prompts[name])
        sizes = judge_sizes(self._sampler, self._params, limits, cases[:count], seed=_EVALUATION_SEED)
        parts = {f"task_{name}": scores for name, scores in judged.scores.items()}
        for name, one in sizes.judged.items():
            self._show_verdicts(f"size_{name}", one)
        return {**parts, **{f"size_{name}": scores for name, scores in sizes.scores.items()}}

    def _show(self, name: str, clips: list[np.ndarray], prompts: list[str]) -> None:
        exhibits.show_sheet(self._folder, name, clips, prompts, fps=self._settings.sampling.fps)

    def _show_verdicts(self, name: str, judged: Judged) -> None:
        """Prints the table of groups and writes the picture of every sample beside what the oracle says of it."""
        if judged.groups:
            print(f"{name}, by group:\n{show.table(judged.groups)}", flush=True)
        if is_first():
            write_clip(self._folder / f"{name}_verdicts.png", show.verdicts_picture(judged)[None], fps=1.0)


def evaluation_clips(workdir: Workdir, settings: Settings, *, count: int | None = None) -> tuple[list[Clip], bool]:
    """Returns the clips that the autoencoder is judged on, and whether training never saw them.

    The drawn world holds clips out. Other sources hold none out, so their own clips are judged and the result says so.
    """
    count = count or settings.evaluation.clips
    if settings.data.source == "shapes":
        world = ShapesWorld(settings.shapes.world(seed=settings.seed, split="heldout", num_clips=count))
        limits = clip_limits(settings, settings.data)
        collections = [Collection(name="heldout", source=world, limits=limits, readers=1)]
    else:
        collections = curate_all(open_collections(settings), settings, workdir, writes=False)
    clips = exhibits.choose_clips(FittedSource(collections), count=count, sizes=_SIZES_JUDGED)
    return clips, settings.data.source == "shapes"


def record_totals(workdir: Workdir, *, seconds: float, evaluated: bool) -> None:
    """Adds to run.json how long the run took, over all times it was started, and the most memory it held."""
    facts = workdir.facts()
    facts["evaluated"] = evaluated
    facts["seconds"] = facts.get("seconds", 0.0) + seconds
    facts["peak_memory_gb"] = max(facts.get("peak_memory_gb", 0.0), peak_memory_gb())
    facts["devices"] = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    workdir.write_json("run.json", facts)
    print(f"total {facts['seconds'] / 60:.1f} min, peak memory {facts['peak_memory_gb']:.2f} GB", flush=True)


def print_metrics(result: dict[str, Any]) -> None:
    """Prints evaluation results, a line for each part; lists within are left to tables."""
    for part, values in result.items():
        words = [
            f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}"
            for name, value in values.items()
            if not isinstance(value, list)
        ]
        print(f"{part}: {', '.join(words)}", flush=True)
