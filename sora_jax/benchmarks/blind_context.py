"""What `context.blind` saves: the time to solve videos with a control of their own size, against one that sees all.

  python -m sora_jax.benchmarks.blind_context --json=blind.json
  python -m sora_jax.benchmarks.blind_context --size=96x96 --frames=33 --videos=2 --steps=10

Weights, controls and noise are random, and so is what is made; the solver is that of the config. Three models take
turns on the same videos: one whose clips beside see all, as without the key; a blind one, whose keys of them are
computed once; and one that is given nothing beside.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from sora_jax.benchmarks.figures import Figure, publish
from sora_jax.benchmarks.turns import CLOCKS, fewest_seconds
from sora_jax.core import rng
from sora_jax.core.commands import Flags, run_command
from sora_jax.core.host_memory import use_huge_pages
from sora_jax.core.precision import compute_dtype
from sora_jax.core.tree import abstract_model, init_params
from sora_jax.experiment.loading import build_generator, pack_layout, solver_config
from sora_jax.experiment.schema import Settings
from sora_jax.experiment.settings import read_settings
from sora_jax.generate.apart import set_apart
from sora_jax.generate.canvas import Canvas, CanvasBatch, ContextPart, lay_out
from sora_jax.generate.request import read_size
from sora_jax.generate.row_sizes import RowSize, longer_rows, of_length
from sora_jax.generate.sampler import make_solver
from sora_jax.video import shapes
from sora_jax.video.parts import ContextClip

_FLAGS = Flags()
_JSON = _FLAGS.figures()
_CLOCK = _FLAGS.choice(
    "clock", "wall", CLOCKS, "`process` counts this process's seconds on a CPU that others use, too."
)
_CONFIG = _FLAGS.config("config", "configs/base.py", "Whose transformer and solver are measured.")
_SIZE = _FLAGS.string("size", None, "HEIGHTxWIDTH, in px, of the videos and their controls; default: sampling.size.")
_FRAMES = _FLAGS.integer("frames", None, "Of each video; default: sampling.frames.", least=1)
_STEPS = _FLAGS.integer("steps", None, "Of the solver; default: sampling.steps.", least=1)
_VIDEOS = _FLAGS.integer("videos", 8, "Solved together.", least=1)
_ROUNDS = _FLAGS.integer("rounds", 3, "Turns of each; the fastest counts.", least=1)


def main(_: Sequence[str]) -> None:
    """Measures and publishes."""
    settings = read_settings(_CONFIG.value)
    sampling = settings.sampling
    size = sampling.size if _SIZE.value is None else read_size(_SIZE.value)
    pixels = (_FRAMES.value or sampling.frames, *size)
    steps, videos = _STEPS.value or sampling.steps, _VIDEOS.value
    figures = figures_of(settings, pixels, steps=steps, videos=videos, rounds=_ROUNDS.value, clock=_CLOCK.value)
    publish(figures, _JSON.value)


def figures_of(
    settings: Settings, pixels: shapes.Size, *, steps: int, videos: int, rounds: int, clock: str
) -> list[Figure]:
    """Returns the time to solve videos of `pixels` (T, H, W), the control seeing all over computed once."""
    canvases = canvases_of(settings, pixels, count=videos)
    bare = [dataclasses.replace(one, context=()) for one in canvases]
    calls = {
        which: solving(settings, given, steps=steps, blind=which == "blind")
        for which, given in (("plain", canvases), ("blind", canvases), ("text", bare))
    }
    for call in calls.values():
        call()
    seconds = fewest_seconds(calls, rounds=rounds, clock=clock)
    what = f"seconds for {videos} videos of {'x'.join(map(str, pixels))} px in {steps} steps"
    beside = {"plain": "the control sees all", "blind": "its keys are computed once", "text": "nothing beside"}
    found = [Figure(name=f"seconds_{n}", value=seconds[n], target=None, meaning=f"{what}, {beside[n]}") for n in calls]
    ratio = seconds["plain"] / seconds["blind"]
    return [*found, Figure(name="gain", value=ratio, target="at least 1.5", meaning="plain over blind")]


def canvases_of(settings: Settings, pixels: shapes.Size, *, count: int) -> list[Canvas]:
    """Returns videos to make, each with a control of its own size beside it."""
    patch, channels = settings.transformer.patch, settings.autoencoder.channels
    grid = shapes.clip_token_grid(pixels, stride=settings.stride, patch=patch)
    size = tuple(n * p for n, p in zip(grid, patch, strict=True))
    normal, fps = rng.generator(0, "blind context").standard_normal, float(settings.sampling.fps)
    found = []
    for number in range(count):
        clip = ContextClip(
            latent_THWC=normal((*size, channels)).astype(np.float32), fps=fps, role="edges", scale=1, drawn={}
        )
        beside = (ContextPart(clip=clip, level=0.0),)
        found.append(Canvas(prompt="a red circle moves", grid=grid, fps=fps, seed=number, context=beside))
    return found


def solving(settings: Settings, canvases: list[Canvas], *, steps: int, blind: bool) -> Callable[[], object]:
    """Returns a call that solves canvases, in as many rows as they fill, and waits for it."""
    context = dataclasses.replace(settings.context, kinds=("edges",), blind=blind)
    build = functools.partial(build_generator, dataclasses.replace(settings, context=context))
    structure, _, _ = abstract_model(build)
    params = jax.jit(functools.partial(init_params, build))(rng.key(0, "weights"))
    config = dataclasses.replace(solver_config(settings), steps=steps)
    solve = make_solver(structure, config, dtype=compute_dtype(settings.precision))
    batches = batches_of(settings, canvases, blind=blind)
    return lambda: jax.block_until_ready([solve(params, batch) for batch in batches])


def batches_of(settings: Settings, canvases: list[Canvas], *, blind: bool) -> list[CanvasBatch]:
    """Returns what the sampler makes of canvases: in one batch where the rows of the config hold each of them."""
    layout = dataclasses.replace(pack_layout(settings), parts=len(canvases[0].context))
    tokens = canvases[0].tokens(layout.patch)
    if tokens > layout.budget.tokens:
        layout = of_length(layout, longer_rows(RowSize(1, layout.budget.tokens), tokens).tokens)
    each = min(layout.budget.tokens // tokens, layout.budget.segments)
    batches, places = lay_out(canvases, layout, rows=-(-len(canvases) // each))
    return set_apart(batches, places)[0] if blind and layout.parts else batches


if __name__ == "__main__":
    use_huge_pages()
    run_command(main, _FLAGS)
