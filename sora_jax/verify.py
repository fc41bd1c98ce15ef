"""Checks what a run has written: every checkpoint, every record of every shard. It changes nothing.

python -m sora_jax.verify --workdir=runs/base

Of a checkpoint: each file by its digest, leaves against those that the config builds (missing, extra, shape, dtype),
and that all values are finite. Shards of held-out clips are read as well. Ends with code 74 when something is wrong,
after naming all of it. A run may be writing meanwhile: no accelerator is touched.
"""

import contextlib
from collections.abc import Sequence

import jax
from etils import epath

from sora_jax.checkpoints.retention import read_record
from sora_jax.core.commands import Flags, run_command
from sora_jax.core.errors import StorageError
from sora_jax.data.shards.prepared import PreparedSet
from sora_jax.experiment.audit import checkpoint_faults, open_shards, record_faults, shard_folders
from sora_jax.experiment.settings import read_settings
from sora_jax.train.progress import Progress
from sora_jax.train.workdir import Workdir

_FLAGS = Flags()
_WORKDIR = _FLAGS.workdir()


def main(_: Sequence[str]) -> None:
    """Checks, prints what is whole and all that is not."""
    jax.config.update("jax_platforms", "cpu")
    workdir = Workdir(_WORKDIR.value)
    settings = read_settings(workdir.config())
    faults = 0
    for name, found in checkpoint_faults(workdir, settings):
        faults += bool(found)
        record = read_record(epath.Path(workdir.path / "checkpoints" / name))
        by = "unknown versions" if record is None else ", ".join(f"{n} {v}" for n, v in record.versions.items())
        print("\n".join(f"checkpoint {name}: {line}" for line in found or [f"whole, saved by {by}"]), flush=True)
    for what, folder in shard_folders(workdir, settings):
        prepared = open_shards(folder)
        if not isinstance(prepared, PreparedSet):
            faults += len(prepared)
            print("\n".join([f"{what}: no record can be read", *prepared]), flush=True)
            continue
        with contextlib.closing(Progress("verify", total=len(prepared), unit="records")) as progress:
            found = record_faults(prepared, progress=progress.update)
        faults += len(found)
        print("\n".join([f"{what}: {len(prepared)} records, {len(found)} damaged", *found]), flush=True)
    if faults:
        raise StorageError(
            f"{faults} parts of {workdir.path} are damaged: restore them from a copy; without one a run goes on from "
            "the newest checkpoint that is whole, and where shards are damaged prepare in a new --workdir"
        )


if __name__ == "__main__":
    run_command(main, _FLAGS)
