"""A run from config to report."""

import contextlib
import os
import time

import jax
from absl import logging
from ml_collections import ConfigDict

from sora_jax.core import failure
from sora_jax.core.ahead import Ahead
from sora_jax.core.compiling import holds_programs, use_compilation_cache
from sora_jax.core.distributed import from_first, is_first, losses_named
from sora_jax.core.errors import Preempted, UserError
from sora_jax.core.stop import StopSignal
from sora_jax.data.fitting import Collection
from sora_jax.data.sources.base import fingerprint
from sora_jax.experiment.compile_times import compiling_told
from sora_jax.experiment.datasets import curate_all, open_collections
from sora_jax.experiment.estimate import EVALUATION, expected_parts
from sora_jax.experiment.evaluation import evaluate
from sora_jax.experiment.heldout import count_heldout
from sora_jax.experiment.kinds import KINDS
from sora_jax.experiment.kinds.base import Run
from sora_jax.experiment.kinds.prepare import (
    PrepareKind,
    check_prepares,
    clips_of_share,
    encode_share,
    reword_all,
)
from sora_jax.experiment.machine import fit_to_machine
from sora_jax.experiment.models import RunModels
from sora_jax.experiment.preflight import check_start
from sora_jax.experiment.reporting import report_run
from sora_jax.experiment.schema import Settings
from sora_jax.experiment.settings import read_settings
from sora_jax.experiment.speed import measure_speed
from sora_jax.experiment.stages import run_stages
from sora_jax.preparation.encode import Share
from sora_jax.train.clock import peak_memory_gb
from sora_jax.train.metrics import MetricsWriter, SilentWriter
from sora_jax.train.progress import Display, Part, Progress, RunProgress, in_sentence
from sora_jax.train.workdir import Workdir


def run(
    config: ConfigDict, path: str | os.PathLike[str], *, until: str | None = None, fresh_data: bool = False
) -> None:
    """Trains, samples, evaluates and reports as `config` says, in the workdir `path`; goes on where it was stopped.

    `until` is a kind of stage: later ones are left for another time, and so is evaluation. With `fresh_data` stages in
    progress keep their weights and go on with data that changed, instead of refusing it.
    """
    if until is not None and until not in KINDS:
        raise UserError(f"--until={until} is no kind of stage: give one of {', '.join(KINDS)}")
    settings = fit_to_machine(read_settings(config))
    mesh = check_start(settings)
    if settings.text_encoder.tokenizer.stored:  # what is missing of its files is told at once
        logging.info("texts: %s", "; ".join(settings.text_encoder.tokenizer.recipe.values()))
    workdir = Workdir(path)
    collections = _open_clips(settings, workdir, until=until)
    compiled = holds_programs(use_compilation_cache())
    with workdir:
        workdir.claim(config, clips=lambda: _fingerprints(collections), fresh_data=fresh_data)
        number, count = jax.process_index(), jax.process_count()
        with failure.recorded(workdir.path, process=number, processes=count), StopSignal() as stop, losses_named():
            evaluated = from_first("is the run evaluated", lambda: _is_evaluated(settings, workdir))
            if evaluated and until is None:
                print(f"{workdir.path} is done: nothing is left to do", flush=True)
            else:
                began = time.monotonic()
                collections = curate_all(collections, settings, workdir, writes=is_first())
                speed = measure_speed(settings, mesh.size, compiled=compiled)
                clips, held = sum(len(one.source) for one in collections), count_heldout(collections, settings)
                parts = expected_parts(settings, mesh, workdir, speed, clips=clips, heldout=held, until=until)
                with _progress(parts) as progress, Ahead() as ahead:
                    this_run = Run(
                        settings=settings,
                        workdir=workdir,
                        mesh=mesh,
                        metrics=MetricsWriter(workdir.path) if is_first() else SilentWriter(),
                        collections=collections,
                        stop=stop,
                        progress=progress,
                        ahead=ahead,
                        fresh_data=fresh_data,
                    )
                    _train_and_evaluate(this_run, until=until, evaluated=evaluated, began=began)
            failure.at(stage="report")
            for sentence in report_run(workdir, settings):
                print(f"to change: {sentence}", flush=True)


