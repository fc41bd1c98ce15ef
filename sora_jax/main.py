"""The main job: trains every stage of the config in order, goes on by itself, samples, evaluates, reports.

python -m sora_jax.main --config=configs/base.py --workdir=runs/base
python -m sora_jax.main --config=configs/base.py --workdir=runs/short --config.stages.videos.steps=200
"""

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from sora_jax.core.errors import run_command
from sora_jax.core.host_memory import use_huge_pages

_CONFIG = config_flags.DEFINE_config_file(
    "config", "configs/base.py", "The experiment; keys are overridden as --config.KEY=VALUE."
)
_WORKDIR = flags.DEFINE_string("workdir", "runs/base", "The folder that everything is written to.")
_UNTIL = flags.DEFINE_enum(
    "until",
    None,
    ["autoencoder", "prepare", "diffusion"],
    "The last kind of stage to run; the rest waits.",
)
_FRESH_DATA = flags.DEFINE_bool(
    "fresh_data", False, "Keep the weights and go on although the data of a stage in progress changed."
)


def main(_: Sequence[str]) -> None:
    """Runs the stages that are not done yet."""
    use_huge_pages()
    from sora_jax.train.run import run  # here, because it brings jax: a second start should cost nothing

    run(_CONFIG.value, _WORKDIR.value, until=_UNTIL.value, fresh_data=_FRESH_DATA.value)


if __name__ == "__main__":
    run_command(main)
