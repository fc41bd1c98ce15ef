"""The world of what lasts: a brush that leaves a trail, and a mouth that eats dots; both rest at the end.

What is painted stays painted and what is eaten stays eaten, however long the clip goes on.
"""

import dataclasses

import numpy as np

from sora_jax.data.scenes.drawing import (
    SIDEWAYS,
    ClipForm,
    Ground,
    as_pixels,
    centres,
    draw_ground,
    one_of,
    paint,
    plain,
    rectangle,
    sign_of,
)
from sora_jax.data.sources.shapes_world import DIRECTIONS, PALETTE, coverage

DOTS = 4
_UPRIGHT = ("up", "down")
_MOVING = 0.75  # of a clip, after which brush and mouth rest
_HALF_TRAIL, _BRUSH = 0.09, 0.15  # of the height: half the width of a trail, radius of the brush
_BRUSH_COLOUR = (250, 250, 250)
_MOUTH, _DOT = 0.19, 0.11  # of the height: radii


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaintingScene:
    """A brush paints a trail that turns once.

    Attributes:
      form: How large and long the clip is.
      colour: Of the trail, of `PALETTE`.
      directions: Of its two parts.
      ground: That is painted on.
      corners: Row and column, px, where the trail begins, turns and ends.
    """

    form: ClipForm
    colour: str
    directions: tuple[str, str]
    ground: Ground
    corners: tuple[tuple[float, float], tuple[float, float], tuple[float, float]]

    variant = "painting"

    @property
    def held_out(self) -> bool:
        """A third of the combinations of a colour and both directions."""
        first, second = (list(DIRECTIONS).index(name) for name in self.directions)
        return (list(PALETTE).index(self.colour) + first + 2 * second) % 3 == 0

    @property
    def half_trail(self) -> float:
        """Half of the trail's width, px."""
        return _HALF_TRAIL * self.form.height

    def place_T2(self) -> np.ndarray:
        """Returns row and column of the brush in every frame, px; it rests at the end."""
        corners_32 = np.array(self.corners)
        lengths_2 = np.abs(np.diff(corners_32, axis=0)).sum(axis=1)
        done_T = _progress_T(self.form) * lengths_2.sum()
        along_32 = np.concatenate([[0.0], np.cumsum(lengths_2)])
        return np.stack([np.interp(done_T, along_32, corners_32[:, axis]) for axis in range(2)], axis=1)

    def trail_THW(self) -> np.ndarray:
        """Returns the share of each pixel that is painted up to every frame, float32."""
        row_H1, column_W = centres(self.form)
        place_T2, turn = self.place_T2(), np.array(self.corners[1])
        trail_THW = np.zeros((self.form.frames, self.form.height, self.form.width), np.float32)
        lengths_2 = np.abs(np.diff(np.array(self.corners), axis=0)).sum(axis=1)
        turned_T = _progress_T(self.form) * lengths_2.sum() > lengths_2[0]
        for frame_HW, place, turned in zip(trail_THW, place_T2, turned_T, strict=True):
            ends = [(np.array(self.corners[0]), turn if turned else place)] + ([(turn, place)] if turned else [])
            for first, second in ends:
                row, column = (first + second) / 2
                half_height, half_width = np.abs(second - first) / 2 + self.half_trail
                cover_HW = rectangle(row_H1 - row, column_W - column, half_height=half_height, half_width=half_width)
                np.maximum(frame_HW, cover_HW, out=frame_HW)
        return trail_THW

    def brush_THW(self) -> np.ndarray:
        """Returns the share of each pixel that the brush covers in every frame."""
        row_H1, column_W = centres(self.form)
        row_T11, column_T11 = (self.place_T2()[:, axis, None, None] for axis in range(2))
        return coverage("circle", row_H1 - row_T11, column_W - column_T11, radius=_BRUSH * self.form.height)

    def captions(self) -> tuple[str, ...]:
        """Returns what may be said of the clip."""
        first, second = self.directions
        said = f"a brush paints a {self.colour} trail {first} then {second}"
        return said, f"on a {self.ground.name} background {said}"

    def render(self) -> np.ndarray:
        """Returns the pixels, uint8 (T, H, W, 3)."""
        pixels_THWC = plain(self.form, self.ground.level)
        paint(pixels_THWC, self.trail_THW(), PALETTE[self.colour])
        paint(pixels_THWC, self.brush_THW(), _BRUSH_COLOUR)
        return as_pixels(pixels_THWC)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EatingScene:
    """A mouth moves along a row of dots and eats each as it comes to it.

    Attributes:
      form: How large and long the clip is.
      colour: Of the mouth, of `PALETTE`.
      food: Colour of the dots, of `PALETTE`.
      direction: In which the mouth moves.
      ground: Behind them.
      row: Of mouth and dots, px.
      dots: Columns of the dots, px, from left to right.
      start: Column of the mouth in the first frame, px.
      end: Where it rests, px.
    """

    form: ClipForm
    colour: str
    food: str
    direction: str
    ground: Ground
    row: float
    dots: tuple[float, ...]
    start: float
    end: float

    variant = "eating"

    @property
    def held_out(self) -> bool:
        """A third of the combinations of both colours and the direction."""
        first, second = (list(PALETTE).index(name) for name in (self.colour, self.food))
        return (first + 2 * second + SIDEWAYS.index(self.direction)) % 3 == 0

    @property
    def dot_radius(self) -> float:
        """Of a dot, px."""
        return _DOT * self.form.height

    def column_T(self) -> np.ndarray:
        """Returns the column of the mouth in every frame, px; it rests at the end."""
        return self.start + (self.end - self.start) * _progress_T(self.form)

    def left_TN(self) -> np.ndarray:
        """Returns which dots are still there in every frame: those that the mouth has not touched."""
        reached_T = self.column_T()[:, None] + sign_of(self.direction) * _MOUTH * self.form.height
        return sign_of(self.direction) * (np.array(self.dots) - reached_T) > 0

    def captions(self) -> tuple[str, ...]:
        """Returns what may be said of the clip."""
        said = f"a {self.colour} mouth eats {self.food} dots moving {self.direction}"
        return said, f"on a {self.ground.name} background {said}"

    def render(self) -> np.ndarray:
        """Returns the pixels, uint8 (T, H, W, 3)."""
        row_H1, column_W = centres(self.form)
        pixels_THWC = plain(self.form, self.ground.level)
        for column, left_T in zip(self.dots, self.left_TN().T, strict=True):
            cover_HW = coverage("circle", row_H1 - self.row, column_W - column, radius=self.dot_radius)
            paint(pixels_THWC, left_T[:, None, None] * cover_HW, PALETTE[self.food])
        offset_T1W = column_W - self.column_T()[:, None, None]
        paint(
            pixels_THWC,
            coverage("circle", row_H1 - self.row, offset_T1W, radius=_MOUTH * self.form.height),
            PALETTE[self.colour],
        )
        return as_pixels(pixels_THWC)


