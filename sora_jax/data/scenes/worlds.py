"""The drawn worlds as a source of clips: worlds take turns, and clip `i` is a pure function of (config, i)."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Literal

import numpy as np

from sora_jax.core import rng as rng_lib
from sora_jax.core.errors import UserError
from sora_jax.data.clips import Clip
from sora_jax.data.scenes.drawing import ClipForm, DrawnScene
from sora_jax.data.scenes.game import FRAMES_OF_ACTION, draw_game
from sora_jax.data.scenes.parallax import draw_depth
from sora_jax.data.scenes.permanence import draw_hiding
from sora_jax.data.scenes.physics import draw_ball
from sora_jax.data.scenes.trail import draw_lasting

_DRAWING = 1  # raise when the same config would draw other pixels or captions: it enters the fingerprint
_LEAST_SIDE, _LEAST_FRAMES = 24, 9

# "train"; "inside": more of the same, that training does not draw; "heldout": combinations that it never shows;
# "outside": balls faster than any that it shows.
WorldSplit = Literal["train", "inside", "heldout", "outside"]

_DRAWS: dict[str, Callable[[np.random.Generator, ClipForm], DrawnScene]] = {
    "permanence": draw_hiding,
    "parallax": draw_depth,
    "trail": draw_lasting,
    "game": draw_game,
    "physics": draw_ball,
}
WORLDS = tuple(_DRAWS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldsSpec:
    """What the worlds draw from; raises `UserError` where a value is outside its range."""

    seed: int
    num_clips: int
    kinds: tuple[str, ...]  # of `WORLDS`, that take turns
    sides: tuple[tuple[int, int], ...]  # (height, width) in px, each height 24 or more, the width at least as much
    frames: tuple[int, ...]  # lengths of clips, each 9 or more and one more than a multiple of 4
    fps: tuple[float, ...]  # frames per second; a property of the clip that does not alter its motion
    split: WorldSplit

    def __post_init__(self):
        _check(self.seed >= 0, f"world seed must be 0 or more, got {self.seed}")
        _check(self.num_clips >= 1, f"num_clips must be at least 1, got {self.num_clips}")
        _check(len(self.kinds) > 0, f"worlds must name at least one of {', '.join(WORLDS)}")
        for kind in self.kinds:
            _check(kind in WORLDS, f"worlds are of {', '.join(WORLDS)}, got {kind!r}")
        _check(len(set(self.kinds)) == len(self.kinds), f"worlds name one twice: {', '.join(self.kinds)}")
        _check(len(self.sides) > 0, "sides must name at least one (height, width)")
        for side in self.sides:
            fits = len(side) == 2 and _LEAST_SIDE <= side[0] <= side[1]
            _check(fits, f"a side must be (height, width), {_LEAST_SIDE} px or more, no taller than wide, got {side}")
        _check(len(self.frames) > 0, "frames must name at least one clip length")
        for count in self.frames:
            fits = count >= _LEAST_FRAMES and count % FRAMES_OF_ACTION == 1
            _check(fits, f"frames must be {_LEAST_FRAMES}, 13, 17 or so on in steps of 4, got {count}")
        _check(len(self.fps) > 0, "fps must name at least one rate")
        for rate in self.fps:
            _check(rate > 0, f"fps must be over 0, got {rate}")


class DrawnWorlds:
    """A `data.sources.Source` of clips of the drawn worlds."""

    def __init__(self, spec: WorldsSpec):
        self.spec = spec
        endless = dataclasses.replace(spec, num_clips=1)
        self._origin = hashlib.sha256(repr((endless, _DRAWING)).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self.spec.num_clips

    def kind(self, index: int) -> str:
        """Returns the world of clip `index`."""
        return self.spec.kinds[index % len(self.spec.kinds)]

    def scene(self, index: int) -> DrawnScene:
        """Returns what clip `index` shows; raises IndexError outside 0..num_clips - 1."""
        spec, kind = self.spec, self.kind(index)
        if not 0 <= index < spec.num_clips:
            raise IndexError(f"clip {index} of worlds of {spec.num_clips}")
        generator = rng_lib.generator(spec.seed, f"worlds/{kind}/{spec.split}", index // len(spec.kinds))
        height, width = spec.sides[generator.integers(len(spec.sides))]
        frames = int(spec.frames[generator.integers(len(spec.frames))])
        fps = float(spec.fps[generator.integers(len(spec.fps))])
        form = ClipForm(height=height, width=width, frames=frames, fps=fps)
        if spec.split == "outside" and kind == "physics":
            return draw_ball(generator, form, outside=True)
        while True:
            scene = _DRAWS[kind](generator, form)
            if scene.held_out == (spec.split == "heldout"):
                return scene

    def __getitem__(self, index: int) -> Clip:
        scene, name = self.scene(index), self.source_id(index)
        return Clip(pixels_THWC=scene.render(), fps=scene.form.fps, captions=scene.captions(), source_id=name)

    def source_id(self, index: int) -> str:
        """Returns the name of clip `index`, unique over seeds and splits."""
        return f"worlds-{self.spec.split}-{self.spec.seed}-{index}-{self.kind(index)}"

    def origin(self, index: int) -> str:
        """Returns a digest, the same for every clip, that changes whenever one could be drawn or told otherwise.

        Worlds of more clips begin with the same ones.
        """
        return self._origin


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)
