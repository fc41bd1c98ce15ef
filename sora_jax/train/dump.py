"""What reproduces a step at which a run gave up: the state before it, and its batch.

    WORKDIR/failed/STAGE/STEP/            a checkpoint, as in `checkpoints`
    WORKDIR/failed/STAGE/STEP-INDEX.npz   the part of the batch that process INDEX had

`sora_jax.replay --failed` runs the step again.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from sora_jax.checkpoints.checkpoint import Checkpointer
from sora_jax.checkpoints.retention import CheckpointConfig
from sora_jax.train.reporter import HostBatch, StepResult
from sora_jax.train.state import TrainState
from sora_jax.train.workdir import Workdir

_POLICY = CheckpointConfig(
    every_steps=1, every_minutes=None, keep=1, keep_best=0, keep_every_steps=None, keep_every_hours=None
)


def write_failed(
    workdir: Workdir, stage: str, state: TrainState, bad: StepResult, *, names: list[str], notes: Mapping[str, str]
) -> None:
    """Writes what reproduces `bad`, a step that changed nothing, as no step after it did: `state` may be later.

    `names` are those of its samples, `notes` what checkpoints of the stage note besides.

    Raises StorageError where the file system refuses.
    """
    before = bad.done - 1
    # The number of the step is part of its randomness.
    step = jax.device_put(jnp.full((), before, jnp.int32), state.step.sharding)
    none = jax.device_put(jnp.zeros((), jnp.int32), state.consecutive_skips.sharding)
    folder = workdir.failed(stage)
    with Checkpointer(folder, _POLICY) as saver:
        data = {"step": before, "batch": bad.number, "names": names, **notes}
        saver.save(before, dataclasses.replace(state.saved, step=step, consecutive_skips=none), data, workdir.config())
    write_batch(folder, before, bad.batch)
    logging.warning("%s: what reproduces step %d is in %s: see sora_jax.replay --failed", stage, bad.done, folder)


def write_batch(folder: Path, before: int, batch: HostBatch) -> None:
    """Writes this process's part of the batch of the step after `before`."""
    # npz knows no bfloat16, of which stored texts may be; float32 holds the same numbers.
    plain = {name: value.astype(np.float32) if value.dtype.kind == "V" else value for name, value in batch.items()}
    np.savez(_part(folder, before), allow_pickle=False, **plain)


def read_batch(folder: Path, before: int) -> HostBatch:
    """Returns this process's part of the batch of the step after `before`."""
    with np.load(_part(folder, before), allow_pickle=False) as arrays:
        return dict(arrays)


def _part(folder: Path, before: int) -> Path:
    return folder / f"{before}-{jax.process_index()}.npz"
