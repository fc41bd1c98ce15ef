"""The drawn world: captioned clips of moving shapes, made on demand from (seed, split, index).

Nothing is downloaded or stored, clip `i` never depends on another clip, and what a caption says can be read
back from the pixels (`evaluation/shapes_oracle.py`), so "follows its prompt" is a number on any machine.
A fixed third of the (colour, shape, motion) combinations is held out of training: a model that draws them
right has composed what it learned apart.

T frames, H rows, W columns, C channels (RGB). Coordinates are fractions of the frame unless "px" is said.
"""

import dataclasses
import hashlib
import itertools
from typing import Literal

import numpy as np

from sora_jax.core import rng as rng_lib
from sora_jax.core.errors import UserError
from sora_jax.data.clips import Clip
from sora_jax.data.sources import shapes_wordings
from sora_jax.data.sources.shapes_captions import compose, compose_spoiled
from sora_jax.data.sources.shapes_paths import CURVES, along, draw_curve
from sora_jax.data.sources.shapes_scene import Attributes, ObjectSpec, Scene

# Six hues about 60 degrees apart, so that a blurred or faded sample still has one nearest name.
PALETTE = {
    "red": (222, 40, 40),
    "yellow": (230, 205, 30),
    "green": (40, 180, 60),
    "cyan": (30, 195, 215),
    "blue": (45, 75, 228),
    "purple": (195, 45, 210),
}
SHAPES = ("circle", "square", "triangle")
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
STILL = "still"
MOTIONS = (*DIRECTIONS, STILL)
BACKGROUNDS = {"dark": 40, "grey": 120, "light": 214}
RADII = {"small": 0.26, "large": 0.32}
# All that is said of each attribute.
_WORDS = {
    "colour": tuple(PALETTE),
    "shape": SHAPES,
    "motion": MOTIONS,
    "background": tuple(BACKGROUNDS),
    "size": tuple(RADII),
}
PAIR_RADIUS = 0.15
BAR_COLOUR = (80, 58, 46)
BAR_HALF_WIDTH = 0.05
_TRAVEL = (0.36, 0.40)
_TOLD = 0.25  # chance that captions say where a curve leads; with 0 a direction would mean a straight way
_SQUARE_HALF_SIDE = 0.886  # of the radius: the area of a circle of that radius
_DRAWING = 2  # raise when the same config would draw other pixels or captions: it enters the fingerprint

Split = Literal["train", "heldout"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """What the world draws from; raises `UserError` where a value is outside its range."""

    seed: int
    num_clips: int
    sides: tuple[tuple[int, int], ...]  # (height, width) in px, each >= 16
    frames: tuple[int, ...]  # lengths of moving clips, each >= 2
    image_share: float  # share of clips with one frame, in [0, 1]
    fps: tuple[float, ...]  # frames per second; a property of the clip that does not alter its travel
    max_objects: int  # 1, or 2: half of the clips then show two
    occluder: bool  # half of the moving one-object clips then pass behind a bar
    split: Split
    # Captions in other words that each clip has as well; None: none, and not in the digest of the world.
    wordings: int | None = dataclasses.field(default=None, repr=False)
    # Chances that a caption leaves an attribute out, and that it states a wrong one; None: neither, nor in the digest.
    caption_faults: tuple[float, float] | None = dataclasses.field(default=None, repr=False)
    # Chance that what moves alone and unhidden goes along a curve; None: nothing, and not in the digest of the world.
    curved_share: float | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self):
        _check(self.seed >= 0, f"world seed must be 0 or more, got {self.seed}")
        _check(self.num_clips >= 1, f"num_clips must be at least 1, got {self.num_clips}")
        _check(len(self.sides) > 0, "sides must name at least one (height, width)")
        for side in self.sides:
            _check(len(side) == 2 and min(side) >= 16, f"a side must be (height, width) >= 16 px, got {side}")
        _check(0 <= self.image_share <= 1, f"image_share must lie in [0, 1], got {self.image_share}")
        _check(len(self.frames) > 0 or self.image_share == 1, "frames must name at least one clip length")
        for count in self.frames:
            _check(count >= 2, f"frames must be 2 or more, got {count}; for images raise image_share")
        _check(len(self.fps) > 0, "fps must name at least one rate")
        for rate in self.fps:
            _check(rate > 0, f"fps must be over 0, got {rate}")
        _check(self.max_objects in (1, 2), f"max_objects must be 1 or 2, got {self.max_objects}")
        _check(self.wordings is None or self.wordings >= 1, f"wordings must be 1 or more, or None, got {self.wordings}")
        if self.caption_faults is not None:
            fits = len(self.caption_faults) == 2 and min(self.caption_faults) >= 0 and sum(self.caption_faults) <= 1
            _check(
                fits, f"caption_faults must be two shares, of 1 together at most, or None, got {self.caption_faults}"
            )
            _check(self.wordings is None, "captions have faults or other words: set caption_faults or wordings None")
        if self.curved_share is not None:
            _check(0 <= self.curved_share <= 1, f"curved_share must lie in [0, 1], or be None, got {self.curved_share}")
        _check(self.split in ("train", "heldout"), f"split is 'train' or 'heldout', got {self.split!r}")


