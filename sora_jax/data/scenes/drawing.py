"""What the drawn worlds are drawn with: a ground, and what covers a share of its pixels.

T frames, H rows, W columns, C channels (RGB); lengths and places are in px, a pixel's centre at one half.
"""

import dataclasses
from typing import Protocol

import numpy as np

from sora_jax.data.sources.shapes_world import BACKGROUNDS, DIRECTIONS, PALETTE, SHAPES

SIDEWAYS = ("left", "right")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipForm:
    """How large and long a drawn clip is."""

    height: int  # px
    width: int  # px
    frames: int
    fps: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ground:
    """What a scene is drawn on: a name of `BACKGROUNDS` and its grey value, 0..255."""

    name: str
    level: int


class DrawnScene(Protocol):
    """All that determines the pixels and captions of a clip of one of the worlds."""

    @property
    def form(self) -> ClipForm:
        """How large and long the clip is."""
        ...

    @property
    def variant(self) -> str:
        """Which of the things that its world shows."""
        ...

    @property
    def held_out(self) -> bool:
        """Whether training never shows the combination of what the scene shows."""
        ...

    def captions(self) -> tuple[str, ...]:
        """Returns what may be said of the clip, the one that prompts use first."""
        ...

    def render(self) -> np.ndarray:
        """Returns the pixels, uint8 (T, H, W, 3)."""
        ...


def draw_ground(generator: np.random.Generator) -> Ground:
    """Returns one of the backgrounds at about its grey value."""
    name = tuple(BACKGROUNDS)[generator.integers(len(BACKGROUNDS))]
    return Ground(name=name, level=BACKGROUNDS[name] + int(generator.integers(-5, 6)))


def one_of(generator: np.random.Generator, choices: tuple[str, ...]) -> str:
    """Returns one of `choices`, all equally likely."""
    return choices[generator.integers(len(choices))]


def sign_of(direction: str) -> int:
    """Returns -1 for left and up, 1 for right and down."""
    return sum(DIRECTIONS[direction])


def third_of(colour: str, shape: str, direction: str) -> int:
    """Returns 0, 1 or 2: of which third of the combinations of an object that goes left or right this one is."""
    return (list(PALETTE).index(colour) + 2 * SHAPES.index(shape) + SIDEWAYS.index(direction)) % 3


def plain(form: ClipForm, level: float) -> np.ndarray:
    """Returns a ground of one grey, float32 (T, H, W, 3)."""
    return np.full((form.frames, form.height, form.width, 3), level, np.float32)


def centres(form: ClipForm) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows (H, 1) and columns (W,) of the centres of pixels, float32."""
    return np.arange(form.height, dtype=np.float32)[:, None] + 0.5, np.arange(form.width, dtype=np.float32) + 0.5


def paint(pixels_THWC: np.ndarray, cover: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Lays a colour over the share `cover`, in [0, 1], (T, H, W) or (H, W), of each pixel, in place."""
    pixels_THWC += cover[..., None] * (np.array(colour, np.float32) - pixels_THWC)


def rectangle(
    row_offset: np.ndarray, column_offset: np.ndarray, *, half_height: float, half_width: float
) -> np.ndarray:
    """Returns the share of each pixel that a rectangle covers, by the offsets from its centre to the pixel's."""
    rows = np.clip(half_height + 0.5 - np.abs(row_offset), 0, 1)
    return rows * np.clip(half_width + 0.5 - np.abs(column_offset), 0, 1)


def as_pixels(pixels_THWC: np.ndarray) -> np.ndarray:
    """Returns pixels as uint8."""
    return np.round(np.clip(pixels_THWC, 0, 255)).astype(np.uint8)
