"""The stages of a run, in order: each is done once, and an interrupted one goes on.

A stage is a function (run) -> facts. What passes from one to the next lies in the workdir: weights in checkpoints,
latent statistics, shards.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from sora_jax.core import rng
from sora_jax.core.errors import UserError
from sora_jax.core.mesh import MeshConfig, make_mesh
from sora_jax.core.precision import compute_dtype
from sora_jax.core.sharding import batch_ways
from sora_jax.core.tree import abstract_model
from sora_jax.data.catalogue import read_catalogue
from sora_jax.data.shards import PreparedSet
from sora_jax.data.sources import fingerprint
from sora_jax.generate.canvas import Canvas
from sora_jax.models.codec import Codec, measure_latents
from sora_jax.models.perceptual import load_perceptual, lpips, smallest_side
from sora_jax.objectives import autoencoder as autoencoder_objective
from sora_jax.objectives import diffusion as diffusion_objective
from sora_jax.preparation.fitted import Collection, FittedSource
from sora_jax.preparation.run import Share, finish, header, prepare
from sora_jax.train import exhibits
from sora_jax.train.checkpoint import Checkpointer
from sora_jax.train.clock import Progress
from sora_jax.train.loop import StopSignal, Surroundings, Task, train
from sora_jax.train.metrics import MetricsWriter
from sora_jax.train.optimizer import OptimizerConfig, make_optimizer
from sora_jax.train.settings import Settings
from sora_jax.train.stage_settings import STAGE_KINDS, AutoencoderStage, DiffusionStage, PrepareStage
from sora_jax.train.state import StateMaker, TrainState, begin_stage, carry_over, track_name
from sora_jax.train.step import StepConfig
from sora_jax.train.streams import PackedBatches, PixelBatches
from sora_jax.train.trained import (
    build_autoencoder,
    build_generator,
    given_codec,
    given_statistics,
    load_codec,
    make_sampler,
    request,
)
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
      fresh_data: Whether stages in progress go on with data that changed.
    """

    settings: Settings
    workdir: Workdir
    mesh: Mesh
    metrics: MetricsWriter
    collections: list[Collection]
    stop: StopSignal
    fresh_data: bool = False

    @property
    def around(self) -> Surroundings:
        """What the loop needs of the run."""
        return Surroundings(
            workdir=self.workdir,
            metrics=self.metrics,
            checkpoint=self.settings.checkpoint,
            log=self.settings.log,
            stop=self.stop,
            fresh_data=self.fresh_data,
        )

    @property
    def fitted(self) -> FittedSource:
        """All clips, as they will be encoded."""
        return FittedSource(self.collections)


def check_start(settings: Settings) -> Mesh:
    """Returns the mesh; raises UserError for whatever the devices and the config cannot do together."""
    mesh = make_mesh(settings.mesh)
    ways = batch_ways(mesh)
    problems = []
    for name in settings.run:
        stage = settings.stages[name]
        if isinstance(stage, AutoencoderStage):
            _perceptual(settings, name, stage)
            batches = {f"a bucket of stages.{name} has {size} clips": size for *_, size in stage.crops.buckets}
        elif isinstance(stage, DiffusionStage):
            batches = {f"packing.rows is {settings.packing.rows}": settings.packing.rows}
        else:
            continue
        parts = ways * stage.accumulate
        problems += [f"{what}, not a multiple of {parts}" for what, size in batches.items() if size % parts]
    if problems:
        raise UserError(
            f"each batch is split over {ways} devices (mesh data x fsdp), times the stage's `accumulate`: "
            f"{'; '.join(dict.fromkeys(problems))}"
        )
    example_canvases(settings, frames=settings.sampling.frames)
    return mesh


def run_stages(run: Run, *, until: str | None = None) -> None:
    """Runs every stage that is not done yet, in order, and records the facts of each.

    `until` is the last kind of stage to run; None runs all.
    """
    kinds = list(STAGE_KINDS)
    _measure_given(run)
    for number, name in enumerate(run.settings.run):
        if until is not None and kinds.index(run.settings.stages[name].kind) > kinds.index(until):
            continue
        stage = run.settings.stages[name]
        if name in run.workdir.facts()["stages"] and not (stage.kind == "prepare" and _takes_in_clips(run, until)):
            logging.info("stage %s is done", name)
            continue
        print(f"stage {number + 1} of {len(run.settings.run)}: {name}", flush=True)
        began = time.monotonic()
        facts = RUNNERS[type(stage)](run, name, stage)
        run.workdir.finish_stage(name, {**facts, "kind": stage.kind, "seconds": time.monotonic() - began})
        run.stop.check(f"stage {name} is done")