class ShapesWorld:
    """A `data.sources.Source` of drawn clips; clip `i` is a pure function of (config, i)."""

    def __init__(self, config: WorldConfig):
        self.config = config
        tables: tuple[object, ...] = (_DRAWING, PALETTE, SHAPES, MOTIONS, BACKGROUNDS, RADII, PAIR_RADIUS, BAR_COLOUR)
        if config.wordings is not None:
            tables += (config.wordings, shapes_wordings.TABLES)
        if config.caption_faults is not None:
            tables += ("caption faults", config.caption_faults)
        if config.curved_share is not None:
            tables += ("curves", config.curved_share, _TOLD, CURVES)
        endless = dataclasses.replace(config, num_clips=1)
        self._origin = hashlib.sha256(repr((endless, tables)).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self.config.num_clips

    def scene(self, index: int) -> Scene:
        """Returns what clip `index` shows; raises IndexError outside 0..num_clips - 1."""
        if not 0 <= index < self.config.num_clips:
            raise IndexError(f"clip {index} of a world of {self.config.num_clips}")
        name = f"shapes/{self.config.split}"
        scene = _draw_scene(self.config, rng_lib.generator(self.config.seed, name, index))
        if not self.config.curved_share:
            return scene
        curves = rng_lib.generator(self.config.seed, f"{name}/curves", index)
        return _bent(scene, curves) if curves.random() < self.config.curved_share else scene

    def __getitem__(self, index: int) -> Clip:
        scene = self.scene(index)
        return Clip(
            pixels_THWC=render(scene),
            fps=scene.fps,
            captions=self.captions(index),
            source_id=self.source_id(index),
        )

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns the captions of clip `index`, without drawing it."""
        scene = self.scene(index)
        return *self._told(index, scene), *self._reworded(index, scene)

    def _told(self, index: int, scene: Scene) -> tuple[str, ...]:
        if self.config.caption_faults is None:
            return describe(scene)
        return compose_spoiled(
            scene.objects,
            ground=scene.background,
            bar=scene.bar is not None,
            words=_WORDS,
            faults=self.config.caption_faults,
            generator=rng_lib.generator(self.config.seed, f"shapes/{self.config.split}/caption_faults", index),
        )

    def _reworded(self, index: int, scene: Scene) -> tuple[str, ...]:
        if self.config.wordings is None:
            return ()
        things = [(thing.colour, thing.shape, thing.motion) for thing in scene.objects]
        generator = rng_lib.generator(self.config.seed, f"shapes/{self.config.split}/wordings", index)
        found = shapes_wordings.reword(generator, things=things, ground=scene.background, count=self.config.wordings)
        return found if scene.bar is None else tuple(f"{one} behind a bar" for one in found)

    def source_id(self, index: int) -> str:
        """Returns the name of clip `index`, unique over seeds and splits."""
        return f"shapes-{self.config.split}-{self.config.seed}-{index}"

    def origin(self, index: int) -> str:
        """Returns a digest, the same for every clip, that changes whenever one could be drawn or told otherwise.

        A world of more clips begins with the same ones.
        """
        return self._origin


def is_held_out(colour: str, shape: str, motion: str | None) -> bool:
    """Returns whether training never shows the combination: 24 of the 72 moving ones, no still or image.

    Every (colour, shape), (colour, motion) and (shape, motion) pair remains in training.
    """
    if motion is None or motion == STILL:
        return False
    return (list(PALETTE).index(colour) + 2 * SHAPES.index(shape) + MOTIONS.index(motion)) % 3 == 0


def coverage(
    shape: str, row_offset: np.ndarray, column_offset: np.ndarray, *, radius: float | np.ndarray
) -> np.ndarray:
    """Returns the share of each pixel that the shape covers, in [0, 1], broadcast over offsets and radius.

    Offsets are from the shape's centre to the pixel's centre and the radius is half of the shape's box, in
    px. Exact for straight edges along the axes, and right to a few hundredths along the others.
    """
    if shape == "circle":
        return np.clip(radius + 0.5 - np.sqrt(row_offset**2 + column_offset**2), 0, 1)
    if shape == "square":
        half = _SQUARE_HALF_SIDE * radius + 0.5
        return np.clip(half - np.abs(row_offset), 0, 1) * np.clip(half - np.abs(column_offset), 0, 1)
    assert shape == "triangle", shape
    slope, lean = (row_offset + radius) / np.sqrt(5) + 0.5, 2 / np.sqrt(5) * column_offset
    sides = np.clip(slope + lean, 0, 1) + np.clip(slope - lean, 0, 1) - 1
    return np.clip(sides, 0, 1) * np.clip(radius + 0.5 - row_offset, 0, 1)


def lay_object(
    pixels_THWC: np.ndarray, colour: str, shape: str, *, place_T: tuple[np.ndarray, np.ndarray], radius: float
) -> None:
    """Lays an object over float32 pixels; `place_T` are row and column of its centre in each frame, all in px."""
    row_H, column_W = _offsets(*pixels_THWC.shape[1:3])
    row_T11, column_T11 = (place[:, None, None] for place in place_T)
    cover_THW = coverage(shape, row_H - row_T11, column_W - column_T11, radius=radius)
    pixels_THWC += cover_THW[..., None] * (np.array(PALETTE[colour], np.float32) - pixels_THWC)


def _offsets(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns where the middles of rows and columns are, in px, float32 (1, H, 1) and (1, 1, W)."""
    row_H, column_W = (np.arange(count, dtype=np.float32) + 0.5 for count in (height, width))
    return row_H[None, :, None], column_W[None, None, :]


def render(scene: Scene) -> np.ndarray:
    """Returns the pixels of a scene, uint8 (T, H, W, 3)."""
    progress_T = np.linspace(0, 1, scene.frames, dtype=np.float32)
    shape_THWC = (scene.frames, scene.height, scene.width, 3)
    pixels_THWC = np.full(shape_THWC, scene.background_level, np.float32)
    for spec in scene.objects:
        row_T, column_T = along(spec.way, progress_T)
        place_T, radius = (row_T * scene.height, column_T * scene.width), spec.radius * min(scene.height, scene.width)
        lay_object(pixels_THWC, spec.colour, spec.shape, place_T=place_T, radius=radius)
    if scene.bar is not None:
        axis, sides = int(scene.objects[0].motion in ("left", "right")), (scene.height, scene.width)
        position, side = _offsets(*sides)[axis], sides[axis]
        half = BAR_HALF_WIDTH * min(scene.height, scene.width) + 0.5
        cover_HW = np.clip(half - np.abs(position - scene.bar * side), 0, 1)
        pixels_THWC += cover_HW[..., None] * (np.array(BAR_COLOUR, np.float32) - pixels_THWC)
    return np.round(pixels_THWC).astype(np.uint8)


def describe(scene: Scene) -> tuple[str, ...]:
    """Returns the captions of a scene: short, plain (the one prompts use), plain reordered, detailed.

    Each names colour, shape and, where there is one, the direction; the last names the size too.
    """
    return compose(scene.objects, ground=scene.background, bar=scene.bar is not None)


def _draw_scene(config: WorldConfig, generator: np.random.Generator) -> Scene:
    """Returns a scene drawn from the generator; the order of the draws is part of `_DRAWING`."""
    height, width = config.sides[generator.integers(len(config.sides))]
    image = generator.random() < config.image_share
    frames = 1 if image else int(config.frames[generator.integers(len(config.frames))])
    fps = float(config.fps[generator.integers(len(config.fps))])
    background = tuple(BACKGROUNDS)[generator.integers(len(BACKGROUNDS))]
    level = BACKGROUNDS[background] + int(generator.integers(-5, 6))
    side = (height, width)
    if config.max_objects == 2 and generator.random() < 0.5:
        objects = _draw_pair(generator, config.split, image, side)
    else:
        objects = (_draw_object(generator, _draw_kind(generator, config.split, image), side, pair=False),)
    bar = None
    direction = DIRECTIONS.get(objects[0].motion or STILL)
    if config.occluder and len(objects) == 1 and direction and generator.random() < 0.5:
        # Nearer to one end of the path: at the other end the whole object is in view.
        axis = int(direction[0] == 0)
        share = 0.3 if generator.random() < 0.5 else 0.7
        bar = objects[0].start[axis] + share * (objects[0].end[axis] - objects[0].start[axis])
    return Scene(
        objects=objects,
        background=background,
        background_level=level,
        height=height,
        width=width,
        frames=frames,
        fps=fps,
        bar=bar,
    )


def _bent(scene: Scene, generator: np.random.Generator) -> Scene:
    """Returns the scene with its object on a curve, if it is one that moves in the open.

    It leads about where the straight way did, so what is held out of training is not seen there either.
    """
    (spec, *others), side = scene.objects, (scene.height, scene.width)
    direction = DIRECTIONS.get(spec.motion or STILL)
    if direction is None or others or scene.bar is not None:
        return scene
    start, *bends, end = draw_curve(generator, direction=direction, radius=spec.radius, side=side)
    told = spec.motion if generator.random() < _TOLD else None
    bent = dataclasses.replace(spec, motion=told, start=start, end=end, bends=tuple(bends))
    return dataclasses.replace(scene, objects=(bent,))


def _draw_kind(generator: np.random.Generator, split: Split, image: bool) -> Attributes:
    """Returns a kind that the split may show: motions equally likely, then colour and shape."""
    if image:
        motion = None
        kinds = list(itertools.product(PALETTE, SHAPES))
    else:
        motions = MOTIONS if split == "train" else tuple(DIRECTIONS)
        motion = motions[generator.integers(len(motions))]
        heldout = split == "heldout"
        kinds = [(c, s) for c in PALETTE for s in SHAPES if is_held_out(c, s, motion) == heldout]
    colour, shape = kinds[generator.integers(len(kinds))]
    return Attributes(colour=colour, shape=shape, motion=motion)


def _draw_object(generator: np.random.Generator, kind: Attributes, side: tuple[int, int], *, pair: bool) -> ObjectSpec:
    """Returns the kind placed so that it stays whole inside the frame from its start to its end."""
    size = None if pair else tuple(RADII)[generator.integers(len(RADII))]
    radius = RADII[size] if size else PAIR_RADIUS
    direction = DIRECTIONS.get(kind.motion or STILL, (0, 0))
    start, end = [0.0, 0.0], [0.0, 0.0]
    for axis in range(2):
        reach = radius * min(side) / side[axis]
        # The largest object leaves room for the shortest way and no more, which rounding must not take away.
        room = max(1 - 2 * reach, _TRAVEL[0])
        travel = direction[axis] * generator.uniform(_TRAVEL[0], min(_TRAVEL[1], room))
        low = reach + generator.uniform(0, room - abs(travel))
        start[axis] = low if travel >= 0 else low - travel
        end[axis] = start[axis] + travel
    return ObjectSpec(
        colour=kind.colour,
        shape=kind.shape,
        motion=kind.motion,
        size=size,
        radius=radius,
        start=(start[0], start[1]),
        end=(end[0], end[1]),
    )


def _draw_pair(
    generator: np.random.Generator, split: Split, image: bool, side: tuple[int, int]
) -> tuple[ObjectSpec, ObjectSpec]:
    """Returns two objects of different colour and shape that never come near each other, by rejection."""
    while True:
        first = _draw_object(generator, _draw_kind(generator, split, image), side, pair=True)
        second = _draw_object(generator, _draw_kind(generator, split, image), side, pair=True)
        different = first.colour != second.colour and first.shape != second.shape
        if different and _apart(first, second, side):
            return first, second


def _apart(first: ObjectSpec, second: ObjectSpec, side: tuple[int, int]) -> bool:
    """Returns whether the boxes of two objects keep a gap of a tenth of the short side at all times."""
    progress = np.linspace(0, 1, 33)[:, None]
    positions = [np.array(o.start) + progress * (np.array(o.end) - np.array(o.start)) for o in (first, second)]
    gap = np.abs(positions[0] - positions[1]) * np.array(side) / min(side)
    return bool(np.all(gap.max(axis=1) > first.radius + second.radius + 0.1))


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)
