"""Videos and captions to shards, apart from training: the stages of a config up to and including `prepare`.

  python -m sora_jax.prepare --config=configs/folder.py --config.data.path=DIR --workdir=runs/mine

`python -m sora_jax.main` with the same config and workdir goes on from there.
"""

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from sora_jax.core.errors import run_command
from sora_jax.core.host_memory import use_huge_pages

_CONFIG = config_flags.DEFINE_config_file("config", "configs/base.py", "The experiment, as for sora_jax.main.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/base", "The folder that everything is written to.")


def main(_: Sequence[str]) -> None:
    """Runs the stages up to the shards that are not done yet."""
    use_huge_pages()
    from sora_jax.train.run import run  # here, because it brings jax: a second start should cost nothing

    run(_CONFIG.value, _WORKDIR.value, until="prepare")


if __name__ == "__main__":
    run_command(main)
