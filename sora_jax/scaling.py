"""A study of scale: runs of several widths, budgets and seeds, the law of their held-out loss, what it predicts.

  python -m sora_jax.scaling --config=configs/scaling.py --workdir=runs/scaling
  python -m sora_jax.scaling --config=configs/scaling.py --workdir=runs/scaling --do=print > commands.sh
  python -m sora_jax.scaling --config=configs/scaling.py --workdir=runs/scaling --do=report

Runs are made one after the other, each in a folder of its own by a process of its own; the same command goes on with
what is missing, and one whose runs are all made fits and writes again. scaling.json and scaling.html say what came of
them. docs/scaling.md says how the ladder is chosen and how to read the page.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from sora_jax.core.commands import Flags, run_command
from sora_jax.core.errors import UserError

_FLAGS = Flags()
_CONFIG = _FLAGS.config("config", "configs/scaling.py", "The experiment; its keys `scaling` say which runs there are.")
_WORKDIR = _FLAGS.path("workdir", "runs/scaling", "The folder of the study, which holds those of its runs.")
_DO = _FLAGS.choice(
    "do",
    "run",
    ["run", "print", "report"],
    "run: make the runs that are missing, then report; print: print the commands that make them, the first one before "
    "all others, for machines of your own; report: fit and write what is made.",
)


def main(_: Sequence[str]) -> None:
    """Makes the runs, or prints their commands, and reports."""
    # Here, because they bring jax: --help should cost nothing.
    import jax

    from sora_jax.experiment.children import Study
    from sora_jax.experiment.scaling import ladder, make_runs
    from sora_jax.experiment.scaling_report import write_study

    # The runs need the devices; the study itself computes nothing worth one.
    jax.config.update("jax_platforms", "cpu")
    # The runs note where they took things from: the same, wherever the next command is given.
    study = Study(folder=Path(_WORKDIR.value).absolute(), file=_CONFIG.file, given=_CONFIG.given)
    first, rungs = ladder(study)
    if _DO.value == "print":
        for child in (first, *(rung.child for rung in rungs)):
            print(shlex.join(study.command(child)))
        return
    if _DO.value == "run":
        make_runs(study, first, rungs)
    made = [rung for rung in rungs if study.is_done(rung.child)]
    if not made:
        raise UserError(f"{study.folder} has no finished run: leave out --do=report to make them")
    write_study(study, made, missing=len(rungs) - len(made))


if __name__ == "__main__":
    run_command(main, _FLAGS)
