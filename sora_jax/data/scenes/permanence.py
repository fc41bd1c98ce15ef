"""The world of what is hidden: an object behind a bar, one that rests there, one that a camera turns away from.

After the first frames nothing is left open: an object keeps its speed, rests behind the bar for a quarter of the clip,
and the camera comes back to where it began at the clip's end.
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
    third_of,
)
from sora_jax.data.sources.shapes_world import BAR_COLOUR, PALETTE, SHAPES, coverage

HIDINGS = ("behind", "rests", "pans")
_RADIUS = 0.2  # of the height
_MARGIN = 1.0  # px by which a bar is wider on each side than what it hides
_STRIPES, _CONTRAST = 0.42, 14.0  # length of a wave of the ground that a camera passes, of the height; grey values


@dataclasses.dataclass(frozen=True, kw_only=True)
class HidingScene:
    """An object that is out of sight for a while.

    Attributes:
      form: How large and long the clip is.
      variant: One of `HIDINGS`.
      colour: Of the object, of `PALETTE`.
      shape: Of the object, of `SHAPES`.
      direction: In which it moves, or the camera.
      ground: Behind it.
      start: Row and column of the object in the first frame, px.
      travel: px, of the object from the first to the last frame, or of the camera until it turns back.
      bar: Column of the bar's centre, px; None where a camera moves.
    """

    form: ClipForm
    variant: str
    colour: str
    shape: str
    direction: str
    ground: Ground
    start: tuple[float, float]
    travel: float
    bar: float | None

    @property
    def radius(self) -> float:
        """Half of the object's box, px."""
        return _RADIUS * self.form.height

    @property
    def held_out(self) -> bool:
        """A third of the combinations of colour, shape and direction."""
        return third_of(self.colour, self.shape, self.direction) == 0

    def camera_T(self) -> np.ndarray:
        """Returns how far the camera has moved to the right, px."""
        if self.variant != "pans":
            return np.zeros(self.form.frames)
        out_T = 1 - np.abs(np.linspace(-1, 1, self.form.frames))
        return sign_of(self.direction) * self.travel * out_T

    def column_T(self) -> np.ndarray:
        """Returns the column of the object's centre in every frame, px, also where it is out of sight."""
        if self.bar is None:
            return self.start[1] - self.camera_T()
        moving_T = np.arange(self.form.frames, dtype=np.float64)
        if self.variant == "rests":
            rest = self.form.frames // 4
            speed = self.travel / (self.form.frames - 1 - rest)
            begins = abs(self.bar - self.start[1]) / speed
            moving_T = np.minimum(moving_T, begins) + np.maximum(moving_T - begins - rest, 0)
        return self.start[1] + sign_of(self.direction) * self.travel * moving_T / moving_T[-1]

    def shown_T(self) -> np.ndarray:
        """Returns about which share of the object's width is in sight in every frame, in [0, 1]."""
        column_T = self.column_T()
        left_T, right_T = column_T - self.radius, column_T + self.radius
        if self.bar is None:
            seen_T = np.minimum(right_T, self.form.width) - np.maximum(left_T, 0)
        else:
            low, high = self.bar - self.half_bar, self.bar + self.half_bar
            seen_T = 2 * self.radius - np.maximum(np.minimum(right_T, high) - np.maximum(left_T, low), 0)
        return np.clip(seen_T / (2 * self.radius), 0, 1)

    @property
    def half_bar(self) -> float:
        """Half of the bar's width, px: it hides the whole object."""
        return self.radius + _MARGIN

    def captions(self) -> tuple[str, ...]:
        """Returns what may be said of the clip."""
        thing, ground = f"a {self.colour} {self.shape}", f"on a {self.ground.name} background"
        if self.variant == "pans":
            return (
                f"the camera pans {self.direction} from {thing} and back",
                f"the camera pans {self.direction} from {thing} {ground} and back",
            )
        rests = " rests and goes on" if self.variant == "rests" else ""
        return (
            f"{thing} moves {self.direction} behind a bar{rests}",
            f"{ground} {thing} moves {self.direction} behind a bar{rests}",
        )

    def render(self) -> np.ndarray:
        """Returns the pixels, uint8 (T, H, W, 3)."""
        form = self.form
        row_H1, column_W = centres(form)
        pixels_THWC = plain(form, self.ground.level)
        if self.bar is None:
            wave_TW = np.sin((column_W + self.camera_T()[:, None]) * 2 * np.pi / (_STRIPES * form.height))
            pixels_THWC += (_CONTRAST * wave_TW).astype(np.float32)[:, None, :, None]
        offset_T1W = column_W - self.column_T()[:, None, None]
        cover_THW = coverage(self.shape, row_H1 - self.start[0], offset_T1W, radius=self.radius)
        paint(pixels_THWC, cover_THW, PALETTE[self.colour])
        if self.bar is not None:
            cover_HW = rectangle(0 * row_H1, column_W - self.bar, half_height=1.0, half_width=self.half_bar)
            paint(pixels_THWC, cover_HW, BAR_COLOUR)
        return as_pixels(pixels_THWC)


def draw_hiding(generator: np.random.Generator, form: ClipForm) -> HidingScene:
    """Returns a scene drawn from the generator."""
    variant, direction = one_of(generator, HIDINGS), one_of(generator, SIDEWAYS)
    colour, shape, ground = one_of(generator, tuple(PALETTE)), one_of(generator, SHAPES), draw_ground(generator)
    radius, width, forward = _RADIUS * form.height, form.width, sign_of(direction)
    row = generator.uniform(radius + 1, form.height - radius - 1)
    if variant == "pans":
        ahead = generator.uniform(radius + 1, 0.4 * width)  # from the edge beyond which it goes
        start, travel, bar = (ahead if forward > 0 else width - ahead), ahead + radius + 2, None
    else:
        behind = radius + generator.uniform(0, 0.03) * width
        start = behind if forward > 0 else width - behind
        travel = width - behind - radius - generator.uniform(0, 0.03) * width
        bar = start + forward * generator.uniform(0.40, 0.46) * travel
    return HidingScene(
        form=form,
        variant=variant,
        colour=colour,
        shape=shape,
        direction=direction,
        ground=ground,
        start=(float(row), float(start)),
        travel=float(travel),
        bar=None if bar is None else float(bar),
    )
