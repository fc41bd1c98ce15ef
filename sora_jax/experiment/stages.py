"""The stages of a run, in order: each is done once, and an interrupted one goes on.

A stage is a function (run) -> facts. What passes from one to the next lies in the workdir: weights in checkpoints,
latent statistics, shards.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import Mesh

from sora_jax.checkpoints.checkpoint import Checkpointer
from sora_jax.checkpoints.retention import find_steps
from sora_jax.core import failure, rng
from sora_jax.core.distributed import from_first, is_first, wait_for_all
from sora_jax.core.errors import UserError
from sora_jax.core.sharding import batch_part
from sora_jax.core.stop import StopSignal
from sora_jax.core.tree import abstract_model
from sora_jax.data.fitting import Collection, FittedSource
from sora_jax.data.shards.catalogue import read_catalogue
from sora_jax.data.shards.prepared import PreparedSet
from sora_jax.data.sources.base import fingerprint
from sora_jax.experiment import sample_log
from sora_jax.experiment.datasets import PackedBatches, PixelBatches
from sora_jax.experiment.init_from import find_source, inherit, take_autoencoder
from sora_jax.experiment.loading import (
    build_autoencoder,
    given_codec,
    given_statistics,
    load_codec,
    make_sampler,
)
from sora_jax.experiment.preflight import example_canvases
from sora_jax.experiment.prepare_shares import encode_share
from sora_jax.experiment.recipes import autoencoder_recipe, diffusion_recipe, state_maker
from sora_jax.experiment.settings import Settings
from sora_jax.experiment.stage_settings import STAGE_KINDS, AutoencoderStage, DiffusionStage, PrepareStage
from sora_jax.models.codec import Codec, measure_latents
from sora_jax.preparation.encode import Share, finish, header
from sora_jax.train.loop import RunContext, TrainJob, train
from sora_jax.train.metrics import MetricsWriter
from sora_jax.train.progress import RunProgress
from sora_jax.train.state import StateMaker, TrainState, next_stage, track_name, with_frozen
from sora_jax.train.workdir import Workdir

# Clips over which the latent's statistics are measured, and of how many sizes: each is compiled for.
_CLIPS_MEASURED, _SIZES_MEASURED = 128, 12
# Clips whose reconstruction is shown as the autoencoder trains.
_CLIPS_SHOWN, _SIZES_SHOWN = 6, 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Everything the stages of one run share.

    Attributes:
      settings: The config, read.
      workdir: Where it writes.
      mesh: The devices.
      metrics: Its curves.
      collections: Its clips.
      stop: Whether it was asked to stop.
      progress: How far it is.
      fresh_data: Whether stages in progress go on with data that changed.
    """

    settings: Settings
    workdir: Workdir
    mesh: Mesh
    metrics: MetricsWriter
    collections: list[Collection]
    stop: StopSignal
    progress: RunProgress
    fresh_data: bool = False

    @property
    def context(self) -> RunContext:
        """What the loop needs of the run."""
        return RunContext(
            workdir=self.workdir,
            metrics=self.metrics,
            checkpoint=self.settings.checkpoint,
            log=self.settings.log,
            stop=self.stop,
            progress=self.progress,
            fresh_data=self.fresh_data,
        )

    @property
    def fitted(self) -> FittedSource:
        """All clips, as they will be encoded."""
        return FittedSource(self.collections)


def run_stages(run: Run, *, until: str | None = None) -> None:
    """Runs every stage that is not done yet, in order, and records the facts of each.

    `until` is the last kind of stage to run; None runs all.
    """
    kinds = list(STAGE_KINDS)
    _check_sources(run)
    _take_given(run)
    _measure_given(run)
    for name in run.settings.run:
        if until is not None and kinds.index(run.settings.stages[name].kind) > kinds.index(until):
            continue
        stage = run.settings.stages[name]
        if from_first(f"is {name} done", functools.partial(_is_done, run, name, until)):
            logging.info("stage %s is done", name)
            continue
        failure.at(stage=name)
        run.progress.begin(name)
        began = time.monotonic()
        facts = RUNNERS[type(stage)](run, name, stage)
        run.workdir.finish_stage(name, {**facts, "kind": stage.kind, "seconds": time.monotonic() - began})
        run.progress.end()
        wait_for_all(f"{name} is done")
        run.stop.check(f"stage {name} is done")


