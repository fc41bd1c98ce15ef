"""Canvases -> packed batches -> solver -> latents -> clips.

Letters: B rows, L tokens, S segments, I steps, G noise levels as of `diffusion.known`, K text tokens, E text width,
P patch width, T H W C pixels or latent.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sora_jax.core.compiling import run_often
from sora_jax.core.distributed import to_host, together
from sora_jax.core.sharding import ways
from sora_jax.core.tree import Params, merge_model
from sora_jax.data.packing.packs import PackLayout
from sora_jax.diffusion import known, solvers
from sora_jax.generate.apart import set_apart
from sora_jax.generate.canvas import Canvas, CanvasBatch, lay_out
from sora_jax.generate.denoiser import Predictor, SolverConfig
from sora_jax.generate.row_sizes import RowSize, RowSizes, longer_rows, of_length
from sora_jax.models.codec import Codec
from sora_jax.models.text_to_video import TextToVideo
from sora_jax.models.vision.shown import Shower
from sora_jax.video.patches import unpatchify


def make_solver(
    structure: Any, config: SolverConfig, *, dtype: jnp.dtype
) -> Callable[[Params, CanvasBatch], jax.Array]:
    """Returns the jitted `(params, batch) -> clean tokens_BLP`, in which known tokens are as they were given.

    Those of clips beside come out under the noise of their level, and not where they are apart.
    """

    def solve(params: Params, batch: CanvasBatch) -> jax.Array:
        return walk_batch(merge_model(structure, params), batch, None, config, dtype=dtype)[0]

    return jax.jit(solve, compiler_options=run_often())


def walk_batch(
    model: TextToVideo,
    batch: CanvasBatch,
    carry: solvers.Carry | None,
    config: SolverConfig,
    *,
    dtype: jnp.dtype,
    steps: tuple[int, int] | None = None,
) -> solvers.Carry:
    """Returns what is known after some steps, the tokens_BLP first, as `solvers.walk`; None: the carry at the start."""
    grid_BS3 = batch.pack["grid_BS3"]
    sigma_IBS = config.schedule(jnp.prod(grid_BS3, axis=-1), start=batch.strength_BS)
    start = known.condition(
        batch.pack["tokens_BLP"],
        noise_BLP=batch.noise_BLP,
        known_BL=batch.known_BL,
        segment_BL=batch.pack["segment_BL"],
        sigma_BS=sigma_IBS[0],
        known_sigma_BS=jnp.zeros_like(sigma_IBS[0]),
        part_BL=batch.pack.get("part_BL"),
        context_sigma_BSA=batch.context_sigma_BSA,
    )
    predictor = Predictor(model, batch, start.level_BL, config, dtype=dtype)
    levels_IBG = known.level_table(sigma_IBS, jnp.zeros_like(sigma_IBS), batch.context_sigma_BSA)
    return solvers.walk(
        predictor.velocity,
        (start.tokens_BLP, predictor.memory()) if carry is None else carry,
        levels_IBG,
        method=config.method,
        level_BL=start.level_BL,
        piece=predictor.is_guided,
        renew=functools.partial(_renew, batch),
        steps=steps,
    )


def _renew(batch: CanvasBatch, number: jax.Array, noise_BLP: jax.Array) -> jax.Array:
    """Returns fresh noise for canvases that start from noise alone, and for the others what they have.

    Those start from something given under little noise: fresh noise would soon have covered it.
    """
    from_noise_BL = known.per_token(batch.strength_BS >= 1, batch.pack["segment_BL"])
    return jnp.where(from_noise_BL[..., None], fresh_noise(batch.noise_BLP, number), noise_BLP)


def fresh_noise(noise_BLP: jax.Array, number: jax.Array) -> jax.Array:
    """Returns the noise of step `number`, float32 (B, L, P), independent of all others.

    A token's generator is seeded with the bits of its first and last number of noise, so that, like these, what it
    draws depends on the token's canvas alone, whatever shares the batch.
    """
    ends_BL2 = jnp.stack([noise_BLP[..., 0], noise_BLP[..., -1]], axis=-1).astype(jnp.float32)
    bits_BL2 = jax.lax.bitcast_convert_type(ends_BL2, jnp.uint32)

    def draw(bits_2: jax.Array) -> jax.Array:
        key = jax.random.wrap_key_data(bits_2, impl="threefry2x32")
        return jax.random.normal(jax.random.fold_in(key, number), noise_BLP.shape[-1:])

    return jax.vmap(jax.vmap(draw))(bits_BL2)


class Sampler:
    """Makes clips from canvases with one set of weights at a time.

    Args:
      structure: Of the generator, from `core.tree`.
      codec: What decodes.
      layout: Of rows. Canvases that are longer have longer rows, and a program of their own.
      rows: Of a batch at most: fewer, and shorter ones, where the first that is made of a kind is far less.
      config: The solver.
      dtype: Of the computation.
      mesh: Devices that share the batch and hold the weights; None: where the weights lie.
      shower: What encodes the frames that the model is shown; None: it is shown none.
      blind: Whether clips beside see themselves alone, as in training: their keys are then computed once per canvas.
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
        mesh: Mesh | None = None,
        shower: Shower | None = None,
        blind: bool = False,
    ):
        self._structure, self._config, self._dtype = structure, config, dtype
        self._solvers: dict[int, Callable[[Params, CanvasBatch], jax.Array]] = {}
        self._sizes: dict[tuple[int, int, RowSize], RowSizes] = {}  # by clips beside one at most, steps, the largest
        self._blind = blind
        self.codec, self.shower = codec, shower
        self._layout = layout
        self.rows = rows
        self._mesh = mesh

    def __call__(self, params: Params, canvases: list[Canvas]) -> list[np.ndarray]:
        """Returns the uint8 clip (T, H, W, 3) of each canvas, in order.

        A clip depends on its canvas and the weights alone, up to rounding, whatever shares its batch.
        """
        # One clip at a time: rounding does not depend on how many there are.
        return [self.codec.decode(latent_THWC[None])[0] for latent_THWC in self.latents(params, canvases)]

    def latents(self, params: Params, canvases: list[Canvas]) -> list[np.ndarray]:
        """Returns the normalised latent (T, H, W, C), float32, of each canvas, in order."""
        found: dict[int, np.ndarray] = {}
        # Rows of canvases with clips beside are another program, as are other steps: the others keep theirs.
        usual = {False: self._config.steps, True: self._config.context_steps or self._config.steps}
        kinds = [(beside := bool(canvas.context), canvas.steps or usual[beside]) for canvas in canvases]
        for kind in sorted({*kinds}):
            chosen = {number: canvases[number] for number, one in enumerate(kinds) if one == kind}
            parts = max(len(canvas.context) for canvas in chosen.values())
            layout = dataclasses.replace(self._layout, parts=parts)
            found |= self._of_parts(params, chosen, layout, steps=kind[1])
        return [found[number] for number in range(len(canvases))]

    def _of_parts(
        self, params: Params, chosen: dict[int, Canvas], layout: PackLayout, *, steps: int
    ) -> dict[int, np.ndarray]:
        """Returns the latents of canvases by number: in rows as those of `layout`, or in longer ones."""
        usual = RowSize(rows=self.rows, tokens=layout.budget.tokens)
        lengths = {number: canvas.tokens(layout.patch) for number, canvas in chosen.items()}
        fitting = {number: canvas for number, canvas in chosen.items() if lengths[number] <= usual.tokens}
        found = self._solved(params, fitting, layout, usual, steps) if fitting else {}
        if rest := {number: canvas for number, canvas in chosen.items() if number not in fitting}:
            longer = longer_rows(usual, max(lengths.values()), parts=self._split)
            found |= self._solved(params, rest, layout, longer, steps)
        return found

    @property
    def _split(self) -> int:
        """In how many parts devices have the rows of a batch."""
        return 1 if self._mesh is None else ways("batch", self._mesh)

    def _solved(
        self, params: Params, chosen: dict[int, Canvas], layout: PackLayout, most: RowSize, steps: int
    ) -> dict[int, np.ndarray]:
        """Returns the latents of canvases by number, solved in batches of one size, `most` or less."""
        sizes = self._sizes.setdefault((layout.parts, steps, most), RowSizes(most, parts=self._split))
        rows, tokens = sizes.choose([*chosen.values()], layout)
        batches, places = lay_out([*chosen.values()], of_length(layout, tokens), rows=rows, row_tokens=most.tokens)
        if self._blind and layout.parts:
            batches, places = set_apart(batches, places)
        with contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh):
            solved = self._solve_all(params, batches, steps)
        patch, channels = layout.patch, layout.channels
        return {
            number: unpatchify(solved[at.batch][at.row, at.tokens], grid=canvas.grid, patch=patch, channels=channels)
            for (number, canvas), at in zip(chosen.items(), places, strict=True)
        }

    def _solve_all(self, params: Params, batches: list[CanvasBatch], steps: int) -> list[np.ndarray]:
        """Returns the clean tokens_BLP of batches."""
        if steps not in self._solvers:
            solver = make_solver(self._structure, dataclasses.replace(self._config, steps=steps), dtype=self._dtype)
            self._solvers[steps] = together(solver, every_time=True)
        return [to_host(self._solvers[steps](params, batch)) for batch in batches]
