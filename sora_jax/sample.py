"""Videos and images from a trained run.

  python -m sora_jax.sample --workdir=runs/base --prompt="a red circle moves right" --size=24x40 --frames=9 --seed=0
  python -m sora_jax.sample --workdir=runs/base --prompt="a red circle" --prompt="a blue square" --frames=1
  python -m sora_jax.sample --workdir=runs/base --prompt="a red circle moves right" --output=circle.mp4

Several prompts, sizes, lengths and seeds are allowed: one of each serves all prompts, as many as prompts go in pairs.
All are packed into shared batches; what comes out does not depend on what shares its batch.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from absl import flags

from sora_jax.core.errors import UserError, run_command
from sora_jax.core.tree import abstract_model
from sora_jax.data.video_io import check_written_suffix, write_clip
from sora_jax.generate.canvas import Canvas
from sora_jax.generate.write import file_stem, free_path
from sora_jax.train.run import use_compilation_cache
from sora_jax.train.settings import Settings, read_settings
from sora_jax.train.trained import build_generator, load_codec, load_generator, make_sampler, request, solver_config
from sora_jax.train.workdir import Workdir

_WORKDIR = flags.DEFINE_string("workdir", "runs/base", "The folder of the run.")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "latest", "Step of the newest diffusion stage with checkpoints, or latest."
)
_PROMPT = flags.DEFINE_multi_string("prompt", [], "What to show; may be given several times.")
_SIZE = flags.DEFINE_multi_string("size", [], "HEIGHTxWIDTH in px; default: that of the config's examples.")
_FRAMES = flags.DEFINE_multi_integer("frames", [], "Frames, 1 for an image; default: as in the config's examples.")
_SEED = flags.DEFINE_multi_integer("seed", [0], "Seed of the noise.")
_FPS = flags.DEFINE_float("fps", None, "Frames per second; default: as in the config.")
_STEPS = flags.DEFINE_integer("steps", None, "Solver steps; default: as in the config.")
_SOLVER = flags.DEFINE_string("solver", None, "euler, heun, dpm or unipc; default: as in the config.")
_GUIDANCE = flags.DEFINE_float("guidance", None, "Guidance scale, 1 for none; default: as in the config.")
_OUTPUT = flags.DEFINE_multi_string(
    "output",
    [],
    "Files to write, .mp4 .gif .webp or .png; default: named by prompt, under WORKDIR/samples/prompted.",
)

T = TypeVar("T")


def main(_: Sequence[str]) -> None:
    """Samples every request and writes a file for each."""
    workdir = Workdir(_WORKDIR.value)
    settings = read_settings(workdir.config())
    canvases, frames = read_requests(settings)
    paths = output_paths(workdir, canvases, frames)
    if _CHECKPOINT.value != "latest" and not _CHECKPOINT.value.isdecimal():
        raise UserError(f"--checkpoint={_CHECKPOINT.value!r} is neither a step nor latest")
    step = None if _CHECKPOINT.value == "latest" else int(_CHECKPOINT.value)
    use_compilation_cache()
    codec = load_codec(workdir, settings)
    params = load_generator(workdir, settings, step=step)[0]
    structure = abstract_model(lambda key: build_generator(settings, key))[0]
    given = {"steps": _STEPS.value, "method": _SOLVER.value}
    solver = dataclasses.replace(solver_config(settings), **{k: v for k, v in given.items() if v is not None})
    if _GUIDANCE.value is not None:
        solver = dataclasses.replace(solver, guidance=dataclasses.replace(solver.guidance, scale=_GUIDANCE.value))
    sampler = make_sampler(settings, codec, structure, solver=solver)
    for canvas, path, clip in zip(canvases, paths, sampler(params, canvases), strict=True):
        write_clip(path, clip, fps=canvas.fps)
        print(path)


def read_requests(settings: Settings) -> tuple[list[Canvas], list[int]]:
    """Returns a canvas and a number of frames for each prompt; raises UserError for what cannot be made."""
    if not _PROMPT.value:
        raise UserError('nothing to sample: pass --prompt="..."')
    count = len(_PROMPT.value)
    height, width = settings.sampling.size
    sizes = [read_size(size) for size in _for_each("size", _SIZE.value or [f"{height}x{width}"], count)]
    frames = _for_each("frames", _FRAMES.value or [settings.sampling.frames], count)
    seeds = _for_each("seed", _SEED.value, count)
    fps = settings.sampling.fps if _FPS.value is None else _FPS.value
    requests = zip(_PROMPT.value, sizes, frames, seeds, strict=True)
    canvases = [
        request(settings, prompt, frames=length, size=size, fps=fps, seed=seed)
        for prompt, size, length, seed in requests
    ]
    return canvases, frames


def read_size(text: str) -> tuple[int, int]:
    """Returns (height, width) of "HEIGHTxWIDTH"; raises UserError otherwise."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"--size={text!r} is not HEIGHTxWIDTH in px, such as 32x32")
    return int(parts[0]), int(parts[1])


def output_paths(workdir: Workdir, canvases: list[Canvas], frames: list[int]) -> list[Path]:
    """Returns the file of each request; raises UserError where an ending cannot hold it, before any work is done."""
    if _OUTPUT.value and len(_OUTPUT.value) != len(canvases):
        raise UserError(f"{len(_OUTPUT.value)} --output for {len(canvases)} prompts: give one for each, or none")
    paths: list[Path] = []
    for number, (canvas, length) in enumerate(zip(canvases, frames, strict=True)):
        if _OUTPUT.value:
            path = Path(_OUTPUT.value[number])
        else:
            stem = f"{file_stem(canvas.prompt)}_seed{canvas.seed}"
            folder = workdir.path / "samples" / "prompted"
            path = free_path(folder, stem, ".png" if length == 1 else ".mp4", set(paths))
        check_written_suffix(path, frames=length)
        if path in paths:
            raise UserError(f"two --output are {path}: give each prompt a file of its own")
        paths.append(path)
    return paths


def _for_each(name: str, values: list[T], count: int) -> list[T]:
    if len(values) == 1:
        return values * count
    if len(values) != count:
        raise UserError(f"{len(values)} --{name} for {count} prompts: give one for all, or one for each")
    return values


if __name__ == "__main__":
    run_command(main)
