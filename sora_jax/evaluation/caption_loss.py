"""The loss of a captioner on held-out clips: how likely their own captions are, the same clips and captions each time.

Letters: B rows, S segments, K text tokens, Q slots of a text token.
"""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sora_jax.core.compiling import run_often
from sora_jax.core.distributed import together
from sora_jax.core.sharding import replicated
from sora_jax.core.tree import Params, merge_model
from sora_jax.evaluation.heldout_packs import ClipLosses, HeldoutPacks
from sora_jax.models.caption_tokens import with_end
from sora_jax.models.text_to_video import Pack


class CaptionLoss:
    """Held-out clips on which weights of a captioner are measured.

    Args:
      structure: Of the captioner.
      packs: The clips.
      dtype: Of the computation.
      mesh: That of `packs`.
    """

    def __init__(self, structure: Hashable, packs: HeldoutPacks, *, dtype: Any, mesh: Mesh | None):
        self._packs, self._measure = packs, _make_measure(structure, dtype, mesh)

    def __call__(self, params: Params) -> ClipLosses:
        """Returns the captioning loss of each clip, nats, mean over the tokens of its caption, END among them.

        As `objectives.captioner` has it, of captions in which no word is hidden. Every process calls it, and gets the
        same.
        """
        loss_N1 = self._packs.measured(lambda pack: iter([self._measure(params, self._packs.placed(pack))]))
        return ClipLosses(loss_N=loss_N1[:, 0], sizes=self._packs.sizes, frames=self._packs.frames)


@functools.lru_cache(maxsize=4)
def _make_measure(structure: Any, dtype: Any, mesh: Mesh | None) -> Callable[[Params, Pack], jax.Array]:
    """Returns the jitted `(params, pack) -> loss_BS`, 0 where a segment is absent."""

    def measure(params: Params, pack: Pack) -> jax.Array:
        model, segments = merge_model(structure, params), pack["grid_BS3"].shape[1]
        texts = with_end(pack, segments)
        states_BKD = model.read(texts, segments, dtype).states_BKD
        scores = model.score(texts, states_BKD, model.encode(pack, dtype))
        loss_BK, asked_BK = -jnp.sum(scores.log_probability_BKQ, axis=-1), jnp.any(scores.asked_BKQ, axis=-1)
        own_BSK = asked_BK[:, None] & (texts.segment_BK[:, None] == jnp.arange(1, segments + 1)[:, None])
        return jnp.sum(own_BSK * loss_BK[:, None], axis=-1) / jnp.maximum(jnp.sum(own_BSK, axis=-1), 1)

    # Whole on every device: each process reads all of it.
    shardings = None if mesh is None else replicated(mesh)
    measured = jax.jit(measure, out_shardings=shardings, compiler_options=run_often())
    return together(measured, every_time=True)
