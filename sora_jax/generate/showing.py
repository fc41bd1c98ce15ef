"""What can be asked of a model that is shown frames (`video/shown.py`), and at which size it shows them."""

import math

from sora_jax.core.errors import UserError
from sora_jax.generate.request import Request
from sora_jax.video.shown import ShownConfig


def check_shown(request: Request, shown: ShownConfig, *, slides: bool) -> None:
    """Raises UserError where a request gives such a model other frames than it can be shown."""
    task, spans = request.task, request.spans()
    if task not in ("animate", "extend"):
        raise UserError(
            f"this model makes videos that begin with an image, which task {task} does not give it: pass "
            "--task=animate --image=FILE, or take a model of text alone"
        )
    if task == "extend" and (shown.last == "must" or (spans is not None and spans[0] > 0)):
        what = "the first frame alone" if spans is None or not spans[0] else "what comes after"
        raise UserError(
            f"this model is shown the {'first and the last frame' if shown.last == 'must' else 'first frame'} of a "
            f"video, and extend would give it {what}: animate an image, or take a model with known tokens"
        )
    if request.at > 0:
        raise UserError(f"this model begins with its image, and at is {request.at:g}: leave it out")
    if request.last_image is not None and shown.last == "never":
        raise UserError("this model is shown the first frame alone: leave out --last_image, or take an FLF2V model")
    if request.last_image is None and task == "animate" and shown.last == "must":
        raise UserError("this model goes from a first frame to a last one: pass --last_image=FILE as well")
    if shown.last == "must" and slides:
        raise UserError("this model needs its last frame in every window: ask for a video that is made at once")


def size_of_area(area: tuple[int, int], given: tuple[int, int], *, step: tuple[int, int]) -> tuple[int, int]:
    """Returns height and width, multiples of `step`, of about the pixels of `area` and the aspect of what is given."""
    pixels, aspect = math.prod(area), given[0] / given[1]
    sides = math.sqrt(pixels * aspect), math.sqrt(pixels / aspect)
    height, width = (max(one, round(side) // one * one) for side, one in zip(sides, step, strict=True))
    return height, width
