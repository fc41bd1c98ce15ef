"""What a model can make, before anything is asked of it."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sora_jax.data.tokens import Tokenizer
from sora_jax.generate.cascade import Refinement, Refiner
from sora_jax.generate.request import DEFAULT_STRENGTH, Task
from sora_jax.video import shapes
from sora_jax.video.shown import ShownConfig

# Frames of tokens of the shortest window that every task can be made in: a way from one given frame to another.
_LEAST_WINDOW = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelLimits:
    """What a model can make, and what it makes where a request says nothing.

    Attributes:
      stride: Frames, rows and columns of pixels of one latent position.
      patch: Latent positions of one token.
      row_tokens: Of a row in training. Canvases are no longer, as long as they hold three frames of tokens: longer rows
        are taken for these.
      tokenizer: What makes text tokens.
      text_tokens: Of a prompt at most.
      window: Frames that are made at once at most; longer videos slide.
      overlap: Frames that a window keeps of the one before it; None: half of it.
      max_seconds: Of a video at most.
      knows: Whether it was trained with known tokens.
      size: Height and width, px.
      frames: Of a video.
      fps: Frames per second.
      known_guidance: Scale of the guidance of canvases with known tokens.
      name: What to call the model in a refusal.
      negative: The negative prompt of requests that leave it open.
      token_bytes: Of memory that sampling takes per token, about.
      pixel_bytes: Of memory that decoding takes per pixel of the frames that are decoded at once, about.
      chunk: Of these frames at most, and rows and columns of a tile; None: those of the window, whole.
      room: Bytes that the machine has left for these; None: it is not known.
      shown: How it is shown frames instead of known tokens; None: it is not.
      refine: How a video of a prompt alone is refined from a smaller one, where a request leaves it open.
      refiner: What it was trained with to make small, slow clips large and fast; None: it was not.
      by_area: Whether what is made of given frames has as many pixels as `size`, in their aspect; else it is as large.
      controls: What it was trained with beside clips, each a `generate.control.MakeControl`, by kind.
      rates: Lowest and highest frames per second of the clips that it was trained with; None: they are not known.
      draw_boxes: (boxes_NT4 in px, (height, width)) -> uint8 (T, H, W, 3), as it was trained with; None: with none.
    """

    stride: shapes.Size
    patch: shapes.Size
    row_tokens: int
    tokenizer: Tokenizer
    text_tokens: int
    window: int
    overlap: int | None
    max_seconds: float
    knows: bool
    size: tuple[int, int]
    frames: int
    fps: float
    known_guidance: float
    token_bytes: float
    pixel_bytes: float
    room: float | None = None
    chunk: shapes.Size | None = None
    name: str = "this run"
    negative: str = ""
    shown: ShownConfig | None = None
    refine: tuple[Refinement, ...] = ()
    refiner: Refiner | None = None
    by_area: bool = False
    controls: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rates: tuple[float, float] | None = None
    draw_boxes: Callable[..., np.ndarray] | None = dataclasses.field(default=None, repr=False)

    @property
    def step(self) -> int:
        """Frames of pixels of every token frame but the first."""
        return self.stride[0] * self.patch[0]

    @property
    def first(self) -> int:
        """Frames of pixels of the first token frame."""
        return self.step - self.stride[0] + 1

    def legal(self, frames: float) -> int:
        """Returns the nearest number of frames that a canvas can have, at least `first`."""
        return self.first + max(0, round((frames - self.first) / self.step)) * self.step

    def grid(self, frames: int, size: tuple[int, int]) -> shapes.Size:
        """Returns the token grid of a canvas; raises UserError where the strides do not divide it."""
        return shapes.clip_token_grid((frames, *size), stride=self.stride, patch=self.patch)

    def window_tokens(self, size: tuple[int, int]) -> int:
        """Returns the token frames of the longest canvas of a size."""
        _, rows, columns = self.grid(self.first, size)
        fitting = max(self.row_tokens // (rows * columns), _LEAST_WINDOW)
        return min(1 + (self.window - self.first) // self.step, fitting)

    def shared(self, size: tuple[int, int]) -> int:
        """Returns the frames that a canvas of a size keeps of those before it, where there are as many."""
        most = self.window_tokens(size)
        half = self.first + (max(1, most // 2) - 1) * self.step
        return min(half if self.overlap is None else self.overlap, self.first + (most - 2) * self.step)

    def strength(self, task: Task) -> float:
        """Returns how much of what is given is made anew, where a request leaves it open."""
        if self.refiner is not None and task in ("upscale", "interpolate"):
            return self.refiner.config.level
        return DEFAULT_STRENGTH.get(task, 1.0)

    def refined_at_once(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns height and width of what is made at once of a video that is made of a smaller or slower one."""
        tile = None if self.refiner is None else self.refiner.config.tile
        return size if tile is None else (min(size[0], tile), min(size[1], tile))

    def windows(self, frames: int, size: tuple[int, int]) -> list[int]:
        """Returns the token frames of each canvas of a video of a prompt alone: more than one where it slides."""
        whole, most = 1 + max(0, math.ceil((frames - self.first) / self.step)), self.window_tokens(size)
        found, done = [min(whole, most)], most
        kept = 1 + (self.shared(size) - self.first) // self.step
        while done < whole:
            found.append(min(kept + whole - done, most))
            done += most - kept
        return found

    def memory(self, frames: int, size: tuple[int, int]) -> float:
        """Returns about how many bytes making so many frames at once takes, weights aside."""
        tokens, decoded = math.prod(self.grid(frames, size)), (frames, *size)
        if self.chunk is not None:
            decoded = (min(whole, most) for whole, most in zip(decoded, self.chunk, strict=True))
        return self.pixel_bytes * math.prod(decoded) + self.token_bytes * tokens
