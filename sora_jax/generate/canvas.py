"""A canvas: all that a solver needs to know of one video to make.

Every task is a way to write one down: which tokens are known, where the solver starts, what the text is.

Letters: t h w frames, rows, columns of the token grid, T H W C latent, L tokens, P patch width, B rows, S segments,
A clips beside one at most.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sora_jax.core import rng
from sora_jax.core.errors import UserError
from sora_jax.data.packing.packs import PackLayout, Row, stack_rows, texts_of
from sora_jax.data.packing.plan import plan_window
from sora_jax.data.tokens import Text, Tokenizer
from sora_jax.video import shapes
from sora_jax.video.parts import ContextClip
from sora_jax.video.patches import patchify
from sora_jax.video.shown import Shown


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Turn:
    """Another prompt that takes over along time.

    Attributes:
      prompt: What is shown in the end.
      share_t: Its share in each frame of tokens, in [0, 1]; the canvas' own prompt has the rest.
    """

    prompt: str
    share_t: np.ndarray


class Within(NamedTuple):
    """Where a canvas, or a clip beside one, lies in a larger one whose noise it has.

    Attributes:
      grid: Token grid (t, h, w) of that one.
      row: Its first row in tokens.
      column: Its first column.
    """

    grid: shapes.Size
    row: int
    column: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ContextPart:
    """A clip that is given beside the one to make.

    Attributes:
      clip: Its latent is normalised and of whole tokens.
      level: Of the noise on it, in [0, 1], from the first step to the last: 0 leaves it as it is.
      within: The larger clip that it is cut out of; None: it is a whole one.
    """

    clip: ContextClip
    level: float
    within: Within | None = None

    def grid(self, patch: shapes.Size) -> shapes.Size:
        """Returns its token grid."""
        return shapes.token_grid(self.clip.latent_THWC.shape[:3], patch)

    def tokens(self, patch: shapes.Size) -> int:
        """Returns how many tokens of a row it takes."""
        return math.prod(self.grid(patch))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Canvas:
    """One video to make, by default from noise and a prompt alone.

    Attributes:
      prompt: What it shows; empty for no guidance by text.
      grid: Token grid (t, h, w).
      fps: Frames per second.
      seed: Of its noise, which depends on nothing else but `window`.
      window: Number of the canvas among those of one video.
      latent_THWC: Normalised latent of what is given, of the whole grid; None where nothing is.
      known_thw: Tokens that stay as `latent_THWC` has them, bool; None: no token.
      strength: Where the solver starts with the others, in (0, 1]: 1 is noise alone, less begins with `latent_THWC`
        under noise of `noise_levels.schedule(start=strength)`.
      negative: What guidance leads away from; empty: from what no text would give.
      guidance: Its scale, 1 for none; None: that of the solver's config.
      turn: A second prompt.
      shown: What the model is shown of given frames in the place of known tokens; None: it is shown none.
      context: Clips beside it, in the order of their parts.
      steps: Of the solver; None: as many as its config says.
      within: The larger canvas that it is a tile of; None: it is a whole one.
    """

    prompt: str
    grid: shapes.Size
    fps: float
    seed: int
    window: int = 0
    latent_THWC: np.ndarray | None = None
    known_thw: np.ndarray | None = None
    strength: float = 1.0
    negative: str = ""
    guidance: float | None = None
    turn: Turn | None = None
    shown: Shown | None = None
    context: tuple[ContextPart, ...] = ()
    steps: int | None = None
    within: Within | None = None

    def noise(self, patch_width: int) -> np.ndarray:
        """Returns noise_LP, float32, the same whatever shares the batch."""
        return _noise(rng.key(self.seed, "canvas", self.window), self.grid, patch_width, self.within)

    def context_noise(self, number: int, patch: shapes.Size, patch_width: int) -> np.ndarray:
        """Returns noise_LP, float32, of a clip of `context`."""
        part, key = self.context[number], rng.key(self.seed, "beside", self.window, number + 1)
        return _noise(key, part.grid(patch), patch_width, part.within)

    def tokens(self, patch: shapes.Size) -> int:
        """Returns how many tokens of a row it takes, with those of the clips beside it."""
        return math.prod(self.grid) + sum(beside.tokens(patch) for beside in self.context)

    def texts(self) -> tuple[str, str, str]:
        """Returns what it shows, what guidance leads away from, and what it shows in the end."""
        return self.prompt, self.negative, self.turn.prompt if self.turn else self.prompt

    def text_tokens(self, tokenizer: Tokenizer) -> int:
        """Returns the tokens of its longest text."""
        return max(map(tokenizer.count, self.texts()))


def _noise(key: jax.Array, grid: shapes.Size, patch_width: int, within: Within | None) -> np.ndarray:
    """Returns noise_LP of a grid, that of a larger one at its place where it lies in one."""
    whole = grid if within is None else within.grid
    noise_LP = np.asarray(jax.random.normal(key, (math.prod(whole), patch_width)))
    if within is None:
        return noise_LP
    rows, columns = (slice(at, at + side) for at, side in zip(within[1:], grid[1:], strict=True))
    return noise_LP.reshape(*whole, patch_width)[:, rows, columns].reshape(-1, patch_width)


# Of numpy as they are laid out, of jax within the solver, shapes where a program is planned.
Array = Any
Texts = dict[str, Array]


class ContextRows(NamedTuple):
    """Clips beside the canvases of a batch, in rows of their own, with the segments and parts that they have there."""

    pack: dict[str, Array]  # without texts and the tokens of what is made
    noise_BLP: Array  # float32
    sigma_BSA: Array  # float32, their levels


class CanvasBatch(NamedTuple):
    """Canvases in rows, as the solver takes them."""

    pack: dict[str, Array]  # `tokens_BLP` is what is given, zero elsewhere
    noise_BLP: Array  # float32
    known_BL: Array  # bool
    strength_BS: Array  # float32
    guidance_BS: Array  # float32, NaN for the scale of the config
    negative: Texts  # the negative prompts
    turned: Texts | None  # the second prompts, the first ones where there is none; None: nobody has one
    share_BL: Array | None  # float32, the share of the second prompt
    row_tokens: Array  # int32: of a row that was not made shorter, by which steps take over earlier work
    context_sigma_BSA: Array | None = None  # float32, of clips beside; None: the layout has none
    apart: ContextRows | None = None  # clips beside that are not in `pack`; None: what there is is there


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a canvas lies: the batch, the row in it, the tokens of that row."""

    batch: int
    row: int
    tokens: slice  # of what is made, without clips beside


