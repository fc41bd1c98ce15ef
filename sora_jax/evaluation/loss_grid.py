"""The loss on held-out clips at fixed noise levels, with fixed noise: the same for every checkpoint and run of a seed.

So what differs between two measurements are the weights alone. A clip's noise depends on its name, not on what it is
packed with; neighbouring levels share it with opposite signs, so that what it adds by chance cancels in their mean.
Nothing of a clip is given, and no caption is left out.

Letters: N clips, V noise levels, B rows, L tokens, S segments, P patch width.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sora_jax.core import rng
from sora_jax.core.compiling import run_often
from sora_jax.core.distributed import together
from sora_jax.core.sharding import replicated
from sora_jax.core.tree import Params, merge_model
from sora_jax.data.packing.packs import HostPack, PackLayout
from sora_jax.data.shards.prepared import PreparedSet
from sora_jax.diffusion import known, path
from sora_jax.evaluation.heldout_packs import ClipLosses, HeldoutPacks, curves_of, mean_and_error
from sora_jax.models.text_to_video import Pack

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
        whole = ClipLosses(loss_N=self.loss_NV.mean(axis=1), sizes=self.sizes, frames=self.frames).facts()
        pairs = zip(self.levels, self.loss_NV.T, strict=True)
        return {**whole, "by_level": [{"level": level, **mean_and_error(loss)} for level, loss in pairs]}

    def scalars(self) -> dict[str, float]:
        """Returns the same by names of curves: heldout_loss, heldout_stderr, heldout_loss_level_0.06, and so on."""
        return curves_of(self.facts())


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
        low, high = noise_range
        self.levels = tuple(low + (high - low) * (number + 0.5) / LEVELS for number in range(LEVELS))
        self._packs = HeldoutPacks(prepared, layout, rows=rows, seed=seed, kinds=kinds, mesh=mesh)
        self._names, self._seed = prepared.source_ids(), seed
        self._measure = _make_measure(structure, config, dtype, mesh)

    def __call__(self, params: Params) -> LossTable:
        """Returns the loss with all parameters of the generator; every process calls it, and gets the same."""
        loss_NV = self._packs.measured(lambda pack: self._losses(params, pack))
        return LossTable(levels=self.levels, loss_NV=loss_NV, sizes=self._packs.sizes, frames=self._packs.frames)

    def _losses(self, params: Params, pack: HostPack) -> Iterator[jax.Array]:
        """Yields loss_BS of a batch at each level."""
        placed = self._packs.placed(pack)
        for pair in range(LEVELS // 2):
            noise_BLP = self._noise(pack, pair)
            for level, noise in zip(self.levels[2 * pair :], (noise_BLP, -noise_BLP), strict=False):
                yield self._measure(params, {**placed, **self._packs.placed({"noise_BLP": noise})}, np.float32(level))

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
    shardings = None if mesh is None else replicated(mesh)
    measured = jax.jit(measure, out_shardings=shardings, compiler_options=run_often())
    return together(measured, every_time=True)
