"""The world of depth: a camera that passes an object before a wall farther away, and a cube that turns.

Of what is R times as far a camera sees 1 / R of the motion. A cube's sides have two colours in turn, so that those that
come into view are known.
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
    sign_of,
    third_of,
)
from sora_jax.data.sources.shapes_world import PALETTE, SHAPES, coverage

DISTANCES = {"twice": 2, "three times": 3}
_RADIUS = 0.2  # of the height
_WAVES, _CONTRAST = 4, 30.0  # sines that make a wall, and about their sum's deviation in grey values
_LENGTHS = (0.3, 0.75)  # of these, of the height
_EDGE = 0.5  # of the cube, of the height
_TILT = np.deg2rad(25)  # by which its top leans towards the eye
_TOP = (238, 238, 238)
_TURNS = (80.0, 130.0)  # degrees in a clip


@dataclasses.dataclass(frozen=True, kw_only=True)
class PassingScene:
    """A camera moves sideways past an object before a wall.

    Attributes:
      form: How large and long the clip is.
      colour: Of the object, of `PALETTE`.
      shape: Of the object, of `SHAPES`.
      direction: In which the camera moves.
      distance: Of the wall, as a name of `DISTANCES`.
      ground: About the grey of the wall.
      waves_N3: Of the wall, each with its length in px, its phase in radians and its amplitude in grey values.
      start: Row and column of the object in the first frame, px.
      travel: px that the object seems to move, from the first to the last frame.
    """

    form: ClipForm
    colour: str
    shape: str
    direction: str
    distance: str
    ground: Ground
    waves_N3: tuple[tuple[float, float, float], ...]
    start: tuple[float, float]
    travel: float

    variant = "passing"

    @property
    def ratio(self) -> int:
        """Distance of the wall over that of the object."""
        return DISTANCES[self.distance]

    @property
    def radius(self) -> float:
        """Half of the object's box, px."""
        return _RADIUS * self.form.height

    @property
    def held_out(self) -> bool:
        """A third of the combinations of colour, shape and direction."""
        return third_of(self.colour, self.shape, self.direction) == 1

    def column_T(self) -> np.ndarray:
        """Returns the column of the object's centre in every frame, px."""
        return self.start[1] - sign_of(self.direction) * np.linspace(0, self.travel, self.form.frames)

    def captions(self) -> tuple[str, ...]:
        """Returns what may be said of the clip."""
        thing = f"a {self.colour} {self.shape}"
        return (
            f"the camera moves {self.direction} past {thing} before a wall {self.distance} as far",
            f"before a wall {self.distance} as far the camera moves {self.direction} past {thing}",
        )

    def render(self) -> np.ndarray:
        """Returns the pixels, uint8 (T, H, W, 3)."""
        row_H1, column_W = centres(self.form)
        pixels_THWC = plain(self.form, self.ground.level)
        moved_T1 = (self.column_T() - self.start[1])[:, None] / self.ratio
        for length, phase, amplitude in self.waves_N3:
            wave_TW = amplitude * np.sin((column_W - moved_T1) * 2 * np.pi / length + phase)
            pixels_THWC += wave_TW.astype(np.float32)[:, None, :, None]
        offset_T1W = column_W - self.column_T()[:, None, None]
        cover_THW = coverage(self.shape, row_H1 - self.start[0], offset_T1W, radius=self.radius)
        paint(pixels_THWC, cover_THW, PALETTE[self.colour])
        return as_pixels(pixels_THWC)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TurningScene:
    """A cube turns about its upright axis.

    Attributes:
      form: How large and long the clip is.
      colours: Of the two pairs of opposite sides, of `PALETTE`.
      direction: In which the side towards the eye moves.
      ground: Behind it.
      start: Radians, of the cube in the first frame.
      turn: Radians from the first to the last frame, more than 0.
    """

    form: ClipForm
    colours: tuple[str, str]
    direction: str
    ground: Ground
    start: float
    turn: float

    variant = "turning"

    @property
    def held_out(self) -> bool:
        """A third of the combinations of both colours and the direction."""
        first, second = (list(PALETTE).index(name) for name in self.colours)
        return (first + second + SIDEWAYS.index(self.direction)) % 3 == 1

    def angle_T(self) -> np.ndarray:
        """Returns how far the cube has turned in every frame, radians."""
        return self.start + sign_of(self.direction) * np.linspace(0, self.turn, self.form.frames)

    def captions(self) -> tuple[str, ...]:
        """Returns what may be said of the clip."""
        first, second = self.colours
        ground = f"on a {self.ground.name} background"
        return (
            f"a {first} and {second} cube turns {self.direction}",
            f"a {first} and {second} cube turns {self.direction} {ground}",
        )

    def corners_T42(self, angle_T: np.ndarray) -> np.ndarray:
        """Returns row and column of the upper corners of a cube that has turned by these angles, px (T, 4, 2)."""
        half = _EDGE * self.form.height / 2
        quarter_T4 = angle_T[:, None] + np.pi / 4 + np.arange(4) * np.pi / 2
        across_T4, towards_T4 = np.sin(quarter_T4) * np.sqrt(2) * half, np.cos(quarter_T4) * np.sqrt(2) * half
        row_T4 = self.form.height / 2 - half * np.cos(_TILT) + towards_T4 * np.sin(_TILT)
        return np.stack([row_T4, self.form.width / 2 + across_T4], axis=-1)

    def render(self) -> np.ndarray:
        """Returns the pixels, uint8 (T, H, W, 3)."""
        return as_pixels(self.draw_cubes(self.angle_T()))

    def draw_cubes(self, angle_T: np.ndarray) -> np.ndarray:
        """Returns the cube at any angles, float32 (T, H, W, 3)."""
        form = dataclasses.replace(self.form, frames=len(angle_T))
        pixels_THWC = plain(form, self.ground.level)
        corners_T42 = self.corners_T42(angle_T)
        drop = np.array([_EDGE * form.height * np.cos(_TILT), 0.0])
        for side in range(4):
            # The side between two corners faces the eye where its normal does.
            facing_T = np.cos(angle_T + np.pi / 2 + side * np.pi / 2) > 0
            pair_T22 = corners_T42[:, [side, (side + 1) % 4]]
            face_T42 = np.concatenate([pair_T22, pair_T22[:, ::-1] + drop], axis=1)
            cover_THW = facing_T[:, None, None] * _polygons(form, face_T42)
            paint(pixels_THWC, cover_THW, PALETTE[self.colours[side % 2]])
        paint(pixels_THWC, _polygons(form, corners_T42), _TOP)
        return pixels_THWC