def run_autoencoder(run: Run, name: str, stage: AutoencoderStage) -> dict[str, Any]:
    """Trains the autoencoder; the last stage that does measures its latents and stores their statistics."""
    settings = run.settings
    maker = _maker(run, functools.partial(build_autoencoder, settings, stage), stage.optimizer)
    shown = exhibits.choose_clips(run.fitted, count=_CLIPS_SHOWN, sizes=_SIZES_SHOWN)
    names = abstract_model(functools.partial(build_autoencoder, settings, None))[1]

    def codec(state: TrainState, *, mean: Any = 0.0, scale: Any = 1.0) -> Codec:
        channels = np.ones(settings.autoencoder.channels)
        average = state.ema[track_name(settings.ema.widths[0])]
        params = {parameter: average[parameter] for parameter in names}
        return Codec(
            settings.autoencoder, params, mean_C=mean * channels, scale_C=scale * channels, work=settings.codec
        )

    def show(state: TrainState, step: int) -> None:
        exhibits.show_reconstructions(run.workdir, run.metrics, name, step, codec(state), shown)

    task = Task(
        objective=autoencoder_objective.make_objective(
            settings.autoencoder_loss,
            adversarial=stage.adversarial,
            perceptual=_perceptual(settings, name, stage),
            dtype=compute_dtype(settings.precision),
        ),
        maker=maker,
        initial=lambda: _start_autoencoder(run, name, maker),
        step=_step_config(settings, name, stage),
        stream=PixelBatches(run.fitted, stage.crops, seed=settings.seed),
        show=show,
    )
    state, facts = train(task, run.around)
    if not any(settings.stages[later].kind == "autoencoder" for later in settings.run[settings.run.index(name) + 1 :]):
        _measure(run, codec(state), stage=name)
    return facts


def _measure(run: Run, codec: Codec, *, stage: str | None = None) -> None:
    """Stores the statistics of the latents of the run's clips, and which stage trained the weights."""
    measured = exhibits.choose_clips(run.fitted, count=_CLIPS_MEASURED, sizes=_SIZES_MEASURED)
    statistics = measure_latents(codec, [clip.pixels_THWC for clip in measured])
    measured_C = {"mean": statistics.mean_C.tolist(), "scale": statistics.scale_C.tolist()}
    run.workdir.write_json("latents.json", {"stage": stage, **measured_C})


def _measure_given(run: Run) -> None:
    """Stores, once, the statistics of an autoencoder that was given without them."""
    settings = run.settings
    has_statistics = given_statistics(settings) is not None or (run.workdir.path / "latents.json").exists()
    if settings.autoencoder_weights is not None and not has_statistics:
        channels = np.ones(settings.autoencoder.channels)
        _measure(run, given_codec(settings, 0 * channels, channels))


def _perceptual(settings: Settings, name: str, stage: AutoencoderStage) -> autoencoder_objective.Distance | None:
    """Returns the distance that the configured network sees; UserError where a window is too small for it."""
    if settings.perceptual_weights is None:
        return None
    weights = load_perceptual(settings.perceptual_weights)
    least = smallest_side(weights)
    for frames, height, width, _ in stage.crops.buckets:
        if min(height, width) < least:
            raise UserError(
                f"stages.{name}.crops.buckets has windows of {frames} frames of {height}x{width} px, and the network "
                f"of perceptual_weights needs {least} px a side: make them larger, or turn it off"
            )
    return functools.partial(lpips, jax.device_put(weights))


def _start_autoencoder(run: Run, name: str, maker: StateMaker) -> TrainState:
    """Returns the end of the autoencoder stage before `name`, with whatever is new in this one, or a fresh state."""
    fresh = maker.fresh(rng.key(run.settings.seed, "autoencoder parameters"))
    before = run.settings.run[: run.settings.run.index(name)]
    if not before:
        return fresh
    stage = run.settings.stages[before[-1]]
    assert isinstance(stage, AutoencoderStage), stage
    earlier = _maker(run, functools.partial(build_autoencoder, run.settings, stage), stage.optimizer)
    return carry_over(fresh, _end_of(run, before[-1], earlier, needed_by=name))


def run_prepare(run: Run, name: str, stage: PrepareStage) -> dict[str, Any]:
    """Encodes every clip of all collections once, and makes them the sets that later stages read."""
    share = Share(index=jax.process_index(), count=jax.process_count())
    facts = encode_share(run.settings, run.workdir, run.collections, share, run.stop)
    if share.count > 1:
        multihost_utils.sync_global_devices(f"{name}: every share is encoded")
    if share.index == 0:
        for collection in run.collections:
            finish(collection, run.workdir.prepared(collection.name))
    if share.count > 1:
        multihost_utils.sync_global_devices(f"{name}: the catalogue is written")
    return facts


