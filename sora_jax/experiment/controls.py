"""The controls that a run's model takes, made of given videos as `prepare` makes them of clips."""

import dataclasses

import numpy as np

from sora_jax.data.clips import Clip
from sora_jax.experiment.schema import Settings
from sora_jax.experiment.stage_settings import TEXT_TO_VIDEO
from sora_jax.generate.cascade import Refiner
from sora_jax.generate.control import MadeControl, MakeControl
from sora_jax.preparation.context import Control, continued, made_beside
from sora_jax.video import shapes


def controls_of(settings: Settings) -> dict[str, MakeControl]:
    """Returns by kind, sorted, what makes the clips beside that some stage of the run trains with."""
    stages = [settings.stages[name] for name in settings.stages_of(TEXT_TO_VIDEO)]
    prepared = settings.context.controls()
    kinds = sorted({kind for stage in stages for kind in stage.context_kinds} & prepared.keys())
    return {kind: _Maker(kind, prepared[kind], settings.token_stride) for kind in kinds}


def refiner_of(settings: Settings) -> Refiner | None:
    """Returns what some stage of the run is trained with to make small, slow clips large and fast; None where none."""
    if "low" not in controls_of(settings):
        return None
    low = settings.context.low
    space, time = (tuple(sorted({*factors})) for factors in (low.space, low.time))
    return Refiner(space=space, time=time, config=settings.sampling.refiner)


def rates_of(settings: Settings) -> tuple[float, float] | None:
    """Returns lowest and highest frames per second of the clips of a run; None where the config does not say them."""
    if settings.public is not None:
        return None
    found = []
    for data in settings.collections.values():
        if data.source != "shapes" and data.fps is None:
            return None
        # Slower clips than `data.fps` keep their own rate.
        found += settings.shapes.fps if data.source == "shapes" else (0.0, data.fps)
    return min(found), max(found)


@dataclasses.dataclass(frozen=True)
class _Maker:
    """A `MakeControl`."""

    kind: str
    control: Control
    stride: shapes.Size

    @property
    def scale(self) -> int:
        return self.control.scale

    def __call__(self, pixels_THWC: np.ndarray, fps: float, *, as_is: bool = False) -> MadeControl | None:
        # Of one name, so that all windows of a video draw the same. What a user makes is given in the place of a clip.
        beside = {self.kind: pixels_THWC}
        clip = Clip(pixels_THWC=pixels_THWC, fps=fps, captions=(), source_id="given", beside=beside)
        if as_is:
            return MadeControl(continued(clip, self.stride).pixels_THWC, fps, self.control.role, self.scale)
        found = made_beside(clip, self.kind, self.control, self.stride)
        if found is None:
            return None
        made, scale, _ = found
        return MadeControl(made.pixels_THWC, made.fps, self.control.role, scale)
