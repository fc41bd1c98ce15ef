"""Canvases -> packed batches -> solver -> latents -> clips.

Letters: B rows, L tokens, S segments, G = 2 S noise levels, P patch width, T H W C pixels.
"""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.core.distributed import to_host
from sora_jax.core.tree import Params, merge_model
from sora_jax.data.packs import PackLayout
from sora_jax.diffusion import guidance, known, noise_levels, path, solvers
from sora_jax.generate.canvas import Canvas, lay_out
from sora_jax.models.codec import Codec
from sora_jax.objectives.diffusion import Generator, Pack, without_caption
from sora_jax.video.patches import unpatchify


@dataclasses.dataclass(frozen=True, kw_only=True)
class SolverConfig:
    """How noise becomes a video.

    Attributes:
      steps: Of the solver.
      method: A key of `solvers.METHODS`.
      path: As in training.
      noise: As in training; its shift bends the schedule.
      guidance: Classifier-free guidance.
    """

    steps: int
    method: str
    path: path.PathConfig
    noise: noise_levels.NoiseConfig
    guidance: guidance.GuidanceConfig


def make_solver(structure: Any, config: SolverConfig, *, dtype: jnp.dtype) -> Callable[[Params, Any], jax.Array]:
    """Returns the jitted `(params, pack) -> clean tokens_BLP`; the pack's tokens are the noise to start from."""

    def solve(params: Params, pack: Pack) -> jax.Array:
        model: Generator = merge_model(structure, params)
        segment_BL, grid_BS3 = pack["segment_BL"], pack["grid_BS3"]
        segments = grid_BS3.shape[1]
        level_BL = known.level_index(segment_BL, jnp.zeros_like(segment_BL, bool), num_segments=segments)
        sigma_IBS = noise_levels.schedule(config.steps, jnp.prod(grid_BS3, axis=-1), config.noise)
        hidden_BK = without_caption(pack, jnp.ones(grid_BS3.shape[:2], bool))
        # Training clips the divisor of a clean prediction; here that would leave the last noise in.
        exact = dataclasses.replace(config.path, min_sigma=1e-4)

        def prediction(x_BLP: jax.Array, levels_BG: jax.Array, text_segment_BK: jax.Array, text: jax.Array):
            return model.predict(
                x_BLP,
                pack,
                levels_BG=levels_BG,
                level_BL=level_BL,
                text_BKE=text,
                text_segment_BK=text_segment_BK,
            )

        visible_BK = pack["text_segment_BK"]
        given_text = model.encode_text(pack, dtype)
        hidden_text = model.encode_text({**pack, "text_segment_BK": hidden_BK}, dtype)

        def velocity(x_BLP: jax.Array, levels_BG: jax.Array) -> jax.Array:
            sigma_BL = known.token_level(levels_BG, level_BL)
            output = prediction(x_BLP, levels_BG, visible_BK, given_text)
            if config.guidance.scale != 1.0:
                output = guidance.guide(
                    output,
                    prediction(x_BLP, levels_BG, hidden_BK, hidden_text),
                    sigma_BL=sigma_BL,
                    segment_BL=segment_BL,
                    num_segments=segments,
                    config=config.guidance,
                )
            return path.to_velocity(output, x_sigma=x_BLP, sigma=sigma_BL, config=exact)

        levels_IBG = known.level_table(sigma_IBS, jnp.zeros_like(sigma_IBS))
        return solvers.solve(velocity, pack["tokens_BLP"], levels_IBG, method=config.method, level_BL=level_BL)

    return jax.jit(solve)


class Sampler:
    """Makes clips from canvases with one set of weights at a time.

    Args:
      structure: Of the generator, from `core.tree`.
      codec: What decodes.
      layout: Of rows.
      rows: Of a batch; always this many, so one program serves every call.
      config: The solver.
      dtype: Of the computation.
    """

    def __init__(
        self,
        structure: Any,
        codec: Codec,
        layout: PackLayout,
        *,
        rows: int,
        config: SolverConfig,
        dtype: jnp.dtype,
    ):
        self._solve = make_solver(structure, config, dtype=dtype)
        self._codec = codec
        self._layout = layout
        self._rows = rows

    def __call__(self, params: Params, canvases: list[Canvas]) -> list[np.ndarray]:
        """Returns the uint8 clip (T, H, W, 3) of each canvas, in order.

        A clip depends on its canvas and the weights alone, up to rounding, whatever shares its batch.
        """
        packs, places = lay_out(canvases, self._layout, rows=self._rows)
        solved = [to_host(self._solve(params, pack)) for pack in packs]
        by_grid = collections.defaultdict(list)
        for index, canvas in enumerate(canvases):
            by_grid[canvas.grid].append(index)
        clips: dict[int, np.ndarray] = {}
        for grid, members in by_grid.items():
            tokens = [solved[places[i].batch][places[i].row, places[i].tokens] for i in members]
            latent = [
                unpatchify(t, grid=grid, patch=self._layout.patch, channels=self._layout.channels) for t in tokens
            ]
            # One clip at a time: rounding does not depend on how many there are.
            clips.update((i, self._codec.decode(z[None])[0]) for i, z in zip(members, latent, strict=True))
        return [clips[index] for index in range(len(canvases))]
