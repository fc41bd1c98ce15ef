"""Whether what a run wrote is as it was, and fit for use: checkpoints leaf by leaf, shards record by record."""

import functools
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import SingleDeviceSharding

from sora_jax.checkpoints import frozen, leaves, manifest
from sora_jax.checkpoints.disk_space import state_bytes
from sora_jax.checkpoints.reading import read_step, saved_leaves
from sora_jax.core.errors import CommandError, DataError
from sora_jax.core.mesh import MeshConfig, make_mesh
from sora_jax.data.shards import files
from sora_jax.data.shards.catalogue import read_catalogue
from sora_jax.data.shards.prepared import PreparedSet
from sora_jax.experiment.kinds import training
from sora_jax.experiment.schema import Settings
from sora_jax.train.snapshots import AVERAGES
from sora_jax.train.workdir import Workdir

# Leaves read at once.
_GROUP_BYTES = 1 << 30
_THREADS = 8


def checkpoint_faults(workdir: Workdir, settings: Settings) -> Iterator[tuple[str, list[str]]]:
    """Yields (STAGE/STEP, all that is wrong with it) of every checkpoint.

    Files are compared with what was written; where all are the same, leaves with those that the config builds, and
    values must be finite. They are read on the first device, 1 GiB at a time.
    """
    root = workdir.path / "checkpoints"
    wanted = functools.cache(functools.partial(_wanted_leaves, settings))
    paths = [path for part in ("", f"{frozen.FROZEN}/", f"{AVERAGES}/") for path in root.glob(f"*/{part}*")]
    for path in sorted(paths, key=lambda path: (path.parent, len(path.name), path.name)):
        if path.name.isdecimal():
            directory, folder = epath.Path(path), path.parent.relative_to(root).as_posix()
            found = manifest.faults(directory) or _leaf_faults(directory, wanted(folder))
            if directory.exists():  # and was not removed meanwhile, by the run that goes on
                yield f"{folder}/{path.name}", found


def _wanted_leaves(settings: Settings, folder: str) -> dict[str, Any] | None:
    """Returns what stands for the leaves of checkpoints in the folder STAGE, STAGE/frozen or STAGE/averages.

    None where the config has no such stage.
    """
    stage, _, part = folder.partition("/")
    kind = training(settings, settings.stages).get(stage)
    if kind is None:
        return None
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, sequence=1, tensor=1), jax.devices()[:1])
    state = kind.maker(settings, stage, mesh).abstract()
    parts: dict[str, Any] = {"": state.saved, frozen.FROZEN: {"params": state.frozen}, AVERAGES: {"ema": state.ema}}
    return leaves.by_name(parts[part])


def _leaf_faults(directory: epath.Path, wanted: Mapping[str, Any] | None) -> list[str]:
    try:
        saved = saved_leaves(directory)
        found = [] if wanted is None else leaves.leaf_differences(saved, wanted, whole=True)
        for group in _groups(saved):
            state = read_step(directory, leaves.nest(group), whole=False).state
            values = {name: np.asarray(leaf) for name, leaf in leaves.by_name(state).items()}
            found += [f"{name} is not finite" for name, value in values.items() if not np.all(np.isfinite(value))]
    except (CommandError, OSError, ValueError, KeyError) as error:
        return [f"its state cannot be read: {error}"]
    return found


def _groups(saved: Mapping[str, Any]) -> Iterator[dict[str, jax.ShapeDtypeStruct]]:
    """Yields the floating leaves, as they are to be read, in groups of limited size."""
    place = SingleDeviceSharding(jax.local_devices()[0])
    group: dict[str, jax.ShapeDtypeStruct] = {}
    for name, leaf in saved.items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            continue
        abstract = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
        if group and state_bytes([*group.values(), abstract]) > _GROUP_BYTES:
            yield group
            group = {}
        group[name] = abstract
    if group:
        yield group


def shard_folders(workdir: Workdir, settings: Settings) -> Iterator[tuple[str, Path]]:
    """Yields (what they are, folder) of the shards that are there, of prepared clips and of held-out ones."""
    for name in settings.collections:
        if (folder := workdir.prepared(name)).exists():
            yield f"shards of {name}", folder
    for name in settings.collections:
        folder = workdir.heldout(name)
        # The folder of one collection lies in that of the first, which need not hold any out.
        if folder.exists() and any(path.is_file() for path in folder.iterdir()):
            yield f"held-out shards of {name}", folder


def open_shards(folder: Path) -> PreparedSet | list[str]:
    """Returns the shards in a folder, or all that keeps their records from being read.

    Raises UserError where there are none yet.
    """
    reads: list[tuple[Callable[[Path], object], Path]]
    reads = [(read, folder) for read in (files.read_header, files.read_empty_text, read_catalogue)]
    reads += [(files.read_index, path) for path in files.index_paths(folder)]
    found = []
    for read, path in reads:
        try:
            read(path)
        except CommandError as error:
            found.append(str(error))
    if found:
        return found
    try:
        return PreparedSet(folder)
    except DataError as error:  # an index that the catalogue names is gone
        return [str(error)]


def record_faults(prepared: PreparedSet, *, progress: Callable[[int], None] = lambda done: None) -> list[str]:
    """Returns what is wrong with records: bytes that changed, a size other than the index's, values not finite."""

    def fault(index: int) -> str | None:
        try:
            sample = prepared[index]
        except DataError as error:
            return str(error).split(": restore")[0]
        if sample.latent_THWC.shape[:3] != tuple(prepared.grid_N3[index].tolist()):
            return f"{sample.source_id} has a latent of {sample.latent_THWC.shape}, the index says another size"
        return None if np.all(np.isfinite(sample.latent_THWC)) else f"the latent of {sample.source_id} is not finite"

    found = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(prepared), 1024):
            numbers = range(start, min(start + 1024, len(prepared)))
            found += [said for said in pool.map(fault, numbers) if said]
            progress(numbers.stop)
    return found
