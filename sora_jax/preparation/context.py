"""Clips beside a clip, made of it when it is prepared. Letters: T H W C pixels or latents."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import numpy as np

from sora_jax.core import rng
from sora_jax.core.errors import DataError
from sora_jax.data.clips import Clip, with_pixels
from sora_jax.models.codec import Codec
from sora_jax.video.parts import ContextClip

Drawn = dict[str, float | str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Control:
    """How a clip beside is made.

    Attributes:
      make: Returns the clip beside of a clip, and what was drawn with the generator to make it; None where it has none.
        Its height and width are those of the clip over one whole number from 1 to `scale`, the same for both;
        its rate may be lower, and its frames then fewer.
      role: A key of `video.parts.ROLES`.
      scale: The largest of these numbers: clips that `make` is given are continued, by their last rows and columns, to
        multiples of so many tokens.
      recipe: In words, how and with which ranges: what is prepared otherwise is not trained on together.
    """

    make: Callable[[Clip, np.random.Generator], tuple[Clip, Drawn] | None]
    role: str
    scale: int
    recipe: str


Controls = Mapping[str, Control]


def recipes(controls: Controls) -> dict[str, str]:
    """Returns what shards say of how clips beside were made, by name."""
    return {name: controls[name].recipe for name in sorted(controls)}


def made_beside(
    clip: Clip, name: str, control: Control, stride: tuple[int, int, int]
) -> tuple[Clip, int, Drawn] | None:
    """Returns the clip beside a fitted clip, of whole tokens, its scale, and what was drawn; None where it has none.

    It has the fewest tokens that cover the clip, also where its scale is smaller than `control.scale`. `stride` are
    frames, rows and columns of one token. What is drawn depends on the names of control and clip alone.
    """
    whole = continued(clip, (1, control.scale * stride[1], control.scale * stride[2]))
    found = control.make(whole, rng.generator(0, f"{name} of {clip.source_id}"))
    if found is None:
        return None
    made, drawn = found
    (height, width), (rows, columns) = whole.pixels_THWC.shape[1:3], made.pixels_THWC.shape[1:3]
    scale = Fraction(height, rows)
    if scale != Fraction(width, columns) or scale.denominator != 1 or not 1 <= scale <= control.scale:
        raise DataError(
            f"{name} of {clip.source_id} has {rows}x{columns} px for {height}x{width}: it must be smaller by one whole "
            f"number up to {control.scale}"
        )
    sides = zip(clip.pixels_THWC.shape[1:3], stride[1:], strict=True)
    rows, columns = (-(-side // (int(scale) * step)) * step for side, step in sides)
    covering = with_pixels(made, lambda pixels_THWC: pixels_THWC[:, :rows, :columns])
    return continued(covering, stride), int(scale), drawn


def continued(clip: Clip, stride: tuple[int, int, int]) -> Clip:
    """Returns a clip with its last frame, rows and columns repeated up to whole strides; the first frame is one."""
    frames, height, width = clip.pixels_THWC.shape[:3]
    lacking = (-(frames - 1) % stride[0], -height % stride[1], -width % stride[2])
    return with_pixels(clip, functools.partial(np.pad, pad_width=[(0, more) for more in (*lacking, 0)], mode="edge"))


class ContextEncoder:
    """Makes and encodes the clips beside those of a chunk; pixels are held only until a batch of their size is full.

    Args:
      controls: What is made.
      codec: What encodes it, in batches of `batch` clips of one size.
      stride: Frames, rows and columns of one token.
    """

    def __init__(self, controls: Controls, codec: Codec, *, batch: int, stride: tuple[int, int, int]):
        self._controls, self._codec, self._batch, self._stride = controls, codec, batch, stride
        self._waiting: dict[tuple[int, ...], list[tuple[int, str, ContextClip, np.ndarray]]] = {}
        self._encoded: dict[int, dict[str, ContextClip]] = {}

    def add(self, index: int, clip: Clip) -> None:
        """Adds what is beside the fitted clip that has the number `index`."""
        if not self._controls:
            return
        self._encoded[index] = {}
        for name, control in self._controls.items():
            made = made_beside(clip, name, control, self._stride)
            if made is None:
                continue
            beside, scale, drawn = made
            pixels_THWC = beside.pixels_THWC
            empty_THWC = np.zeros((0, 0, 0, 0), np.float32)
            entry = ContextClip(latent_THWC=empty_THWC, fps=beside.fps, role=control.role, scale=scale, drawn=drawn)
            waiting = self._waiting.setdefault(pixels_THWC.shape, [])
            waiting.append((index, name, entry, pixels_THWC))
            if len(waiting) == self._batch:
                self._encode(self._waiting.pop(pixels_THWC.shape))

    def encoded(self) -> dict[int, dict[str, ContextClip]]:
        """Returns the clips beside each clip that was added, by number and name; raw latents."""
        for waiting in self._waiting.values():
            self._encode(waiting)
        self._waiting = {}
        return self._encoded

    def _encode(self, waiting: Sequence[tuple[int, str, ContextClip, np.ndarray]]) -> None:
        """Encodes clips of one size; what a batch lacks is filled with repeats, so that one size is one program."""
        pixels = [entry[-1] for entry in waiting]
        latents = self._codec.encode(np.stack(pixels + [pixels[-1]] * (self._batch - len(pixels))))
        for (index, name, entry, _), latent_THWC in zip(waiting, latents, strict=False):
            self._encoded[index][name] = dataclasses.replace(entry, latent_THWC=latent_THWC)
