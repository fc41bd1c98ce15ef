"""What a clip of the drawn world shows, and what is asked of one. Coordinates are fractions of the frame."""

import dataclasses

from sora_jax.data.sources.shapes_paths import Point


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectSpec:
    """One object of a scene; `motion` is None in an image and on a curve, `size` where two objects share a frame."""

    colour: str
    shape: str
    motion: str | None
    size: str | None
    radius: float  # fraction of the short side
    start: Point  # centre (row, column) in the first frame, fractions of (height, width)
    end: Point  # centre in the last frame
    bends: tuple[Point, ...] = ()  # what the way from start to end leans to, in this order; none: it is straight

    @property
    def way(self) -> tuple[Point, ...]:
        """What `shapes_paths.along` takes."""
        return self.start, *self.bends, self.end


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """All that determines the pixels of a clip and its captions."""

    objects: tuple[ObjectSpec, ...]
    background: str
    background_level: int  # grey value of the background, 0..255
    height: int  # px
    width: int  # px
    frames: int
    fps: float
    bar: float | None  # centre of the bar along the axis of motion, None without one


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attributes:
    """What a prompt asks of one object; `motion` is None when it asks for an image."""

    colour: str
    shape: str
    motion: str | None
