"""The loss on held-out clips at fixed noise levels, with fixed noise: the same for every checkpoint and run of a seed.

So what differs between two measurements are the weights alone. A clip's noise depends on its name, not on what it is
packed with; neighbouring levels share it with opposite signs, so that what it adds by chance cancels in their mean.
Nothing of a clip is given, and no caption is left out.

Letters: N clips, V noise levels, B rows, L tokens, S segments, P patch width.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sora_jax.core import rng
from sora_jax.core.distributed import together
from sora_jax.core.errors import UserError
from sora_jax.core.sharding import batch_part, replicated, ways
from sora_jax.core.tree import Params, merge_model
from sora_jax.data.packing.packs import HostPack, PackLayout, Row, stack_rows
from sora_jax.data.packing.pipeline import put_sample
from sora_jax.data.packing.plan import plan_window
from sora_jax.data.packing.pools import clips_by_kind
from sora_jax.data.shards.prepared import PreparedSet
from sora_jax.diffusion import known, path
from sora_jax.models.text_to_video import Pack
from sora_jax.train.loop import to_device

# Noise levels, evenly spaced in the middles of as many equal parts of the range.
LEVELS = 8


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LossTable:
    """What was measured.

    Attributes:
      levels: V noise levels in (0, 1), rising.
      loss_NV: float64, of each clip at each level: the mean over its tokens.
      sizes: Height and width of each clip, px.
      frames: Of each clip.
    """

    levels: tuple[float, ...]
    loss_NV: np.ndarray
    sizes: list[tuple[int, int]]
    frames: list[int]

    def facts(self) -> dict[str, Any]:
        """Returns {loss, stderr, by_level, by_size, by_duration, clips}: means over clips, all levels weighing alike.

        `stderr` is the standard error over clips. It is of one measurement: two of the same clips share their noise,
        and differ by less where nothing changed.
        """
        loss_N = self.loss_NV.mean(axis=1)
        by_level = [{"level": level, **_mean(loss)} for level, loss in zip(self.levels, self.loss_NV.T, strict=True)]
        return {
            **_mean(loss_N),
            "by_level": by_level,
            "by_size": [{"size": f"{h}x{w}", **one} for (h, w), one in _grouped(loss_N, self.sizes)],
            "by_duration": [{"frames": frames, **one} for frames, one in _grouped(loss_N, self.frames)],
            "clips": len(loss_N),
        }

    def scalars(self) -> dict[str, float]:
        """Returns the same by names of curves: heldout_loss, heldout_stderr, heldout_loss_level_0.06, and so on."""
        facts = self.facts()
        groups = [
            *((f"level_{one['level']:.3g}", one["loss"]) for one in facts["by_level"]),
            *((f"size_{one['size']}", one["loss"]) for one in facts["by_size"]),
            *((f"frames_{one['frames']}", one["loss"]) for one in facts["by_duration"]),
        ]
        named = {f"heldout_loss_{name}": loss for name, loss in groups}
        return {"heldout_loss": facts["loss"], "heldout_stderr": facts["stderr"], **named}


class LossGrid:
    """Held-out clips, packed once, on which weights are measured.

    Args:
      structure: Of the generator.
      prepared: The clips.
      layout: Of the rows.
      rows: Of a batch.
      config: What the network outputs and how that is judged, as in training.
      dtype: Of the computation.
      seed: Of the run.
      noise_range: Lowest and highest noise level.
      kinds: Of the clips that are measured, "images" and "videos"; where there are none of these, all are.
      mesh: Devices, also of several processes, that hold the weights and share the rows; None: the first one.

    Raises UserError where no clip fits a row.
    """

    def __init__(
        self,
        structure: Any,
        prepared: PreparedSet,
        layout: PackLayout,
        *,
        rows: int,
        config: path.PathConfig,
        dtype: Any,
        seed: int,
        noise_range: tuple[float, float] = (0.0, 1.0),
        kinds: Iterable[str] = ("images", "videos"),
        mesh: Mesh | None = None,
    ):
        self._mesh, self._seed = mesh, seed
        low, high = noise_range
        self.levels = tuple(low + (high - low) * (number + 0.5) / LEVELS for number in range(LEVELS))
        parts = 1 if mesh is None else ways("batch", mesh)
        self._names = prepared.source_ids()
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
        self._frames, self._sizes = [one[0] for one in shapes], [one[1:] for one in shapes]
        self._measure = _make_measure(structure, config, dtype, mesh)

    def __call__(self, params: Params) -> LossTable:
        """Returns the loss with all parameters of the generator; every process calls it, and gets the same."""
        found = np.full((len(self._names), len(self.levels)), np.nan)
        with contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh):
            for pack in self._batches:
                there_BS = pack["sample_BS"] >= 0
                for level, loss_BS in enumerate(list(self._losses(params, pack))):  # the device need not wait
                    found[pack["sample_BS"][there_BS], level] = np.asarray(loss_BS)[there_BS]
        return LossTable(levels=self.levels, loss_NV=found[self._clips], sizes=self._sizes, frames=self._frames)

    def _losses(self, params: Params, pack: HostPack) -> Iterator[jax.Array]:
        """Yields loss_BS of a batch at each level."""
        placed = self._placed(pack)
        for pair in range(LEVELS // 2):
            noise_BLP = self._noise(pack, pair)
            for level, noise in zip(self.levels[2 * pair :], (noise_BLP, -noise_BLP), strict=False):
                yield self._measure(params, {**placed, **self._placed({"noise_BLP": noise})}, np.float32(level))

    def _noise(self, pack: HostPack, number: int) -> np.ndarray:
        """Returns noise_BLP float32, that of each clip by its name and the number of the pair of levels."""
        noise_BLP, width = np.zeros_like(pack["tokens_BLP"]), pack["tokens_BLP"].shape[-1]
        for row, samples_S in enumerate(pack["sample_BS"].tolist()):
            for slot, sample in enumerate(samples_S):
                if sample >= 0:
                    there_L = pack["segment_BL"][row] == slot + 1
                    drawn = rng.generator(self._seed, f"held-out noise of {self._names[sample]}", number)
                    noise_BLP[row, there_L] = drawn.standard_normal((int(there_L.sum()), width), np.float32)
        return noise_BLP

    def _placed(self, arrays: HostPack) -> dict[str, Any]:
        """Returns the global arrays on the mesh."""
        if self._mesh is None:
            return dict(arrays)
        index, count = batch_part(self._mesh)
        return to_device({name: np.split(value, count)[index] for name, value in arrays.items()}, self._mesh)


@functools.lru_cache(maxsize=4)
def _make_measure(
    structure: Hashable, config: path.PathConfig, dtype: Any, mesh: Mesh | None
) -> Callable[[Params, Pack, np.float32], jax.Array]:
    """Returns the jitted `(params, pack with noise_BLP, level) -> loss_BS`, 0 where a segment is absent."""

    def measure(params: Params, pack: Pack, level: jax.Array) -> jax.Array:
        model, segment_BL = merge_model(structure, params), pack["segment_BL"]
        sigma_BS = jnp.full(pack["grid_BS3"].shape[:2], level, jnp.float32)
        given = known.condition(
            pack["tokens_BLP"],
            noise_BLP=pack["noise_BLP"],
            known_BL=jnp.zeros(segment_BL.shape, bool),
            segment_BL=segment_BL,
            sigma_BS=sigma_BS,
            known_sigma_BS=jnp.zeros_like(sigma_BS),
        )
        prediction = model.predict(
            given.tokens_BLP,
            pack,
            levels_BG=given.levels_BG,
            level_BL=given.level_BL,
            text_BKE=model.encode_text(pack, dtype),
            text_segment_BK=pack["text_segment_BK"],
        )
        loss_BL = path.token_loss(
            prediction.tokens_BLP,
            clean_BLP=pack["tokens_BLP"],
            noise_BLP=pack["noise_BLP"],
            sigma_BL=known.token_level(given.levels_BG, given.level_BL),
            config=config,
        )
        own_BSL = segment_BL[:, None] == jnp.arange(1, sigma_BS.shape[1] + 1)[:, None]
        return jnp.sum(own_BSL * loss_BL[:, None], axis=-1) / jnp.maximum(jnp.sum(own_BSL, axis=-1), 1)

    # Whole on every device: each process reads all of it.
    return together(jax.jit(measure, out_shardings=None if mesh is None else replicated(mesh)), every_time=True)


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


def _mean(loss_N: np.ndarray) -> dict[str, float]:
    """Returns the mean over clips and its standard error, 0 of one clip."""
    count = len(loss_N)
    spread = float(loss_N.std(ddof=1)) if count > 1 else 0.0
    return {"loss": float(loss_N.mean()), "stderr": spread / count**0.5}


def _grouped(loss_N: np.ndarray, groups: list[Any]) -> list[tuple[Any, dict[str, float]]]:
    """Returns the mean of each group, in their order."""
    return [(group, _mean(loss_N[[one == group for one in groups]])) for group in sorted(set(groups))]