def _check_sources(run: Run) -> None:
    """Raises UserError where a stage that has not begun cannot start from the run that it names."""
    for name in run.settings.run:
        stage = run.settings.stages[name]
        if isinstance(stage, PrepareStage) or stage.start_from is None:
            continue
        if name not in run.workdir.facts()["stages"] and not find_steps(epath.Path(run.workdir.checkpoints(name))):
            find_source(name, stage, abstract_model(state_maker(run.settings, name, run.mesh).build)[1])


def _is_done(run: Run, name: str, until: str | None) -> bool:
    done = name in run.workdir.facts()["stages"]
    return done and not (run.settings.stages[name].kind == "prepare" and _takes_in_clips(run, until))


def run_autoencoder(run: Run, name: str, stage: AutoencoderStage) -> dict[str, Any]:
    """Trains the autoencoder; the last stage that does measures its latents and stores their statistics."""
    settings = run.settings
    recipe = autoencoder_recipe(settings, name, run.mesh)
    shown = sample_log.choose_clips(run.fitted, count=_CLIPS_SHOWN, sizes=_SIZES_SHOWN)
    names = abstract_model(functools.partial(build_autoencoder, settings, None))[1]

    def codec(state: TrainState) -> Codec:
        average, scale_C = state.averaged(track_name(settings.ema.widths[0])), np.ones(settings.autoencoder.channels)
        params = {parameter: average[parameter] for parameter in names}
        return Codec(
            settings.autoencoder, params, mean_C=0 * scale_C, scale_C=scale_C, work=settings.codec, mesh=run.mesh
        )

    def show(state: TrainState, step: int) -> None:
        sample_log.show_reconstructions(run.workdir, run.metrics, name, step, codec(state), shown)

    job = TrainJob(
        objective=recipe.objective,
        maker=recipe.maker,
        initial=lambda: _start_autoencoder(run, name, recipe.maker),
        step=recipe.step,
        stream=pixel_batches(run, stage),
        show=show,
    )
    state, facts = train(job, run.context)
    if not any(settings.stages[later].kind == "autoencoder" for later in settings.run[settings.run.index(name) + 1 :]):
        _measure(run, codec(state), stage=name)
    return facts


def _measure(run: Run, codec: Codec, *, stage: str | None = None) -> None:
    """Stores the statistics of the latents of the run's clips, and which stage trained the weights."""
    measured = sample_log.choose_clips(run.fitted, count=_CLIPS_MEASURED, sizes=_SIZES_MEASURED)
    statistics = measure_latents(codec, [clip.pixels_THWC for clip in measured])
    measured_C = {"mean": statistics.mean_C.tolist(), "scale": statistics.scale_C.tolist()}
    run.workdir.write_json("latents.json", {"stage": stage, **measured_C})
    wait_for_all("latents are measured")


def _take_given(run: Run) -> None:
    """Copies the autoencoder that the config takes from another run, once."""
    start, config = run.settings.autoencoder_start_from, run.settings.autoencoder
    if start is not None:
        from_first("the autoencoder", lambda: take_autoencoder(run.workdir, config, start))


def _measure_given(run: Run) -> None:
    """Stores, once, the statistics of an autoencoder that was given without them."""
    settings = run.settings
    if settings.autoencoder_weights is None or given_statistics(settings) is not None:
        return
    if not from_first("are latents measured", (run.workdir.path / "latents.json").exists):
        channels = np.ones(settings.autoencoder.channels)
        mesh = run.mesh if jax.process_count() > 1 else None
        _measure(run, given_codec(settings, 0 * channels, channels, mesh=mesh))


def _start_autoencoder(run: Run, name: str, maker: StateMaker) -> TrainState:
    """Returns the end of the autoencoder stage before `name`, with whatever is new in this one, or a fresh state.

    A stage that names another run starts from that.
    """
    key, stage = rng.key(run.settings.seed, "autoencoder parameters"), run.settings.stages[name]
    if isinstance(stage, AutoencoderStage) and stage.start_from is not None:
        return inherit(name, stage, maker, key)
    before = run.settings.run[: run.settings.run.index(name)]
    if not before:
        return maker.fresh(key)
    return next_stage(maker, _end_of(run, before[-1], needed_by=name), key)


def run_prepare(run: Run, name: str, stage: PrepareStage) -> dict[str, Any]:
    """Encodes every clip of all collections once, and makes them the sets that later stages read."""
    share = Share(index=jax.process_index(), count=jax.process_count())
    facts = encode_share(run.settings, run.workdir, run.collections, share, run.stop, run.progress.update)
    wait_for_all(f"{name}: every share is encoded")
    if is_first():
        for collection in run.collections:
            finish(collection, run.workdir.prepared(collection.name))
    wait_for_all(f"{name}: the catalogue is written")
    return facts


