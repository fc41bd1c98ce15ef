"""One process's share of the clips, encoded: beside the other processes of a run, or of a heap that many prepare."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from sora_jax.core.distributed import gather
from sora_jax.core.mesh import MeshConfig, make_mesh
from sora_jax.core.stop import StopSignal
from sora_jax.data.fitting import Collection
from sora_jax.experiment.loading import load_codec
from sora_jax.experiment.settings import Settings
from sora_jax.experiment.stage_settings import PrepareStage
from sora_jax.preparation.encode import Share, prepare
from sora_jax.train.workdir import Workdir


def encode_share(
    settings: Settings,
    workdir: Workdir,
    collections: Sequence[Collection],
    share: Share,
    stop: StopSignal,
    shown: Callable[[int], None],
) -> dict[str, Any]:
    """Returns facts of encoding one process's share of the clips that are not encoded yet.

    Of the processes of one run the facts are those of all, and all go on from chunk to chunk together, so that a signal
    to one stops them all. `shown` is called with how many clips of the share are done.
    """
    stage = _stage(settings)
    codec = load_codec(workdir, settings, mesh=_own_mesh(settings))
    counts = clips_of_share(settings, collections, share)
    facts = {}
    for number, collection in enumerate(collections):
        before = sum(counts[:number])

        def after(clips: int, before: int = before) -> None:
            gather("a chunk", False)
            shown(before + clips)
            stop.check(f"{before + clips} of {sum(counts)} clips are prepared")

        summary = prepare(
            collection,
            codec,
            workdir.prepared(collection.name),
            batch=stage.batch,
            clips_per_shard=stage.clips_per_shard,
            share=share,
            progress=after,
        )
        facts = {key: facts.get(key, 0) + value for key, value in dataclasses.asdict(summary).items()}
    while not all(gather("a chunk", True)):  # others have chunks left
        stop.check(f"all {sum(counts)} clips of this process are prepared")
    every = gather("what was prepared", facts)
    facts = {key: sum(one[key] for one in every) for key in facts}
    print("  " + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in facts.items()), flush=True)
    return facts


def clips_of_share(settings: Settings, collections: Sequence[Collection], share: Share) -> list[int]:
    """Returns how many clips of each collection a share has."""
    chunk = _stage(settings).clips_per_shard
    return [len(share.of(len(collection.source), chunk=chunk)) for collection in collections]


def _stage(settings: Settings) -> PrepareStage:
    stages = (settings.stages[name] for name in settings.run)
    return next(stage for stage in stages if isinstance(stage, PrepareStage))


def _own_mesh(settings: Settings) -> Mesh:
    """Returns the mesh on which a process encodes its share: as configured, or all its devices side by side."""
    if jax.process_count() == 1:
        return make_mesh(settings.mesh)
    return make_mesh(MeshConfig(data=None, fsdp=1, sequence=1, tensor=1), jax.local_devices())
