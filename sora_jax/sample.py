"""Videos and images from a trained run, by every way of prompting.

  python -m sora_jax.sample --workdir=runs/base --prompt="a red circle moves right" --size=24x40 --seconds=1
  python -m sora_jax.sample --workdir=runs/base --prompt="a red circle" --prompt="a blue square" --frames=1
  python -m sora_jax.sample --workdir=runs/base --task=animate --image=cat.png --prompt="a cat turns its head"
  python -m sora_jax.sample --workdir=runs/base --task=extend --video=a.mp4 --seconds=-1,+2 --prompt="a red circle"
  python -m sora_jax.sample --workdir=runs/base --requests=requests.jsonl

docs/sampling.md has every task. Several prompts, sizes, lengths and seeds are allowed: one of each serves all prompts,
as many as prompts go in pairs. All are packed into shared batches; what comes out does not depend on what shares its
batch. Requests of a file that are done are not done again.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import jax
from absl import logging
from tqdm import tqdm

from sora_jax.core.commands import Flags, run_command
from sora_jax.core.compiling import use_compilation_cache
from sora_jax.core.errors import UserError
from sora_jax.core.mesh import MeshConfig, make_mesh
from sora_jax.core.paths import check_writable
from sora_jax.core.tree import abstract_model
from sora_jax.data.media.writer import CODECS, check_written_suffix, first_file
from sora_jax.diffusion.solvers import METHODS
from sora_jax.experiment.advice import words_never_seen
from sora_jax.experiment.loading import (
    WEIGHTS,
    build_generator,
    limits_of,
    load_codec,
    load_generator,
    make_sampler,
    solver_config,
)
from sora_jax.experiment.machine import free_memory
from sora_jax.experiment.settings import read_settings
from sora_jax.generate.denoiser import SolverConfig
from sora_jax.generate.job import Limits, read_job
from sora_jax.generate.outputs import Book, Files, check_places
from sora_jax.generate.request import TASKS, Request, read_requests
from sora_jax.generate.scheduler import run_jobs
from sora_jax.generate.write import file_stem, free_path, is_safe_name
from sora_jax.train.workdir import Workdir

_FLAGS = Flags()
_WORKDIR = _FLAGS.workdir()
_CHECKPOINT = _FLAGS.string("checkpoint", "latest", "Step of the newest diffusion stage with checkpoints, or latest.")
_WEIGHTS = _FLAGS.choice(
    "weights", "ema", WEIGHTS, "Of the transformer in that checkpoint: their average, or what its last step left."
)
_TASK = _FLAGS.choice("task", "text", TASKS, "How the video is made.")
_REQUESTS = _FLAGS.path("requests", None, "A JSON-lines file of requests, instead of the flags of one.")
_PROMPT = _FLAGS.strings("prompt", "What to show; may be given several times.")
_NEGATIVE = _FLAGS.string("negative", "", "What guidance should lead away from.")
_SIZE = _FLAGS.strings("size", "HEIGHTxWIDTH in px; default: of what is given, or as in the config.")
_FRAMES = _FLAGS.integers(
    "frames", [], "Frames, 1 for an image; extend, loop, connect: frames to add. Default: as in the config."
)
_SECONDS = _FLAGS.strings("seconds", "Instead of frames; extend: +4 forward, -4 backward, -4,+4 both.")
_SEED = _FLAGS.integers("seed", [0], "Seed of the noise.")
_FPS = _FLAGS.number("fps", None, "Frames per second; default: of what is given, or as in the config.")
_IMAGE = _FLAGS.path("image", None, "The image to animate.")
_AT = _FLAGS.number("at", 0.0, "When the image is shown: 0 at the start, 1 at the end.")
_VIDEO = _FLAGS.paths("video", "The video; two to connect.")
_MASK = _FLAGS.path("mask", None, "White where fill makes something new: an image, or a video.")
_STRENGTH = _FLAGS.number(
    "strength", None, "How much is made anew, 0 to 1; default: edit 0.6, loop 0.3, connect 0.1, upscale 0.4."
)
_SCALE = _FLAGS.number("scale", 2.0, "By which upscale multiplies height and width.")
_KEEP_PIXELS = _FLAGS.switch("keep_pixels", False, "Give given frames back as they are, not as the autoencoder.")
_STEPS = _FLAGS.integer("steps", None, "Solver steps; default: as in the config.", least=1)
_SOLVER = _FLAGS.choice("solver", None, list(METHODS), "The solver; default: as in the config.")
_CACHE = _FLAGS.number(
    "cache",
    None,
    "Change of the modulation up to which steps reuse earlier work; default: as in the config.",
    least=0.0,
)
_GUIDANCE = _FLAGS.number("guidance", None, "Guidance scale, 1 for none; default: as in the config.")
_CODEC = _FLAGS.choice(
    "codec", None, sorted({codec for codecs in CODECS.values() for codec in codecs}), "Of .mp4 and .webm files."
)
_OUTPUT = _FLAGS.paths(
    "output",
    "Files to write, .mp4 .webm .gif .webp .png or frames_%04d.png; what is there is replaced. Default: named by "
    "prompt, under WORKDIR/samples/prompted, with a number where that is another video.",
)

T = TypeVar("T")


def main(_: Sequence[str]) -> None:
    """Makes every request that is not done, and writes a file for each."""
    workdir = Workdir(_WORKDIR.value)
    settings = read_settings(workdir.config())
    limits = dataclasses.replace(limits_of(settings), room=free_memory())
    requests = requests_of_flags() if _REQUESTS.value is None else read_requests(_REQUESTS.value)
    name = "prompted" if _REQUESTS.value is None else Path(_REQUESTS.value).stem
    folder = workdir.path / "samples" / (name if is_safe_name(name) else file_stem(name))
    paths = output_paths(folder, requests, [check(request, limits) for request in requests])
    for path in paths:
        check_writable(first_file(path))
    if _CHECKPOINT.value != "latest" and not _CHECKPOINT.value.isdecimal():
        raise UserError(f"--checkpoint={_CHECKPOINT.value!r} is neither a step nor latest")
    solver = solver_of_flags(solver_config(settings))
    use_compilation_cache()
    mesh = None
    if jax.device_count() > 1:
        mesh = make_mesh(MeshConfig(data=1, fsdp=None, sequence=1, tensor=1))
    codec = load_codec(workdir, settings, mesh=mesh)
    step = None if _CHECKPOINT.value == "latest" else int(_CHECKPOINT.value)
    params, stage, step = load_generator(
        workdir, settings, step=step, weights=WEIGHTS[WEIGHTS.index(_WEIGHTS.value)], mesh=mesh
    )
    if said := words_never_seen(workdir, settings, [prompt for request in requests for prompt in request.prompt]):
        logging.warning("%s", said)
    structure = abstract_model(lambda key: build_generator(settings, key))[0]
    sampler = make_sampler(settings, codec, structure, solver=solver, mesh=mesh, videos=len(requests))
    facts = {"stage": stage, "step": step, "weights": _WEIGHTS.value}
    book = None
    if _REQUESTS.value is not None:
        book = Book(folder / "done.jsonl", Path(_REQUESTS.value), {**facts, "solver": repr(solver)})
        for request, path in zip(requests, paths, strict=True):
            if request.output is not None:
                book.check(path)
    todo = [n for n, request in enumerate(requests) if book is None or book.find(request) is None]
    if len(todo) < len(requests):
        print(f"{len(requests) - len(todo)} of {len(requests)} requests are done already", flush=True)
    jobs = (read_job(requests[number], limits) for number in todo)
    with contextlib.ExitStack() as stack, tqdm(total=len(todo), disable=len(todo) < 2, unit="video") as progress:
        asked = [requests[n] for n in todo]
        files = Files(stack, asked, [paths[n] for n in todo], codec=_CODEC.value, facts=facts)
        for number, notes in run_jobs(sampler, params, jobs, limits, files.open):
            path = files.close(number)
            if book is not None:
                book.add(asked[number], path)
            progress.update()
            said = "".join(f", {name} {value:.2f}" for name, value in notes.items())
            progress.write(f"{path}{said}")


def requests_of_flags() -> list[Request]:
    """Returns a request for each prompt; tasks with a picture or a video make one of all flags."""
    if not _PROMPT.value and _TASK.value == "text":
        raise UserError('nothing to sample: pass --prompt="..."')
    common = {
        "task": _TASK.value,
        "negative": _NEGATIVE.value,
        "fps": _FPS.value,
        "image": _IMAGE.value,
        "video": tuple(_VIDEO.value),
        "mask": _MASK.value,
        "at": _AT.value,
        "strength": _STRENGTH.value,
        "scale": _SCALE.value,
        "guidance": _GUIDANCE.value,
        "keep_pixels": _KEEP_PIXELS.value,
    }
    prompts = [(prompt,) for prompt in _PROMPT.value] if _TASK.value == "text" else [tuple(_PROMPT.value)]
    count = len(prompts)
    if _OUTPUT.value and len(_OUTPUT.value) != count:
        raise UserError(f"{len(_OUTPUT.value)} --output for {count} prompts: give one for each, or none")
    in_turn = zip(
        prompts,
        _for_each("size", _SIZE.value or [None], count),
        _for_each("frames", _FRAMES.value or [None], count),
        _for_each("seconds", _SECONDS.value or [None], count),
        _for_each("seed", _SEED.value, count),
        _for_each("output", _OUTPUT.value or [None], count),
        strict=True,
    )
    return [
        Request(prompt=prompt, size=size, frames=frames, seconds=seconds, seed=seed, output=output, **common)
        for prompt, size, frames, seconds, seed, output in in_turn
    ]


def solver_of_flags(solver: SolverConfig) -> SolverConfig:
    """Returns the run's solver with what the flags change."""
    given = {"steps": _STEPS.value, "method": _SOLVER.value, "cache": _CACHE.value}
    return dataclasses.replace(solver, **{k: v for k, v in given.items() if v is not None})