def _takes_in_clips(run: Run, until: str | None) -> bool:
    """Whether the clips are others than those that were prepared, and should now be prepared as well.

    A stage that has begun to train on what was prepared goes on with just that, unless it is told otherwise.
    """
    catalogues = [(read_catalogue(run.workdir.prepared(one.name)), one.source) for one in run.collections]
    if all(catalogue and catalogue.source == fingerprint(source) for catalogue, source in catalogues):
        return False
    diffusion = [name for name in run.settings.run if run.settings.stages[name].kind == "diffusion"]
    begun = [name for name in diffusion if run.workdir.checkpoints(name).exists()]
    if begun and until != "prepare" and not run.fresh_data:
        logging.warning(
            "the clips changed after they were prepared; %s goes on with what was prepared then: pass --fresh_data to "
            "take in the new ones",
            begun[-1],
        )
        return False
    return True


def run_diffusion(run: Run, name: str, stage: DiffusionStage) -> dict[str, Any]:
    """Trains the transformer on prepared clips, from where the previous diffusion stage ended."""
    settings = run.settings
    codec = load_codec(run.workdir, settings, mesh=run.mesh)  # it decodes beside weights that lie there
    recipe = diffusion_recipe(settings, name, run.mesh)
    structure, _, _ = abstract_model(recipe.maker.build)
    sampler = make_sampler(settings, codec, structure)
    canvases = example_canvases(settings, frames=settings.sampling.frames if stage.mix.videos else 1)

    def show(state: TrainState, step: int) -> None:
        clips = sampler(state.averaged(track_name(settings.ema.widths[0])), canvases)
        sample_log.show_samples(run.workdir, run.metrics, name, step, canvases, clips)

    stream = packed_batches(run, stage, codec)
    for rejected in stream.rows.plan.rejected:
        logging.warning("%s: sample %d is left out: %s", name, rejected.sample, rejected.reason)
    job = TrainJob(
        objective=recipe.objective,
        maker=recipe.maker,
        initial=lambda: _carried_over(run, name, recipe.maker),
        step=recipe.step,
        stream=stream,
        show=show,
    )
    return train(job, run.context)[1]


def pixel_batches(run: Run, stage: AutoencoderStage) -> PixelBatches:
    """Returns the data of an autoencoder stage."""
    return PixelBatches(run.fitted, stage.crops, seed=run.settings.seed, part=batch_part(run.mesh))


def packed_batches(run: Run, stage: DiffusionStage, codec: Codec) -> PackedBatches:
    """Returns the data of a diffusion stage; UserError where they were not prepared with this codec."""
    expected = {key: str(value) for key, value in header(codec).items() if isinstance(value, str)}
    folders = [run.workdir.prepared(name) for name in run.settings.collections]
    return PackedBatches(PreparedSet.open(folders, expected), stage, run.settings, part=batch_part(run.mesh))


RUNNERS: dict[type, Callable[..., dict[str, Any]]] = {
    AutoencoderStage: run_autoencoder,
    PrepareStage: run_prepare,
    DiffusionStage: run_diffusion,
}


def _carried_over(run: Run, name: str, maker: StateMaker) -> TrainState:
    """Returns the end of the diffusion stage before `name`, its counters at zero, or a fresh state.

    A stage that names another run starts from that.
    """
    key, stage = rng.key(run.settings.seed, "generator parameters"), run.settings.stages[name]
    if isinstance(stage, DiffusionStage) and stage.start_from is not None:
        return inherit(name, stage, maker, key)
    before = [
        other
        for other in run.settings.run[: run.settings.run.index(name)]
        if run.settings.stages[other].kind == "diffusion"
    ]
    if not before:
        return maker.fresh(key)
    return next_stage(maker, _end_of(run, before[-1], needed_by=name), key)


def _end_of(run: Run, name: str, *, needed_by: str) -> TrainState:
    """Returns the state at the end of a finished stage."""
    maker = state_maker(run.settings, name, run.mesh)
    with Checkpointer(run.workdir.checkpoints(name), run.settings.checkpoint) as saver:
        restored = saver.restore(maker.abstract().saved)
    if restored is None:
        raise UserError(
            f"stage {needed_by} goes on from {name}, whose checkpoint is missing in {run.workdir.path}: "
            "restore it, or start in another --workdir"
        )
    return with_frozen(maker, restored, run.workdir.checkpoints(name))