def _progress_T(form: ClipForm) -> np.ndarray:
    """Returns how much of the way is done in every frame, in [0, 1]."""
    return np.minimum(np.linspace(0, 1 / _MOVING, form.frames), 1.0)


def draw_lasting(generator: np.random.Generator, form: ClipForm) -> PaintingScene | EatingScene:
    """Returns a scene drawn from the generator, of both kinds equally often."""
    painting, ground, colour = generator.random() < 0.5, draw_ground(generator), one_of(generator, tuple(PALETTE))
    sideways, upright = one_of(generator, SIDEWAYS), one_of(generator, _UPRIGHT)
    height, width = form.height, form.width
    if painting:
        margin = _BRUSH * height
        rows = margin + generator.uniform(0, 0.1) * height, height - margin - generator.uniform(0, 0.1) * height
        columns = margin + generator.uniform(0, 0.2) * width, width - margin - generator.uniform(0, 0.2) * width
        (top, bottom), (left, right) = rows[:: sign_of(upright)], columns[:: sign_of(sideways)]
        first = generator.random() < 0.5
        turn = (top, right) if first else (bottom, left)
        begin, corner, end = ((float(row), float(column)) for row, column in ((top, left), turn, (bottom, right)))
        directions = (sideways, upright) if first else (upright, sideways)
        return PaintingScene(
            form=form, colour=colour, directions=directions, ground=ground, corners=(begin, corner, end)
        )
    mouth, dot = _MOUTH * height, _DOT * height
    # Far enough apart in hue that neither is taken for the other.
    food = list(PALETTE)[(list(PALETTE).index(colour) + int(generator.integers(2, 5))) % len(PALETTE)]
    start, end = mouth, width - mouth
    dots = np.linspace(start + mouth + 2 * dot, width - dot - 1, DOTS)
    if sign_of(sideways) < 0:
        start, end, dots = width - start, width - end, width - dots[::-1]
    return EatingScene(
        form=form,
        colour=colour,
        food=food,
        direction=sideways,
        ground=ground,
        row=float(generator.uniform(mouth + 1, height - mouth - 1)),
        dots=tuple(map(float, dots)),
        start=float(start),
        end=float(end),
    )
