"""Runs steps of a run again, writing nothing: whether they come out as they did, or why a run gave up.

  python -m sora_jax.replay --workdir=runs/base --stage=videos --step=500 --steps=100
  python -m sora_jax.replay --workdir=runs/base --stage=videos --failed

Each line of metrics.jsonl has a digest of the weights. The first compares with those, and ends with code 65 at the
first that differs. The second runs the step at which a run ended with code 65 from what it left in WORKDIR/failed, and
says where numbers are not finite.
"""

import dataclasses
from collections.abc import Sequence

from absl import flags

from sora_jax.core.compiling import use_compilation_cache
from sora_jax.core.errors import NumericsError, run_command
from sora_jax.core.paths import define_path
from sora_jax.core.stop import StopSignal
from sora_jax.experiment.datasets import curate_all, open_collections
from sora_jax.experiment.kinds.base import Run
from sora_jax.experiment.preflight import check_start
from sora_jax.experiment.recipes import train_kind
from sora_jax.experiment.replay import diagnose, replay
from sora_jax.experiment.settings import read_settings
from sora_jax.train.metrics import SilentWriter
from sora_jax.train.progress import RunProgress
from sora_jax.train.workdir import Workdir

_WORKDIR = define_path("workdir", "runs/base", "The folder of the run.")
_STAGE = flags.DEFINE_string("stage", None, "The stage whose steps are run again.", required=True)
_STEP = flags.DEFINE_integer("step", None, "Of the checkpoint to begin at; default: the newest.", lower_bound=0)
_STEPS = flags.DEFINE_integer("steps", 100, "How many steps.", lower_bound=1)
_FAILED = flags.DEFINE_bool("failed", False, "Run the step at which the stage gave up.")

_MOST_LISTED = 12


def main(_: Sequence[str]) -> None:
    """Runs, prints, compares."""
    workdir = Workdir(_WORKDIR.value)
    settings = read_settings(workdir.config())
    use_compilation_cache()
    run = Run(
        settings=settings,
        workdir=workdir,
        mesh=check_start(settings),
        metrics=SilentWriter(),
        collections=[],
        stop=StopSignal(),
        progress=RunProgress([]),
    )
    train_kind(settings, _STAGE.value)  # or it is refused, before clips are looked for
    if _FAILED.value:
        _diagnose(run, _STAGE.value)
    else:
        collections = curate_all(open_collections(settings), settings, workdir, writes=False)
        _compare(dataclasses.replace(run, collections=collections), _STAGE.value)


def _compare(run: Run, stage: str) -> None:
    same = steps = 0
    since = "the checkpoint"
    for step in replay(run, stage, step=_STEP.value, steps=_STEPS.value):
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
    run_command(main)
