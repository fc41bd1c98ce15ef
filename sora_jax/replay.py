"""Runs steps of a run again, writing nothing: whether they come out as they did, or why a run gave up.

  python -m sora_jax.replay --workdir=runs/base --stage=videos --checkpoint=2000 --steps=100
  python -m sora_jax.replay --workdir=runs/base --stage=videos --failed

Each line of metrics.jsonl has a digest of the weights. The first compares with those, and ends with code 65 at the
first that differs. The second runs the step at which a run ended with code 65 from what it left in WORKDIR/failed, and
says where numbers are not finite.
"""

import dataclasses
from collections.abc import Iterable, Sequence

from sora_jax.core.commands import Flags, run_command
from sora_jax.core.compiling import use_compilation_cache
from sora_jax.core.errors import NumericsError, UserError
from sora_jax.core.stop import StopSignal
from sora_jax.data.fitting import Collection
from sora_jax.experiment.compile_times import compiling_told
from sora_jax.experiment.datasets import curate_all, open_collections
from sora_jax.experiment.kinds.base import Run
from sora_jax.experiment.models import step_of
from sora_jax.experiment.preflight import check_start
from sora_jax.experiment.recipes import train_kind
from sora_jax.experiment.replay import Replayed, diagnose, replay
from sora_jax.experiment.settings import read_settings
from sora_jax.train.metrics import SilentWriter
from sora_jax.train.progress import RunProgress
from sora_jax.train.workdir import Workdir

_FLAGS = Flags()
_WORKDIR = _FLAGS.workdir()
_STAGE = _FLAGS.string("stage", "", "The stage whose steps are run again.")
_CHECKPOINT = _FLAGS.checkpoint("Step of the checkpoint to begin at, or latest.")
_FLAGS.rename("step", "checkpoint")
_STEPS = _FLAGS.integer("steps", 100, "How many steps.", least=1)
_FAILED = _FLAGS.switch("failed", False, "Run the step at which the stage gave up.")

_MOST_LISTED = 12


def main(_: Sequence[str]) -> None:
    """Runs, prints, compares."""
    step = step_of(_CHECKPOINT.value)
    workdir = Workdir(_WORKDIR.value)
    settings = read_settings(workdir.config())
    cache = use_compilation_cache()
    run = Run(
        settings=settings,
        workdir=workdir,
        mesh=check_start(settings),
        metrics=SilentWriter(),
        collections=[],
        stop=StopSignal(),
        progress=RunProgress([]),
    )
    kind = train_kind(settings, _STAGE.value)  # or it is refused, before clips are looked for
    if not _FAILED.value and settings.stages[_STAGE.value].reads_clips:
        run = dataclasses.replace(run, collections=_clips(run, _STAGE.value))
    with compiling_told(f"replay of {_STAGE.value}", kind.compiling, settings, cache):
        if _FAILED.value:
            _diagnose(run, _STAGE.value)
        else:
            _compare(replay(run, _STAGE.value, step=step, steps=_STEPS.value), _STAGE.value)


def _clips(run: Run, stage: str) -> list[Collection]:
    """Returns the clips of a run, for a stage that reads them and not what was prepared of them."""
    try:
        collections = open_collections(run.settings)
    except UserError as error:
        raise UserError(
            f"{stage} trains on the clips themselves, not on what was prepared of them: put them back where "
            f"{run.workdir.path} read them ({error})"
        ) from error
    return curate_all(collections, run.settings, run.workdir, writes=False)


def _compare(replayed: Iterable[Replayed], stage: str) -> None:
    same = steps = 0
    since = "the checkpoint"
    for step in replayed:
        steps += 1
        said = "" if step.digest_then is None else ", as then" if not step.differs else f", then {step.digest_then}"
        facts = f"loss {step.loss:.6g}, gradient norm {step.gradient_norm:.6g}, digest {step.digest}{said}"
        print(f"step {step.done}: {facts}", flush=True)
        if step.differs:
            raise NumericsError(
                f"the weights after step {step.done} of {stage} are not those that the run had; they were last the "
                f"same at {since}: what came between was computed wrongly, or with other versions, devices or data"
            )
        if step.digest_then is not None:
            same, since = same + 1, f"step {step.done}"
    print(f"{steps} steps, {same} digests of the run compared: all the same", flush=True)


def _diagnose(run: Run, stage: str) -> None:
    found = diagnose(run, stage)
    print(f"step {found.done} of {stage}: loss {found.loss:.6g}, gradient norm {found.gradient_norm:.6g}")
    print(f"  its batch is of {', '.join(found.names[:_MOST_LISTED])}{', ...' if found.names[_MOST_LISTED:] else ''}")
    for where, count, size in found.bad[:_MOST_LISTED]:
        print(f"  {where}: {count} of {size} numbers are not finite")
    print(f"  {len(found.bad)} arrays hold numbers that are not finite", flush=True)


if __name__ == "__main__":
    run_command(main, _FLAGS)
