"""A study of framing: two runs that differ in square crops of their clips alone, and how often each cuts its subject.

  python -m sora_jax.framing --config=configs/base.py --workdir=runs/framing
  python -m sora_jax.framing --config=configs/base.py --workdir=runs/framing --do=print > commands.sh
  python -m sora_jax.framing --config=configs/base.py --workdir=runs/framing --do=report

Runs are made one after the other, each in a folder of its own by a process of its own; the same command goes on with
what is missing. framing.json and framing.html say what came of them. docs/framing.md says what is measured.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from sora_jax.core.commands import Flags, run_command
from sora_jax.core.errors import UserError

_FLAGS = Flags()
_CONFIG = _FLAGS.config("config", "configs/base.py", "The experiment, of the drawn world.")
_WORKDIR = _FLAGS.path("workdir", "runs/framing", "The folder of the study, which holds those of its runs.")
_DRAWS = _FLAGS.integer("draws", 3, "Samples of each prompt at each size.", least=1)
_DO = _FLAGS.choice(
    "do",
    "run",
    ["run", "print", "report"],
    "run: make the runs that are missing, then report; print: print the commands that make them, the first one before "
    "the others, for machines of your own; report: sample and judge the runs that are made.",
)


def main(_: Sequence[str]) -> None:
    """Makes the runs, or prints their commands, and reports."""
    # Here, because they bring jax: --help should cost nothing.
    from sora_jax.experiment.children import Study, run_children
    from sora_jax.experiment.framing import framing_runs, write_framing

    # The runs note where they took things from: the same, wherever the next command is given.
    study = Study(folder=Path(_WORKDIR.value).absolute(), file=_CONFIG.file, given=_CONFIG.given)
    first, runs = framing_runs(study)
    if _DO.value == "print":
        for child in (*first, *runs):
            print(shlex.join(study.command(child)))
        return
    if _DO.value == "run":
        # Before anything here takes a device: each run needs them all.
        run_children(study, [*first, *runs])
    if missing := [child.name for child in runs if not study.is_done(child)]:
        raise UserError(f"{study.folder} lacks the run {missing[0]}: leave out --do=report to make it")
    write_framing(study, draws=_DRAWS.value)


if __name__ == "__main__":
    run_command(main, _FLAGS)
