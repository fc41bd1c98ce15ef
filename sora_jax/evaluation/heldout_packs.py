"""Held-out clips in packs that never change, and a loss of each: measured of any weights, told by size and duration.

Letters: N clips, V losses of a clip, B rows, S segments.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sora_jax.core.errors import UserError
from sora_jax.core.sharding import batch_part, ways
from sora_jax.data.packing.packs import HostPack, PackLayout, Row, stack_rows
from sora_jax.data.packing.pipeline import put_sample
from sora_jax.data.packing.plan import plan_window
from sora_jax.data.packing.pools import clips_by_kind
from sora_jax.data.shards.prepared import PreparedSet
from sora_jax.train.loop import to_device


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ClipLosses:
    """A loss of each clip.

    Attributes:
      loss_N: float64.
      sizes: Height and width of each clip, px.
      frames: Of each clip.
    """

    loss_N: np.ndarray
    sizes: list[tuple[int, int]]
    frames: list[int]

    def facts(self) -> dict[str, Any]:
        """Returns {loss, stderr, by_size, by_duration, clips}: means over clips, `stderr` their standard error."""
        return {
            **mean_and_error(self.loss_N),
            "by_size": [{"size": f"{h}x{w}", **one} for (h, w), one in _grouped(self.loss_N, self.sizes)],
            "by_duration": [{"frames": frames, **one} for frames, one in _grouped(self.loss_N, self.frames)],
            "clips": len(self.loss_N),
        }


def curves_of(facts: Mapping[str, Any]) -> dict[str, float]:
    """Returns facts of losses by names of curves: heldout_loss, heldout_stderr, heldout_loss_size_32x32, and so on."""
    groups = [
        *((f"level_{one['level']:.3g}", one["loss"]) for one in facts.get("by_level", ())),
        *((f"size_{one['size']}", one["loss"]) for one in facts["by_size"]),
        *((f"frames_{one['frames']}", one["loss"]) for one in facts["by_duration"]),
    ]
    named = {f"heldout_loss_{name}": loss for name, loss in groups}
    return {"heldout_loss": facts["loss"], "heldout_stderr": facts["stderr"], **named}


class HeldoutPacks:
    """Held-out clips, packed once, each with its first caption that fits.

    Args:
      prepared: The clips.
      layout: Of the rows.
      rows: Of a batch.
      seed: Of the run.
      kinds: Of the clips that are measured, "images" and "videos"; where there are none of these, all are.
      mesh: Devices, also of several processes, that hold the weights and share the rows; None: the first one.

    Attributes:
      sizes: Height and width of each clip, px.
      frames: Of each clip.

    Raises UserError where no clip fits a row.
    """

    def __init__(
        self,
        prepared: PreparedSet,
        layout: PackLayout,
        *,
        rows: int,
        seed: int,
        kinds: Iterable[str],
        mesh: Mesh | None,
    ):
        self._mesh = mesh
        parts = 1 if mesh is None else ways("batch", mesh)
        by_kind = clips_by_kind(prepared.grid_N3)
        chosen = sorted(index for kind in kinds for index in by_kind[kind].tolist()) or [*range(len(prepared))]
        self._batches = _packed(prepared, chosen, layout, rows=-(-rows // parts) * parts, seed=seed)
        if not self._batches:
            raise UserError(
                f"none of {len(chosen)} held-out clips fits a row of {layout.budget.tokens} tokens and "
                f"{layout.budget.text_tokens} text tokens: raise packing.tokens or packing.text_tokens"
            )
        present = np.concatenate([batch["sample_BS"].ravel() for batch in self._batches])
        self._clips = np.sort(present[present >= 0])
        shapes = [prepared[index].pixel_shape for index in self._clips.tolist()]
        self.frames, self.sizes = [one[0] for one in shapes], [one[1:] for one in shapes]

    def measured(self, losses: Callable[[HostPack], Iterator[jax.Array]]) -> np.ndarray:
        """Returns loss_NV float64 of what yields V arrays loss_BS of a pack; called with the mesh set."""
        found: dict[int, list[float]] = {}
        with contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh):
            for pack in self._batches:
                there_BS = pack["sample_BS"] >= 0
                lost_VBS = [np.asarray(one, np.float64) for one in list(losses(pack))]  # the device need not wait
                lost_NV = np.stack([loss_BS[there_BS] for loss_BS in lost_VBS], axis=1)
                found |= zip(pack["sample_BS"][there_BS].tolist(), lost_NV.tolist(), strict=True)
        return np.array([found[clip] for clip in self._clips.tolist()], np.float64)

    def placed(self, arrays: HostPack) -> dict[str, Any]:
        """Returns the global arrays on the mesh."""
        if self._mesh is None:
            return dict(arrays)
        index, count = batch_part(self._mesh)
        return to_device({name: np.split(value, count)[index] for name, value in arrays.items()}, self._mesh)


def mean_and_error(loss_N: np.ndarray) -> dict[str, float]:
    """Returns the mean over clips and its standard error, 0 of one clip."""
    count = len(loss_N)
    spread = float(loss_N.std(ddof=1)) if count > 1 else 0.0
    return {"loss": float(loss_N.mean()), "stderr": spread / count**0.5}


def _packed(
    prepared: PreparedSet, chosen: Sequence[int], layout: PackLayout, *, rows: int, seed: int
) -> list[HostPack]:
    """Returns batches of so many rows that hold each of some clips once, with its first caption that fits a row."""
    tokens_N = np.prod(prepared.grid_N3[list(chosen)] // layout.patch, axis=1)
    lengths_N = [prepared.text_lengths[index] for index in chosen]
    captions_N = [
        next((number for number, length in enumerate(lengths) if length <= layout.budget.text_tokens), 0)
        for lengths in lengths_N
    ]
    text_N = [lengths[caption] for lengths, caption in zip(lengths_N, captions_N, strict=True)]
    plan = plan_window(tokens_N, np.array(text_N), layout.budget, seed=seed)
    filled: list[Row] = []
    for number in range(-(-len(plan) // rows) * rows):
        row = layout.row()
        if prepared.empty_text is not None:
            row.put_empty(prepared.empty_text)
        for place in plan.row(number).tolist() if number < len(plan) else ():
            put_sample(row, chosen[place], prepared[chosen[place]], captions_N[place])
        filled.append(row)
    return [stack_rows(filled[start : start + rows]) for start in range(0, len(filled), rows)]


def _grouped(loss_N: np.ndarray, groups: list[Any]) -> list[tuple[Any, dict[str, float]]]:
    """Returns the mean of each group, in their order."""
    return [(group, mean_and_error(loss_N[[one == group for one in groups]])) for group in sorted(set(groups))]