def check(request: Request, limits: Limits) -> bool:
    """Returns whether the result is an image; raises UserError for what cannot be made, before any work is done."""
    try:
        job = read_job(request, limits)
    except UserError as error:
        if _REQUESTS.value is not None:
            raise UserError(f"{_REQUESTS.value}, line {request.line}: {error}") from error
        raise
    return job.request.task not in ("extend", "loop", "connect") and job.frames == 1


def output_paths(folder: Path, requests: Sequence[Request], images: Sequence[bool]) -> list[Path]:
    """Returns the file of each request; raises UserError where its ending cannot hold it.

    Those of a file of requests stay in the folder.
    """
    paths: list[Path] = []
    for request, image in zip(requests, images, strict=True):
        if request.output is not None:
            path = Path(request.output)
            if _REQUESTS.value is not None and not is_safe_name(request.output):
                raise UserError(
                    f"{_REQUESTS.value}, line {request.line}: output {request.output[:120]!r} must be the name of a "
                    "file, printable, of 120 bytes at most, without / and not beginning with a dot or a dash"
                )
            path = path if _REQUESTS.value is None else folder / path
        else:
            task = "" if request.task == "text" else f"{request.task}_"
            stem = f"{task}{file_stem(' '.join(request.prompt[:1]))}_seed{request.seed}"
            path = free_path(folder, stem, ".png" if image else ".mp4", set(paths))
        check_written_suffix(path, frames=1 if image else 2, codec=_CODEC.value)
        paths.append(path)
    check_places(requests, paths)
    return paths


def _for_each(name: str, values: list[T], count: int) -> list[T]:
    if len(values) == 1:
        return values * count
    if len(values) != count:
        raise UserError(f"{len(values)} --{name} for {count} prompts: give one for all, or one for each")
    return values


if __name__ == "__main__":
    run_command(main, _FLAGS)
