"""Whether what a run wrote is still there as it was: files of checkpoints by digest, records of shards one by one."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from etils import epath

from sora_jax.core.errors import DataError
from sora_jax.data.shards import PreparedSet
from sora_jax.train import manifest
from sora_jax.train.workdir import Workdir

_THREADS = 8


def checkpoint_faults(workdir: Workdir) -> Iterator[tuple[str, str | None]]:
    """Yields (STAGE/STEP, what is wrong or None) of every checkpoint."""
    root = workdir.path / "checkpoints"
    for path in sorted(root.glob("*/*"), key=lambda path: (path.parent, len(path.name), path.name)):
        if path.name.isdecimal():
            yield f"{path.parent.name}/{path.name}", manifest.distrust(epath.Path(path))


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
