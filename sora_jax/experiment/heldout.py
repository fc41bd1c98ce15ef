"""Held-out clips as the transformer sees them, and what their loss is measured with."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh

from sora_jax.core.distributed import is_first, wait_for_all
from sora_jax.core.errors import UserError
from sora_jax.core.precision import compute_dtype
from sora_jax.data.fitting import Collection
from sora_jax.data.shards.prepared import PreparedSet
from sora_jax.data.shards.skipped import SKIPPED_FILE, read_skipped
from sora_jax.data.sources.split import ChosenSource
from sora_jax.evaluation.loss_grid import LossGrid
from sora_jax.experiment.loading import load_codec, load_shower, pack_layout
from sora_jax.experiment.sample_log import evenly
from sora_jax.experiment.schema import Settings
from sora_jax.models.codec import Codec
from sora_jax.preparation.encode import finish, prepare
from sora_jax.train.workdir import Workdir

# Said where a loss cannot be measured.
NONE_HELD_OUT = "no clips are held out: set data.heldout_share, such as 0.02, before training in a new workdir"


def prepare_heldout(
    workdir: Workdir, settings: Settings, collections: Sequence[Collection], codec: Codec, *, count: int, batch: int
) -> PreparedSet:
    """Returns up to `count` held-out clips, evenly of all collections that have some, encoded where they are not yet.

    `batch` clips are encoded at once. The first process does it; all must call this. Raises UserError where no
    collection holds clips out, DataError where too many cannot be used.
    """
    few = _few_of_each(collections, count)
    if not few:
        raise UserError(NONE_HELD_OUT)
    # Of several processes each has one of its own, for which all must read the checkpoint together.
    own = codec if jax.process_count() == 1 else load_codec(workdir, settings)
    if is_first():
        for one in few:
            _prepare(workdir, settings, one, own, batch=batch)
    wait_for_all("held-out clips are encoded")
    return PreparedSet(*(workdir.heldout(one.name) for one in few))


def count_heldout(collections: Sequence[Collection], settings: Settings) -> int:
    """Returns how many held-out clips a run measures its models on."""
    return sum(len(one.source) for one in _few_of_each(collections, settings.evaluation.clips))


def _few_of_each(collections: Sequence[Collection], count: int) -> list[Collection]:
    """Returns up to `count` held-out clips, evenly of all collections that have some, in the place of their clips."""
    holding = [(one, one.heldout) for one in collections if one.heldout is not None]
    return [
        dataclasses.replace(one, source=ChosenSource(held, evenly(len(held), -(-count // len(holding)))), heldout=None)
        for one, held in holding
    ]


def _prepare(workdir: Workdir, settings: Settings, few: Collection, codec: Codec, *, batch: int) -> None:
    """Makes the clips of a collection a set of held-out ones, without those that cannot be used, which are counted."""
    folder, shower = workdir.heldout(few.name), load_shower(settings, codec)
    # Whole batches: their programs are those that encoded what is trained on.
    prepare(few, codec, folder, batch=batch, clips_per_shard=len(few.source), shower=shower, whole_batches=True)
    # Chance alone makes the share of bad ones large among few: that of all clips was judged as they were prepared.
    finish(dataclasses.replace(few, limits=dataclasses.replace(few.limits, max_bad_share=1.0)), folder)
    total, skipped = len(few.source), read_skipped(folder)
    bad = sum((few.source.source_id(index), few.source.origin(index)) in skipped for index in range(total))
    said = f"{few.name}: %s held-out clips could be used; {folder / SKIPPED_FILE} names the others with their reasons"
    if bad == total:
        raise UserError(f"{said % f'none of {total}'}: raise data.heldout_share in a new workdir, or mend them")
    if bad:
        logging.warning("%s", said % f"{total - bad} of {total}")
    settings.text_encoder.release()


def make_loss_grid(
    settings: Settings,
    structure: Any,
    prepared: PreparedSet,
    *,
    noise_range: tuple[float, float] = (0.0, 1.0),
    kinds: Iterable[str] = ("images", "videos"),
    mesh: Mesh | None = None,
) -> LossGrid:
    """Returns what measures the loss of a generator of the run on held-out clips; arguments as of `LossGrid`."""
    return LossGrid(
        structure,
        prepared,
        pack_layout(settings),
        rows=settings.packing.rows,
        config=settings.diffusion.path,
        dtype=compute_dtype(settings.precision),
        seed=settings.seed,
        noise_range=noise_range,
        kinds=kinds,
        mesh=mesh,
    )
