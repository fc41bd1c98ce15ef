"""The stages of a run, in order: each is done once, and an interrupted one goes on."""

import functools
import time

from absl import logging
from etils import epath

from sora_jax.checkpoints.checkpoint import Checkpointer
from sora_jax.checkpoints.retention import find_steps
from sora_jax.core import failure
from sora_jax.core.distributed import from_first, wait_for_all
from sora_jax.core.errors import UserError
from sora_jax.core.tree import abstract_model
from sora_jax.experiment.init_from import find_source
from sora_jax.experiment.kinds import KINDS, names_until, training
from sora_jax.experiment.kinds.autoencoder import take_given
from sora_jax.experiment.kinds.base import Run
from sora_jax.experiment.recipes import state_maker
from sora_jax.experiment.schema import Settings
from sora_jax.train.state import TrainState, with_frozen


def run_stages(run: Run, *, until: str | None = None) -> None:
    """Runs every stage that is not done yet, in order, and records the facts of each.

    `until` is the last kind of stage to run; None runs all.
    """
    _check_sources(run)
    take_given(run)
    names = names_until(run.settings, until)
    for name in names:
        if name not in run.workdir.facts()["stages"]:
            KINDS[run.settings.stages[name].kind].compile_ahead(run, name)
    for name in names:
        stage = run.settings.stages[name]
        if from_first(f"is {name} done", functools.partial(_is_done, run, name, until)):
            logging.info("stage %s is done", name)
            continue
        failure.at(stage=name)
        run.progress.begin(name)
        began = time.monotonic()
        facts = KINDS[stage.kind].run(run, name, functools.partial(end_before, run, name))
        run.workdir.finish_stage(name, {**facts, "kind": stage.kind, "seconds": time.monotonic() - began})
        run.progress.end()
        wait_for_all(f"{name} is done")
        run.stop.check(f"stage {name} is done")


def _check_sources(run: Run) -> None:
    """Raises UserError where a stage that has not begun cannot start from the run that it names."""
    for name, kind in training(run.settings).items():
        stage = kind.of(run.settings, name)
        if stage.start_from is None:
            continue
        if name not in run.workdir.facts()["stages"] and not find_steps(epath.Path(run.workdir.checkpoints(name))):
            maker = kind.maker(run.settings, name, run.mesh)
            source = find_source(name, stage, abstract_model(maker.build)[1], maker.source)
            there, here = source.prediction, kind.prediction(run.settings)
            if None not in (there, here) and there != here:
                raise UserError(
                    f"stages.{name}.start_from: the network in {source.folder} outputs {there} and that of this config "
                    f"{here}: pass --config.diffusion.path.prediction={there}"
                )
            scale, lora = source.adapter_scale, run.settings.transformer.lora
            if scale is not None and lora is not None and scale != lora.scale:
                alpha = scale * (lora.rank or 1)
                raise UserError(
                    f"stages.{name}.start_from: the adapters in {source.folder} are multiplied by {scale:g}, and those "
                    f"of this config by {lora.scale:g}: pass --config.transformer.lora.alpha={alpha:g}"
                )


def _is_done(run: Run, name: str, until: str | None) -> bool:
    kind = KINDS[run.settings.stages[name].kind]
    return name in run.workdir.facts()["stages"] and not kind.is_outdated(run, name, until)


def end_before(run: Run, name: str) -> TrainState | None:
    """Returns the end of the stage before `name` that trains the same model; None where there is none.

    Raises UserError where its checkpoint is missing.
    """
    settings = run.settings
    before = stages_before(settings, name)
    if not before:
        return None
    maker, folder = state_maker(settings, before[-1], run.mesh), run.workdir.checkpoints(before[-1])
    with Checkpointer(folder, settings.checkpoint) as saver:
        restored = saver.restore(maker.abstract().saved)
    if restored is None:
        raise UserError(
            f"stage {name} goes on from {before[-1]}, whose checkpoint is missing in {run.workdir.path}: "
            "restore it, or start in another --workdir"
        )
    return with_frozen(maker, restored, folder)


def stages_before(settings: Settings, name: str) -> list[str]:
    """Returns the stages of the run before `name` that train the same model, and of two experts the same one."""
    kinds = training(settings)
    model, lineage = settings.stages[name].trains, kinds[name].lineage(settings, name)
    earlier = (one for one in settings.run[: settings.run.index(name)] if settings.stages[one].trains == model)
    return [one for one in earlier if kinds[one].lineage(settings, one) == lineage]
