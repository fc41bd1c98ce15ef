"""The world of motion: a ball that flies on, one that the edges of the frame throw back, one that falls.

Speeds are in px per frame. Training sees a range of them, and of colours, sizes and speeds two thirds of all
combinations; `outside` of it are faster balls.
"""

import dataclasses
import functools

import numpy as np

from sora_jax.data.scenes.drawing import ClipForm, Ground, as_pixels, centres, draw_ground, one_of, paint, plain
from sora_jax.data.sources.shapes_world import PALETTE, coverage

LAWS = ("flies", "bounces", "falls")
BALLS = {"small": 0.14, "large": 0.2}  # radii, of the height
_SPEEDS = {"slow": (0.25, 0.4), "fast": (0.4, 0.6)}  # of the widest way in a clip
_OUTSIDE = (0.8, 1.0)
_FASTER = 1.6  # times the speed of others, of what bounces
_GRAVITY = 1.3  # heights per squared clip


@dataclasses.dataclass(frozen=True, kw_only=True)
class BallScene:
    """A ball and the law of its motion.

    Attributes:
      form: How large and long the clip is.
      variant: One of `LAWS`.
      colour: Of the ball, of `PALETTE`.
      size: Of the ball, of `BALLS`.
      speed: "slow" or "fast", or "outside" of what training sees.
      ground: Behind it.
      start: Row and column in the first frame, px.
      velocity: Rows and columns per frame there, px.
    """

    form: ClipForm
    variant: str
    colour: str
    size: str
    speed: str
    ground: Ground
    start: tuple[float, float]
    velocity: tuple[float, float]

    @property
    def held_out(self) -> bool:
        """A third of the combinations of colour, size and speed."""
        fast = int(self.speed == "fast")
        return (list(PALETTE).index(self.colour) + 2 * list(BALLS).index(self.size) + fast) % 3 == 0

    @property
    def radius(self) -> float:
        """Of the ball, px."""
        return BALLS[self.size] * self.form.height

    @property
    def gravity(self) -> float:
        """Rows per squared frame, px; 0 where nothing falls."""
        falls = self.variant == "falls"
        return _GRAVITY * self.form.height / (self.form.frames - 1) ** 2 if falls else 0.0

    def place_T2(self) -> np.ndarray:
        """Returns row and column of the ball in every frame, px."""
        frame_T1 = np.arange(self.form.frames, dtype=np.float64)[:, None]
        place_T2 = np.array(self.start) + frame_T1 * np.array(self.velocity)
        place_T2 += frame_T1**2 * np.array([self.gravity / 2, 0.0])
        if self.variant != "bounces":
            return place_T2
        room_2 = np.array([self.form.height, self.form.width]) - 2 * self.radius
        # Unfolded, the way is straight: every second room is a mirror image.
        turned_T2 = np.mod(place_T2 - self.radius, 2 * room_2)
        return self.radius + np.minimum(turned_T2, 2 * room_2 - turned_T2)

    def captions(self) -> tuple[str, ...]:
        """Returns what may be said of the clip."""
        said = f"a {self.colour} ball {self.variant}"
        return said, f"a {self.size} {self.colour} ball {self.variant} on a {self.ground.name} background"

    def render(self) -> np.ndarray:
        """Returns the pixels, uint8 (T, H, W, 3)."""
        row_H1, column_W = centres(self.form)
        row_T11, column_T11 = (self.place_T2()[:, axis, None, None] for axis in range(2))
        pixels_THWC = plain(self.form, self.ground.level)
        cover_THW = coverage("circle", row_H1 - row_T11, column_W - column_T11, radius=self.radius)
        paint(pixels_THWC, cover_THW, PALETTE[self.colour])
        return as_pixels(pixels_THWC)


def draw_ball(generator: np.random.Generator, form: ClipForm, *, outside: bool = False) -> BallScene:
    """Returns a scene drawn from the generator, of a ball within the frame all the time; `outside`: a faster one."""
    variant, colour, size = one_of(generator, LAWS), one_of(generator, tuple(PALETTE)), one_of(generator, tuple(BALLS))
    speed = "outside" if outside else one_of(generator, tuple(_SPEEDS))
    ground, radius = draw_ground(generator), BALLS[size] * form.height
    room_2 = np.array([form.height, form.width]) - 2 * radius
    ball = functools.partial(BallScene, form=form, variant=variant, colour=colour, size=size, speed=speed)
    while True:
        share = generator.uniform(*(_OUTSIDE if outside else _SPEEDS[speed]))
        pace = share * room_2[1] / (form.frames - 1) * (_FASTER if variant == "bounces" else 1.0)
        angle = generator.uniform(0, 2 * np.pi)
        velocity = (float(pace * np.sin(angle)), float(pace * np.cos(angle)))
        row, column = map(float, radius + generator.random(2) * room_2)
        scene = ball(ground=ground, start=(row, column), velocity=velocity)
        place_T2 = scene.place_T2()
        if np.all((place_T2 >= radius) & (place_T2 <= radius + room_2)) and _worthwhile(scene, place_T2):
            return scene


def _worthwhile(scene: BallScene, place_T2: np.ndarray) -> bool:
    """Returns whether the clip shows its law: what bounces does so after a third of it, in view of both ways."""
    if scene.variant != "bounces":
        return True
    sign_T2 = np.sign(np.diff(place_T2, axis=0))
    third = len(sign_T2) // 3
    turns_2 = (sign_T2[third] != sign_T2[-2]) & (np.abs(scene.velocity) > 0.3)
    return bool(turns_2.any())