class _Filling:
    """One row being filled with canvases."""

    def __init__(self, layout: PackLayout):
        tokens, segments = layout.budget.tokens, layout.budget.segments
        self.row, self.negative, self.turned = layout.row(), layout.row(), layout.row()
        self.noise_LP = np.zeros_like(self.row.arrays["tokens_BLP"])
        self.known_L = np.zeros(tokens, bool)
        self.strength_S = np.ones(segments, np.float32)
        self.guidance_S = np.full(segments, np.nan, np.float32)
        self.share_L = np.zeros(tokens, np.float32)
        self.context_sigma_SA = np.zeros((segments, layout.parts), np.float32)
        self.turns = False
        self._slot = 0

    def put(self, index: int, canvas: Canvas) -> slice:
        layout, grid = self.row.layout, canvas.grid
        given = None if canvas.latent_THWC is None else patchify(canvas.latent_THWC, layout.patch)

        def put(row: Row, text: Text, tokens_LP: np.ndarray | None = None, **beside: Any) -> slice:
            return row.put(sample=index, grid=grid, fps=canvas.fps, text=text, tokens_LP=tokens_LP, **beside)

        prompt, negative, turned = layout.tokenizer.encode(canvas.texts())
        context = [beside.clip for beside in canvas.context]
        there = put(self.row, prompt, given, shown=canvas.shown, context=context)
        put(self.negative, negative)
        put(self.turned, turned)
        self._put_noise_beside(canvas, there.stop)
        self.noise_LP[there] = canvas.noise(self.noise_LP.shape[1])
        self.strength_S[self._slot] = canvas.strength
        if canvas.guidance is not None:
            self.guidance_S[self._slot] = canvas.guidance
        if canvas.known_thw is not None:
            self.known_L[there] = canvas.known_thw.reshape(-1)
        if canvas.turn is not None:
            self.share_L[there] = np.repeat(canvas.turn.share_t, grid[1] * grid[2])
            self.turns = True
        self._slot += 1
        return there

    def _put_noise_beside(self, canvas: Canvas, start: int) -> None:
        """Sets level and noise of the clips beside a canvas, the first of which has its tokens from `start` on."""
        for number, beside in enumerate(canvas.context):
            patch = self.row.layout.patch
            end = start + beside.tokens(patch)
            self.noise_LP[start:end] = canvas.context_noise(number, patch, self.noise_LP.shape[1])
            self.context_sigma_SA[self._slot, number] = beside.level
            start = end