def _polygons(form: ClipForm, corners_TN2: np.ndarray) -> np.ndarray:
    """Returns about the share of each pixel that a convex polygon covers (T, H, W), whichever way it goes around."""
    row_H1, column_W = centres(form)
    cover_THW = np.ones((len(corners_TN2), form.height, form.width), np.float32)
    middle_T2 = corners_TN2.mean(axis=1)
    for number in range(corners_TN2.shape[1]):
        first_T2, second_T2 = corners_TN2[:, number], corners_TN2[:, (number + 1) % corners_TN2.shape[1]]
        along_T2 = second_T2 - first_T2
        along_T2 = along_T2 / np.maximum(np.linalg.norm(along_T2, axis=1, keepdims=True), 1e-6)
        to_middle_T2 = middle_T2 - first_T2
        side_T = np.sign(to_middle_T2[:, 0] * along_T2[:, 1] - to_middle_T2[:, 1] * along_T2[:, 0])
        row_T, column_T = (side_T * along_T2[:, 1]), (side_T * along_T2[:, 0])
        offset_T = 0.5 - first_T2[:, 0] * row_T + first_T2[:, 1] * column_T
        row_T, column_T, offset_T = (part.astype(np.float32)[:, None, None] for part in (row_T, column_T, offset_T))
        cover_THW *= np.clip(row_H1 * row_T - column_W * column_T + offset_T, 0, 1)
    return cover_THW


def draw_depth(generator: np.random.Generator, form: ClipForm) -> PassingScene | TurningScene:
    """Returns a scene drawn from the generator, of both kinds equally often."""
    passing, direction, ground = generator.random() < 0.5, one_of(generator, SIDEWAYS), draw_ground(generator)
    colour = one_of(generator, tuple(PALETTE))
    if not passing:
        other = one_of(generator, tuple(name for name in PALETTE if name != colour))
        turn = np.deg2rad(generator.uniform(*_TURNS))
        start = float(generator.uniform(0, np.pi))
        return TurningScene(
            form=form, colours=(colour, other), direction=direction, ground=ground, start=start, turn=float(turn)
        )
    radius = _RADIUS * form.height
    lengths_N = generator.uniform(*_LENGTHS, size=_WAVES) * form.height
    phases_N, amplitude = generator.uniform(0, 2 * np.pi, size=_WAVES), _CONTRAST * np.sqrt(2 / _WAVES)
    waves = tuple((float(a), float(b), float(amplitude)) for a, b in zip(lengths_N, phases_N, strict=True))
    # The wall keeps its contrast on every ground.
    level = min(max(ground.level, 90), 165)
    travel = (form.width - 2 * radius) * generator.uniform(0.75, 0.95)
    low = radius + generator.uniform(0, form.width - 2 * radius - travel)
    return PassingScene(
        form=form,
        colour=colour,
        shape=one_of(generator, SHAPES),
        direction=direction,
        distance=one_of(generator, tuple(DISTANCES)),
        ground=dataclasses.replace(ground, level=level),
        waves_N3=waves,
        start=(
            float(generator.uniform(radius, form.height - radius)),
            float(low if sign_of(direction) < 0 else form.width - low),
        ),
        travel=float(travel),
    )
