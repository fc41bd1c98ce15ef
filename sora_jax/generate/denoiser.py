"""What the solver is told of a batch at each of its steps: predictions with each of its texts, guided, or taken over.

Letters: B rows, L tokens, S segments, I evaluations, G noise levels as of `diffusion.known`, P patch width, D width.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from sora_jax.core.errors import UserError
from sora_jax.data.packing.packs import own_segments
from sora_jax.diffusion import grids, guidance, known, noise_levels, path
from sora_jax.generate.apart import keys_beside
from sora_jax.generate.canvas import CanvasBatch, Texts
from sora_jax.models.text_to_video import TextToVideo
from sora_jax.models.transformer import Reused, Transformer

# What goes from evaluation to evaluation: their number, and what the blocks added for each text. Empty without caching.
Memory = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SolverConfig:
    """How noise becomes a video.

    Attributes:
      steps: Of the solver.
      method: A key of `solvers.METHODS`.
      path: As in training.
      noise: As in training; its shift bends the schedule.
      guidance: Classifier-free guidance.
      cache: Change of the modulation up to which a step takes over what the blocks added in an earlier one; 0: none.
      grid: The schedule of a public model; None: that of `noise`.
      experts: The boundary and the scale of guidance below it, where two models share the levels; None: there is one.
      keeps_known: Whether guidance leaves out the text alone, and not what is given with it.
      forgets_context: Whether it leaves out clips beside with the text.
      context_steps: Of the solver where clips are beside; None: `steps`.
    """

    steps: int
    method: str
    path: path.PathConfig
    noise: noise_levels.NoiseConfig
    guidance: guidance.GuidanceConfig
    cache: float = 0.0
    grid: grids.Grid | None = dataclasses.field(default=None, repr=False)
    experts: tuple[float, float] | None = dataclasses.field(default=None, repr=False)
    keeps_known: bool = dataclasses.field(default=False, repr=False)
    forgets_context: bool = dataclasses.field(default=False, repr=False)
    context_steps: int | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self):
        if not self.cache >= 0:
            raise UserError(f"cache {self.cache:g} must be 0 or more; 0 is none")
        if self.experts is not None and (self.cache > 0 or self.method == "heun" or self.grid is None):
            raise UserError(
                f"solver {self.method} with cache {self.cache:g} on {self.grid}: two experts take turns at one step, "
                "so none may ask both or take over from the other; take unipc, cache 0 and the grid of the model"
            )

    def facts(self) -> dict[str, Any]:
        """Returns how it solves, as the flags of `sample` and keys of `sampling` say it."""
        cache = {"cache": self.cache} if self.cache else {}
        return {"solver": self.method, "steps": self.steps, **self.beside, **cache}

    @property
    def beside(self) -> dict[str, int]:
        """`context_steps` by its name, where it is set; its representation is without, as in books of older runs."""
        return {} if self.context_steps is None else {"context_steps": self.context_steps}

    def schedule(self, tokens: jax.Array | int, *, start: jax.Array | float = 1.0) -> jax.Array:
        """Returns the noise levels of canvases of so many tokens; where guidance begins and ends there is one.

        The grid of a public model is the same for all, and stays as it is.
        """
        if self.grid is not None:
            return self.grid.schedule(self.steps, start=jnp.broadcast_to(start, jnp.shape(tokens)))
        return noise_levels.schedule(self.steps, tokens, self.noise, start=start, through=self.guidance.interval)


class Predictor:
    """The guided velocity of a batch. Texts are encoded once, and keys of clips beside that are apart computed once.

    With `config.cache` steps take over what the blocks added in an earlier step (compare TeaCache, arXiv 2411.19108,
    which looks at the input as well). Which ones depends on the schedule of a full row alone, so that a canvas never
    depends on what shares its batch.
    """

    def __init__(
        self, model: TextToVideo, batch: CanvasBatch, level_BL: jax.Array, config: SolverConfig, *, dtype: jnp.dtype
    ):
        self._model, self._batch, self._level_BL, self._config, self._dtype = model, batch, level_BL, config, dtype
        self._forgets = not config.keeps_known
        # Clips beside are then padding to what guidance leads away from.
        self._other_segment_BL = own_segments(batch.pack) if config.forgets_context else batch.pack["segment_BL"]
        # As if nothing were given, where guidance leaves it out.
        self._other_level_BL = _forgotten(level_BL, batch) if self._forgets else level_BL

        def encode(texts: Texts) -> tuple[jax.Array, jax.Array]:
            return model.encode_text(texts, dtype), texts["text_segment_BK"]

        self._texts = {"prompt": encode(batch.pack), "negative": encode(batch.negative)}
        if batch.turned is not None:
            self._texts["turned"] = encode(batch.turned)
        self._kept = None
        if batch.apart is not None:
            width = self._texts["prompt"][0].shape[-1]
            self._kept = keys_beside(model, batch.apart, text_width=width, dtype=dtype)
        # Training clips the divisor of a clean prediction; here that would leave the last noise in.
        self._path = dataclasses.replace(config.path, min_sigma=1e-4)
        scale_BS = jnp.where(jnp.isnan(batch.guidance_BS), config.guidance.scale, batch.guidance_BS)
        self._is_guided_BS = (scale_BS != 1) & (batch.pack["grid_BS3"][..., 0] > 0)
        self._scale_BL = known.per_token(scale_BS, batch.pack["segment_BL"])
        if config.cache > 0:
            self._taken_over_I = taken_over(model.transformer, config, tokens=batch.row_tokens)

    def memory(self) -> Memory:
        """Returns what the first evaluation is handed."""
        if self._config.cache == 0:
            return {}
        shape = (*self._level_BL.shape, self._model.transformer.config.width)
        added = {name: jnp.zeros(shape, self._dtype) for name in self._texts}
        return {"number": jnp.int32(0), "led": jnp.bool_(False), "added": added}

    def is_guided(self, levels_XBG: jax.Array) -> jax.Array:
        """Returns where guidance applies (bool), for tables of levels: the velocity jumps where that changes."""
        return self._config.guidance.applies(levels_XBG) & jnp.tile(
            self._is_guided_BS, levels_XBG.shape[-1] // self._is_guided_BS.shape[1]
        )

    def velocity(self, x_BLP: jax.Array, levels_BG: jax.Array, memory: Memory) -> tuple[jax.Array, Memory]:
        """Returns the velocity of all tokens, and what the next evaluation is handed."""
        sigma_BL = known.token_level(levels_BG, self._level_BL)
        segments = self._batch.pack["grid_BS3"].shape[1]
        output_BLP, memory = self._conditional(x_BLP, levels_BG, memory)

        def guided() -> tuple[jax.Array, Memory]:
            other_BLP, after = self._predict("negative", self._forgetting(x_BLP, levels_BG), levels_BG, memory)
            result_BLP = guidance.guide(
                output_BLP,
                other_BLP,
                sigma_BL=sigma_BL,
                segment_BL=jnp.where(self._batch.known_BL, 0, own_segments(self._batch.pack)),
                num_segments=segments,
                config=self._config.guidance,
                scale_BL=self._scale_BL,
            )
            return result_BLP, {**after, "led": jnp.bool_(True)} if after else after

        applies = jnp.any(self.is_guided(levels_BG)[:, :segments])
        output_BLP, memory = jax.lax.cond(applies, guided, lambda: (output_BLP, memory))
        if memory:
            memory = {**memory, "number": memory["number"] + 1}
        return path.to_velocity(output_BLP, x_sigma=x_BLP, sigma=sigma_BL, config=self._path), memory

    def _conditional(self, x_BLP: jax.Array, levels_BG: jax.Array, memory: Memory) -> tuple[jax.Array, Memory]:
        """Returns the prediction with the prompts; where a second one takes over, the mean that its share says."""
        output_BLP, memory = self._predict("prompt", x_BLP, levels_BG, memory)
        if self._batch.share_BL is None:
            return output_BLP, memory
        turned_BLP, memory = self._predict("turned", x_BLP, levels_BG, memory)
        share_BL1 = jnp.asarray(self._batch.share_BL)[..., None]
        return (1 - share_BL1) * output_BLP + share_BL1 * turned_BLP, memory

    def _forgetting(self, x_BLP: jax.Array, levels_BG: jax.Array) -> jax.Array:
        """Returns the tokens with those that are given as noisy as the others: nothing is told apart any more.

        So guidance leaves out the text and what is given together, and goes towards both (history guidance, arXiv
        2502.06764, there with noise alone in the place of what is given). The level is that of the segment since
        training shows clips of which nothing is given, and none with a part that is noisier than the rest. Clips beside
        are seen as they are, or with `forgets_context` not at all.
        """
        if not self._forgets:
            return x_BLP
        noisy_BLP = path.add_noise(
            x_BLP, noise=self._batch.noise_BLP, sigma=known.token_level(levels_BG, self._other_level_BL)
        )
        return jnp.where(self._batch.known_BL[..., None], noisy_BLP, x_BLP)

    def _predict(self, name: str, x_BLP: jax.Array, levels_BG: jax.Array, memory: Memory) -> tuple[jax.Array, Memory]:
        """Returns the prediction with one of the texts."""
        text_BKE, text_segment_BK = self._texts[name]
        reused = None
        if memory:
            now = self._taken_over_I[memory["number"]]
            # Guidance may begin in a step that takes over, and has nothing to take yet.
            reused = Reused(memory["added"][name], now & memory["led"] if name == "negative" else now)
        pack = self._batch.pack
        said = self._model.predict(
            x_BLP,
            {**pack, "segment_BL": self._other_segment_BL} if name == "negative" else pack,
            levels_BG=levels_BG if self._config.grid is None else self._config.grid.told(levels_BG, self._config.steps),
            level_BL=self._other_level_BL if name == "negative" else self._level_BL,
            text_BKE=text_BKE,
            text_segment_BK=text_segment_BK,
            reused=reused,
            kept=None if name == "negative" and self._config.forgets_context else self._kept,
        )
        if memory:
            memory = {**memory, "added": {**memory["added"], name: said.added_BLD}}
        return said.tokens_BLP, memory


def _forgotten(level_BL: jax.Array, batch: CanvasBatch) -> jax.Array:
    """Returns level_BL with the columns of segments' own levels in the place of those of their known tokens."""
    own_BL = level_BL % batch.pack["grid_BS3"].shape[1]
    return own_BL if "part_BL" not in batch.pack else jnp.where(batch.pack["part_BL"] > 0, level_BL, own_BL)


def taken_over(transformer: Transformer, config: SolverConfig, *, tokens: jax.Array | int) -> jax.Array:
    """Returns for each evaluation (bool, (I,)) whether it takes over: while changes add up to less than `cache`.

    A change is the mean absolute difference of the modulation to that of the step before, over its mean absolute value,
    on the schedule of `tokens` tokens. The first and the last step never take over; both evaluations of one do alike.
    """
    sigma_I = config.schedule(tokens)[:-1]
    modulation_ID = transformer.modulation_of(sigma_I)
    moved_I = jnp.mean(jnp.abs(jnp.diff(modulation_ID, axis=0)), axis=-1)
    change_I = moved_I / jnp.mean(jnp.abs(modulation_ID[:-1]), axis=-1)

    def follow(sum_so_far: jax.Array, change: jax.Array) -> tuple[jax.Array, jax.Array]:
        total = sum_so_far + change
        return jnp.where(total < config.cache, total, 0.0), total < config.cache

    _, taken_I = jax.lax.scan(follow, jnp.float32(0), change_I)
    taken_I = jnp.concatenate([jnp.zeros(1, bool), taken_I]).at[-1].set(False)
    return jnp.repeat(taken_I, 2)[:-1] if config.method == "heun" else taken_I