def lengths_of(canvases: Sequence[Canvas], layout: PackLayout) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens_N and text_N: how many tokens of a row, and of its texts, each takes."""
    tokens_N = np.array([canvas.tokens(layout.patch) for canvas in canvases])
    return tokens_N, np.array([canvas.text_tokens(layout.tokenizer) for canvas in canvases])


def lay_out(
    canvases: Sequence[Canvas], layout: PackLayout, *, rows: int, row_tokens: int | None = None
) -> tuple[list[CanvasBatch], list[Placement]]:
    """Returns batches of `rows` rows, and where each canvas is; `layout` has as many `parts` as any has clips beside.

    `row_tokens` are those of a row that was not made shorter; None: these were not. Raises UserError when a canvas or
    one of its texts does not fit a row.
    """
    plan = plan_window(*lengths_of(canvases, layout), layout.budget, seed=0, window=0)
    if plan.rejected:
        first = plan.rejected[0]
        raise UserError(f"video {first.sample + 1} of {len(canvases)} cannot be sampled: {first.reason}")
    filled, places = [], {}
    for number in range(len(plan)):
        filling = _Filling(layout)
        for index in plan.row(number).tolist():
            there = filling.put(index, canvases[index])
            places[index] = Placement(batch=number // rows, row=number % rows, tokens=there)
        filled.append(filling)
    filled += [_Filling(layout) for _ in range(-len(filled) % rows)]
    whole = layout.budget.tokens if row_tokens is None else row_tokens
    batches = [_stack(filled[start : start + rows], whole) for start in range(0, len(filled), rows)]
    return batches, [places[index] for index in range(len(canvases))]


def _stack(filled: list[_Filling], row_tokens: int) -> CanvasBatch:
    def texts(rows: list[Row]) -> Texts:
        return texts_of(stack_rows(rows))

    turns, beside = any(filling.turns for filling in filled), filled[0].row.layout.parts > 0
    return CanvasBatch(
        pack=stack_rows([filling.row for filling in filled]),
        noise_BLP=np.stack([filling.noise_LP for filling in filled]),
        known_BL=np.stack([filling.known_L for filling in filled]),
        strength_BS=np.stack([filling.strength_S for filling in filled]),
        guidance_BS=np.stack([filling.guidance_S for filling in filled]),
        negative=texts([filling.negative for filling in filled]),
        turned=texts([filling.turned for filling in filled]) if turns else None,
        share_BL=np.stack([filling.share_L for filling in filled]) if turns else None,
        row_tokens=np.int32(row_tokens),
        context_sigma_BSA=np.stack([filling.context_sigma_SA for filling in filled]) if beside else None,
    )
