"""Averages of the weights of any width, made after training of those that were kept (arXiv 2312.02696, section 3.2)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import SingleDeviceSharding

from sora_jax.checkpoints import leaves
from sora_jax.checkpoints.disk_space import state_bytes
from sora_jax.checkpoints.frozen import WeightSource, find_params, load_params
from sora_jax.checkpoints.reading import read_step, saved_leaves, trusted_step
from sora_jax.core.errors import UserError
from sora_jax.core.tree import Params
from sora_jax.experiment.base_weights import transformer_of
from sora_jax.experiment.schema import Settings
from sora_jax.experiment.stage_settings import TEXT_TO_VIDEO
from sora_jax.train.profiles import Profile, mixture
from sora_jax.train.snapshots import Snapshot, find_snapshots
from sora_jax.train.state import track_name
from sora_jax.train.workdir import Workdir

# Of each average, read at once; sums of them are twice as large.
_GROUP_BYTES = 1 << 28


def load_average(
    workdir: Workdir,
    settings: Settings,
    stage: str,
    abstract: Mapping[str, Any],
    *,
    width: float,
    step: int | None = None,
    source: WeightSource | None = None,
) -> tuple[Params, int]:
    """Returns (weights, step) of a stage's checkpoint: the average of relative width `width` up to there.

    That of a track is read. Others are the best mixture of the tracks in this checkpoint, and of those that the stage,
    and stages before it of the same model, kept on the way; summed in float64, some leaves at a time.

    Args:
      workdir: Of the run.
      settings: Of the run.
      stage: Of text to video, with a checkpoint.
      abstract: A `jax.ShapeDtypeStruct` with a sharding for each parameter.
      width: In (0, 0.28).
      step: Of the checkpoint; None: the newest that can be trusted.
      source: As of `load_params`.

    Raises UserError where the run kept too little for this width, and as `load_params`.
    """
    if not 0 < width < 0.28:
        raise UserError(f"--ema={width:g} must be a relative width in (0, 0.28), such as {settings.ema.widths[0]:g}")
    folder, widths = workdir.checkpoints(stage), settings.ema.widths
    exact = width in widths
    path = trusted_step(folder, step=step)
    track, found = f"ema/{track_name(width if exact else widths[0])}", int(path.name)
    if exact:
        return load_params(folder, track, abstract, step=found, source=source)
    trained = {name: abstract[name] for name in find_params(path, track)[0] if name in abstract}
    now = Snapshot(folder=path, updates=_updates(path))
    kept = [*_kept(workdir, settings, stage, trained, before=now.updates), now]
    if len(kept) == 1 or len(widths) == 1:
        raise UserError(
            f"{workdir.path} kept no averages to make one of width {width:g} of: those of its checkpoints are of "
            f"{', '.join(f'{one:g}' for one in widths)}; train with --config.ema.snapshots=16 and two ema.widths"
        )
    rest = {name: one for name, one in abstract.items() if name not in trained}  # what the stage had frozen
    params = load_params(folder, track, rest, step=found, source=source)[0] if rest else {}
    return {**params, **mix_averages(kept, widths, Profile(updates=now.updates, width=width), trained)}, found


def mix_averages(
    kept: Sequence[Snapshot], widths: Sequence[float], wanted: Profile, abstract: Mapping[str, Any]
) -> Params:
    """Returns the average of a profile, float32, of the tracks of `widths` in snapshots that can be trusted.

    `abstract` has a `jax.ShapeDtypeStruct` with a sharding for each parameter. Raises UserError as `mixture`.
    """
    profiles = [Profile(updates=one.updates, width=width) for one in kept for width in widths]
    shares, error = mixture(profiles, wanted)
    logging.info(
        "the average of width %g after %d updates is made of those at %d moments: its profile is met to %.2g %%",
        *(wanted.width, wanted.updates, len(kept), 100 * error),
    )
    by_snapshot = shares.reshape(len(kept), len(widths))
    result: Params = {}
    for group in _groups(abstract):
        sums = {name: _Sum(one) for name, one in group.items()}
        for snapshot, of_tracks in zip(kept, by_snapshot, strict=True):
            averages = _read(snapshot, widths, group)
            for width, share in zip(widths, of_tracks, strict=True):
                for name, value in averages[track_name(width)].items():
                    sums[name].add(share, value)
        result |= {name: total.value() for name, total in sums.items()}
    return result


class _Sum:
    """A sum of arrays in float64, which devices need not have: of the parts that this process holds, on the host."""

    def __init__(self, abstract: jax.ShapeDtypeStruct):
        assert abstract.sharding is not None
        self._shape, self._sharding = abstract.shape, abstract.sharding
        self._parts: dict[Any, np.ndarray | float] = dict.fromkeys(self._sharding.addressable_devices, 0.0)

    def add(self, share: float, value: jax.Array) -> None:
        """Adds `share` times an array."""
        for part in value.addressable_shards:
            self._parts[part.device] = self._parts[part.device] + share * np.asarray(part.data, np.float64)

    def value(self) -> jax.Array:
        """Returns the sum, float32."""
        parts = [jax.device_put(np.asarray(part, np.float32), device) for device, part in self._parts.items()]
        return jax.make_array_from_single_device_arrays(self._shape, self._sharding, parts)


def _kept(
    workdir: Workdir, settings: Settings, stage: str, trained: Mapping[str, Any], *, before: int
) -> list[Snapshot]:
    """Returns what a stage kept before an update, and those before it that trained the same parameters on one clock."""
    wanted = {f"ema/{track_name(width)}/{name}": one for width in settings.ema.widths for name, one in trained.items()}
    found: list[Snapshot] = []
    stages = settings.stages_of(TEXT_TO_VIDEO)
    for name in reversed(stages[: stages.index(stage) + 1]):
        if transformer_of(settings, name) != transformer_of(settings, stage):
            continue
        snapshots = [one for one in find_snapshots(workdir.checkpoints(name)) if one.updates < before]
        for one in snapshots:
            trusted_step(one.folder.parent, step=int(one.folder.name))
        if any(leaves.leaf_differences(saved_leaves(one.folder), wanted, whole=False) for one in snapshots):
            break
        found = [*snapshots, *found]
        if settings.stages[name].begins_anew:
            break
        before = min((one.updates for one in snapshots), default=before)
    return found


def _updates(path: epath.Path) -> int:
    """Returns the clock of the averages of a checkpoint that can be trusted."""
    scalar = jax.ShapeDtypeStruct((), jnp.int32, sharding=SingleDeviceSharding(jax.local_devices()[0]))
    return int(read_step(path, {"updates": scalar}, whole=False).state["updates"])


def _read(snapshot: Snapshot, widths: Sequence[float], group: Mapping[str, Any]) -> dict[str, Params]:
    tracks = {track_name(width): dict(group) for width in widths}
    return read_step(snapshot.folder, {"ema": tracks}, whole=False).state["ema"]


def _groups(abstract: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the parameters in groups of limited size."""
    group: dict[str, Any] = {}
    for name, one in abstract.items():
        if group and state_bytes([*group.values(), one]) > _GROUP_BYTES:
            yield group
            group = {}
        group[name] = one
    if group:
        yield group
