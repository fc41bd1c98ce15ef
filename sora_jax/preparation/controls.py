"""What is given beside a clip and computed of its pixels alone: one table. A new control is a function and a row."""

import functools

from sora_jax.preparation.boxes import half_boxes
from sora_jax.preparation.colours import BLOCKS, BLURS, half_blur, half_grey, half_palette
from sora_jax.preparation.context import Control
from sora_jax.preparation.degrade import LowConfig, degraded
from sora_jax.preparation.edges import LOW_EDGES, MORE_TO_BEGIN, half_edges
from sora_jax.preparation.flow import FULL_SPEED, half_flow
from sora_jax.preparation.given import GIVEN_KINDS, half_given
from sora_jax.preparation.reference import half_frame


def _range(ends: tuple[float, float]) -> str:
    return f"{ends[0]:g} to {ends[1]:g}"


def low_control(config: LowConfig) -> Control:
    """Returns what a refiner is given: a clip made smaller and slower by what `config` says."""
    return Control(
        make=functools.partial(degraded, config=config), role="low", scale=max(config.space), recipe=config.recipe
    )


# By the names that `context.kinds` and the shares of stages have.
CONTROLS: dict[str, Control] = {
    "grey": Control(make=half_grey, role="grey", scale=2, recipe="luma at 1/2"),
    "low": low_control(LowConfig(space=(1, 2), time=(1, 2, 4))),
    "edges": Control(
        make=half_edges,
        role="edges",
        scale=2,
        recipe=f"canny from {_range(LOW_EDGES)}, begun {_range(MORE_TO_BEGIN)} above, at 1/2",
    ),
    "blur": Control(make=half_blur, role="blur", scale=2, recipe=f"Gaussian {_range(BLURS)} of the short side, at 1/2"),
    "palette": Control(
        make=half_palette, role="palette", scale=2, recipe=f"{_range(BLOCKS)} blocks along the short side, at 1/2"
    ),
    "boxes": Control(make=half_boxes, role="boxes", scale=2, recipe="up to 3 things by hue or motion, filled, at 1/2"),
    "reference": Control(make=half_frame, role="reference", scale=2, recipe="any frame, of videos, at 1/2"),
    "flow": Control(
        make=half_flow,
        role="flow",
        scale=2,
        recipe=f"24 blocks along the short side, root of {FULL_SPEED:g} side a second, at 1/2",
    ),
    **{
        kind: Control(make=functools.partial(half_given, kind=kind), role=kind, scale=2, recipe="given, at 1/2")
        for kind in GIVEN_KINDS
    },
}