def _open_clips(settings: Settings, workdir: Workdir, *, until: str | None) -> list[Collection]:
    """Returns the clips; none where they are not there, and nothing that is left to do reads them."""
    try:
        return open_collections(settings)
    except UserError as error:
        done = workdir.facts()["stages"]
        asked = until is not None and KINDS[until].takes_in_clips
        if asked or any(settings.stages[name].reads_clips for name in settings.run if name not in done):
            raise
        logging.warning("%s: the run goes on with what was prepared of them", error)
        return []


def _fingerprints(collections: list[Collection]) -> dict[str, str]:
    return {one.name: fingerprint(one.source) for one in collections}


def _is_evaluated(settings: Settings, workdir: Workdir) -> bool:
    """Whether all stages are done, also those that were added since, and judged."""
    facts = workdir.facts()
    return facts.get("evaluated", False) and all(name in facts["stages"] for name in settings.run)


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
    if until is None and run.settings.has_autoencoder:  # or there is nothing that could be judged
        failure.at(stage=EVALUATION)
        run.progress.begin(EVALUATION)
        # On the devices that trained, whose programs are compiled.
        models = RunModels(workdir, run.settings, mesh=run.mesh)
        evaluate(models, run.settings, judged=run.progress.update)
        run.progress.end()
    record_totals(workdir, seconds=time.monotonic() - began, evaluated=evaluated or until is None)


def prepare_share(config: ConfigDict, path: str | os.PathLike[str], share: Share, *, fresh_data: bool = False) -> None:
    """Encodes the clips of one process's share, beside other processes; `run(..., until="prepare")` ends the stage.

    `fresh_data` as there. Raises UserError while the autoencoder is not trained, and where no stage prepares clips.
    """
    settings = read_settings(config)
    check_prepares(settings)
    collections = open_collections(settings)
    cache = use_compilation_cache()
    with Workdir(path, part=share.name) as workdir:
        workdir.claim(config, clips=lambda: _fingerprints(collections), fresh_data=fresh_data)
        with failure.recorded(workdir.path, process=share.index, processes=share.count), StopSignal() as stop:
            failure.at(stage="prepare")
            curated = curate_all(collections, settings, workdir, writes=share.index == 0)
            total = sum(clips_of_share(settings, curated, share))
            with (
                compiling_told("prepare", PrepareKind.compiling, settings, cache),
                contextlib.closing(Progress("prepare", total=total, unit="clips")) as progress,
            ):
                encode_share(settings, workdir, curated, share, stop, progress.update)
    print(f"share {share.index} of {share.count} is encoded: run prepare without a share when all are", flush=True)


def rewrite_captions(config: ConfigDict, path: str | os.PathLike[str]) -> None:
    """Writes captions that changed since clips were prepared into the shards, with the latents that are there.

    Stages in progress then go on with them. Raises UserError where nothing is prepared, where clips are new, gone or of
    another size, where no caption changed and no file of captions is named, and where no stage prepares clips.
    """
    settings = read_settings(config)
    check_prepares(settings)
    collections = open_collections(settings)
    use_compilation_cache()
    with Workdir(path) as workdir:
        workdir.claim(config, clips=lambda: _fingerprints(collections), fresh_data=True)
        with failure.recorded(workdir.path, process=0, processes=1), StopSignal() as stop:
            failure.at(stage="prepare")
            reword_all(settings, workdir, curate_all(collections, settings, workdir, writes=True), stop)


def record_totals(workdir: Workdir, *, seconds: float, evaluated: bool) -> None:
    """Adds to run.json how long the run took, over all times it was started, and the most memory it held."""
    facts = workdir.facts()
    facts["evaluated"] = evaluated
    facts["seconds"] = facts.get("seconds", 0.0) + seconds
    facts["peak_memory_gb"] = max(facts.get("peak_memory_gb", 0.0), peak_memory_gb())
    facts["devices"] = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    workdir.write_json("run.json", facts)
    print(f"total {facts['seconds'] / 60:.1f} min, peak memory {facts['peak_memory_gb']:.2f} GB", flush=True)
