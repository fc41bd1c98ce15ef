"""Metrics of a trained run, printed and written to WORKDIR/evaluation.json.

python -m sora_jax.evaluate --workdir=runs/base
python -m sora_jax.evaluate --workdir=runs/base --checkpoint=2000
"""

from collections.abc import Sequence

from absl import flags

from sora_jax.core.errors import UserError, run_command
from sora_jax.train.run import evaluate, use_compilation_cache
from sora_jax.train.settings import read_settings
from sora_jax.train.workdir import Workdir

_WORKDIR = flags.DEFINE_string("workdir", "runs/base", "The folder of the run.")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "latest", "Step of the newest diffusion stage with checkpoints, or latest."
)


def main(_: Sequence[str]) -> None:
    """Evaluates the averaged weights."""
    if _CHECKPOINT.value != "latest" and not _CHECKPOINT.value.isdecimal():
        raise UserError(f"--checkpoint={_CHECKPOINT.value!r} is neither a step nor latest")
    workdir = Workdir(_WORKDIR.value)
    settings = read_settings(workdir.config())
    use_compilation_cache()
    evaluate(workdir, settings, step=None if _CHECKPOINT.value == "latest" else int(_CHECKPOINT.value))


if __name__ == "__main__":
    run_command(main)