def encode_share(
    settings: Settings, workdir: Workdir, collections: Sequence[Collection], share: Share, stop: StopSignal
) -> dict[str, Any]:
    """Returns facts of encoding one process's share of the clips that are not encoded yet."""
    name = next(name for name in settings.run if settings.stages[name].kind == "prepare")
    stage = settings.stages[name]
    assert isinstance(stage, PrepareStage), stage
    codec = load_codec(workdir, settings, mesh=_own_mesh(settings))
    chunk = stage.clips_per_shard
    counts = [len(share.of(len(collection.source), chunk=chunk)) for collection in collections]
    facts = {}
    with contextlib.closing(Progress(name, total=sum(counts), unit="clips")) as progress:
        for number, collection in enumerate(collections):
            before = sum(counts[:number])

            def after(clips: int, before: int = before) -> None:
                progress.update(before + clips)
                stop.check(f"{before + clips} of {sum(counts)} clips are prepared")

            summary = prepare(
                collection,
                codec,
                workdir.prepared(collection.name),
                batch=stage.batch,
                clips_per_shard=chunk,
                share=share,
                progress=after,
            )
            facts = {key: facts.get(key, 0) + value for key, value in dataclasses.asdict(summary).items()}
    print("  " + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in facts.items()), flush=True)
    return facts


def _own_mesh(settings: Settings) -> Mesh:
    """Returns the mesh on which a process encodes its share: as configured, or all its devices side by side."""
    if jax.process_count() == 1:
        return make_mesh(settings.mesh)
    return make_mesh(MeshConfig(data=None, fsdp=1, sequence=1, tensor=1), jax.local_devices())


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
    expected = {key: str(value) for key, value in header(codec).items() if isinstance(value, str)}
    prepared = PreparedSet.open([run.workdir.prepared(one.name) for one in run.collections], expected)
    maker = _maker(run, functools.partial(build_generator, settings), settings.optimizer)
    structure, _, _ = abstract_model(maker.build)
    sampler = make_sampler(settings, codec, structure)
    canvases = example_canvases(settings, frames=settings.sampling.frames if stage.mix.videos else 1)

    def show(state: TrainState, step: int) -> None:
        clips = sampler(state.ema[track_name(settings.ema.widths[0])], canvases)
        exhibits.show_samples(run.workdir, run.metrics, name, step, canvases, clips)

    stream = PackedBatches(prepared, stage, settings)
    for rejected in stream.rows.plan.rejected:
        logging.warning("%s: sample %d is left out: %s", name, rejected.sample, rejected.reason)
    task = Task(
        objective=diffusion_objective.make_objective(settings.diffusion, dtype=compute_dtype(settings.precision)),
        maker=maker,
        initial=lambda: _carried_over(run, name, maker),
        step=_step_config(settings, name, stage),
        stream=stream,
        show=show,
    )
    return train(task, run.around)[1]


RUNNERS: dict[type, Callable[..., dict[str, Any]]] = {
    AutoencoderStage: run_autoencoder,
    PrepareStage: run_prepare,
    DiffusionStage: run_diffusion,
}


def example_canvases(settings: Settings, *, frames: int) -> list[Canvas]:
    """Returns the configured prompts as canvases of `frames` frames, at seed 0."""
    sampling = settings.sampling
    return [
        request(settings, prompt, frames=frames, size=sampling.size, fps=sampling.fps, seed=0)
        for prompt in sampling.prompts
    ]


def _maker(run: Run, build: Callable[[jax.Array], Any], optimizer: OptimizerConfig) -> StateMaker:
    return StateMaker(
        build=build,
        make_optimizer=functools.partial(make_optimizer, optimizer),
        ema=run.settings.ema,
        mesh=run.mesh,
    )


def _step_config(settings: Settings, name: str, stage: AutoencoderStage | DiffusionStage) -> StepConfig:
    return StepConfig(
        name=name,
        seed=settings.seed,
        steps=stage.steps,
        accumulate=stage.accumulate,
        schedule=stage.schedule,
        ema=settings.ema,
    )


def _carried_over(run: Run, name: str, maker: StateMaker) -> TrainState:
    """Returns the end of the diffusion stage before `name`, its counters at zero, or a fresh state."""
    before = [
        other
        for other in run.settings.run[: run.settings.run.index(name)]
        if run.settings.stages[other].kind == "diffusion"
    ]
    if not before:
        return maker.fresh(rng.key(run.settings.seed, "generator parameters"))
    return begin_stage(_end_of(run, before[-1], maker, needed_by=name))


def _end_of(run: Run, name: str, maker: StateMaker, *, needed_by: str) -> TrainState:
    """Returns the state at the end of a finished stage."""
    with Checkpointer(run.workdir.checkpoints(name), keep=run.settings.checkpoint.keep) as saver:
        restored = saver.restore(maker.abstract())
    if restored is None:
        raise UserError(
            f"stage {needed_by} goes on from {name}, whose checkpoint is missing in {run.workdir.path}: "
            "restore it, or start in another --workdir"
        )
    return restored.state
