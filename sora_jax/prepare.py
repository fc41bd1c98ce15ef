"""The part of the main job that makes shards: trains the autoencoder if it must, then encodes every clip once.

python -m sora_jax.prepare --config=configs/folder.py --config.data.path=DIR --workdir=runs/mine

Goes on where it was stopped; started again over a heap that has grown it encodes what is new. `sora_jax.main` does the
same stages by itself, and then the rest.

Several processes, on one machine or several that share the workdir, encode a part each, once the autoencoder is trained
(`sora_jax.main --until=autoencoder`); a last call without a part then makes the parts one set:

python -m sora_jax.prepare --config=... --workdir=runs/mine --process_index=0 --process_count=8

Where nothing but captions changed since, --captions_only writes the texts anew and keeps every latent.
"""

from collections.abc import Sequence

from sora_jax.core.commands import Flags, run_command
from sora_jax.core.host_memory import use_huge_pages

_FLAGS = Flags()
_CONFIG = _FLAGS.config("config", "configs/base.py", "The experiment, as for sora_jax.main.")
_WORKDIR = _FLAGS.workdir("The folder that everything is written to.")
_INDEX = _FLAGS.integer("process_index", 0, "Number of this process, from 0, of those that share the clips.")
_COUNT = _FLAGS.integer("process_count", 1, "Processes that share the clips.")
_FRESH_DATA = _FLAGS.switch(
    "fresh_data", False, "Keep the weights and go on although the data of a stage in progress changed."
)
_CAPTIONS_ONLY = _FLAGS.switch(
    "captions_only", False, "Write changed captions anew into a prepared set, and encode no clip again."
)


def main(_: Sequence[str]) -> None:
    """Runs the stages up to the shards that are not done yet, or encodes this process's share of the clips."""
    use_huge_pages()
    # Here, because they bring jax: a second start should cost nothing.
    from sora_jax.core.errors import UserError
    from sora_jax.experiment.model_settings import warn_of_unheard
    from sora_jax.experiment.run import prepare_share, rewrite_captions, run
    from sora_jax.preparation.encode import WHOLE, Share

    share = Share(index=_INDEX.value, count=_COUNT.value)
    if _CAPTIONS_ONLY.value and share != WHOLE:
        raise UserError("--captions_only is done by one process: leave --process_index and --process_count out")
    warn_of_unheard(_CONFIG.value, _CONFIG.given)
    if _CAPTIONS_ONLY.value:
        rewrite_captions(_CONFIG.value, _WORKDIR.value)
    elif share == WHOLE:
        run(_CONFIG.value, _WORKDIR.value, until="prepare", fresh_data=_FRESH_DATA.value)
    else:
        prepare_share(_CONFIG.value, _WORKDIR.value, share, fresh_data=_FRESH_DATA.value)


if __name__ == "__main__":
    run_command(main, _FLAGS)
