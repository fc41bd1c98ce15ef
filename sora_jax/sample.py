"""Videos and images from a trained run, by every way of prompting.

  python -m sora_jax.sample --workdir=runs/base --prompt="a red circle moves right" --size=24x40 --seconds=1
  python -m sora_jax.sample --workdir=runs/base --prompt="a red circle" --prompt="a blue square" --frames=1
  python -m sora_jax.sample --workdir=runs/base --task=animate --image=cat.png --prompt="a cat turns its head"
  python -m sora_jax.sample --workdir=runs/base --task=extend --video=a.mp4 --seconds=-1,+2 --prompt="a red circle"
  python -m sora_jax.sample --workdir=runs/control --control=edges --control_video=a.mp4 --prompt="a red circle"
  python -m sora_jax.sample --workdir=runs/control --boxes=track.json --prompt="a red circle"
  python -m sora_jax.sample --workdir=runs/base --prompt="red circle right" --expand=runs/captions
  python -m sora_jax.sample --workdir=runs/base --requests=requests.jsonl
  python -m sora_jax.sample --model=DIR --prompt="a cat on the grass" --size=480x832 --frames=81 --output=a.mp4

docs/sampling.md has every task, docs/public_weights.md what --model takes. Several prompts, sizes, lengths, seeds are
allowed: one of each serves all prompts, as many as prompts go in pairs. All are packed into shared batches; what comes
out does not depend on what shares its batch. Requests of a file that are done are not done again.
"""

from collections.abc import Sequence

from sora_jax import open_model, open_run
from sora_jax.core.commands import Flags, run_command
from sora_jax.core.errors import UserError
from sora_jax.data.media.writer import CODECS
from sora_jax.diffusion.grids import GRIDS
from sora_jax.diffusion.solvers import METHODS
from sora_jax.experiment.expanders import OWN_CAPTIONER
from sora_jax.experiment.loading import WEIGHTS
from sora_jax.experiment.sample_files import write_samples
from sora_jax.experiment.session import Session
from sora_jax.generate.request import TASKS, make_requests, read_requests

_FLAGS = Flags()
_WORKDIR = _FLAGS.workdir()
_MODEL = _FLAGS.path(
    "model", None, "Instead of a run: the folder of a public Wan model, or FOLDER#VARIANT (docs/public_weights.md)."
)
_GRID = _FLAGS.choice("grid", None, list(GRIDS), "Schedule of a public model; default: wan, that of its own code.")
_SHIFT = _FLAGS.number("shift", None, "Of that schedule; default: as the model was made for.")
_CHECKPOINT = _FLAGS.checkpoint("Step of the newest diffusion stage with checkpoints, or latest.")
_WEIGHTS = _FLAGS.choice(
    "weights", "ema", WEIGHTS, "Of the transformer in that checkpoint: their average, or what its last step left."
)
_EMA = _FLAGS.number(
    "ema", None, "Relative width of that average, such as 0.08 (docs/checkpoints.md); default: the first of ema.widths."
)
_LORA = _FLAGS.strings(
    "lora",
    "FILE:WEIGHT of an adapter (docs/lora.md), or own:WEIGHT for that of the run, which otherwise has 1; may be given "
    "several times.",
)
_TASK = _FLAGS.choice("task", "text", TASKS, "How the video is made.")
_REQUESTS = _FLAGS.path("requests", None, "A JSON-lines file of requests, instead of the flags of one.")
_PROMPT = _FLAGS.strings("prompt", "What to show; may be given several times.")
_NEGATIVE = _FLAGS.string(
    "negative", None, "What guidance should lead away from; default: what a public model was made with, else nothing."
)
_SIZE = _FLAGS.strings("size", "HEIGHTxWIDTH in px; default: of what is given, or as in the config.")
_FRAMES = _FLAGS.integers(
    "frames", [], "Frames, 1 for an image; extend, loop, connect: frames to add. Default: as in the config."
)
_SECONDS = _FLAGS.strings("seconds", "Instead of frames; extend: +4 forward, -4 backward, -4,+4 both.")
_SEED = _FLAGS.integers("seed", [0], "Seed of the noise.")
_FPS = _FLAGS.number("fps", None, "Frames per second; default: of what is given, or as in the config.")
_IMAGE = _FLAGS.path("image", None, "The image to animate.")
_LAST_IMAGE = _FLAGS.path("last_image", None, "The image that an animated one should end with.")
_AT = _FLAGS.number("at", 0.0, "When the image is shown: 0 at the start, 1 at the end.")
_VIDEO = _FLAGS.paths("video", "The video; two to connect.")
_MASK = _FLAGS.path("mask", None, "White where fill makes something new: an image, or a video.")
_STRENGTH = _FLAGS.number(
    "strength",
    None,
    "How much is made anew, 0 to 1; default: edit 0.6, loop 0.2, connect 0.1, upscale and interpolate 0.4.",
)
_SCALE = _FLAGS.number("scale", 2.0, "By which upscale multiplies height and width.")
_REFINE = _FLAGS.string(
    "refine", None, "Make it small and slow first: space:2,time:4, or none for at once; default: as in the config."
)
_KEEP_PIXELS = _FLAGS.switch("keep_pixels", False, "Give given frames back as they are, not as the autoencoder.")
_CONTROL = _FLAGS.strings(
    "control", "What the video follows, such as edges, of the kinds that the run was trained with; several at once."
)
_CONTROL_VIDEO = _FLAGS.paths("control_video", "The video that each control is computed of.")
_BOXES = _FLAGS.path("boxes", None, "A JSON file of tracks that things follow, key points in px (docs/sampling.md).")
_REFERENCE = _FLAGS.path("reference", None, "An image of what is to be seen.")
_STRENGTH_OF_CONTROL = _FLAGS.numbers(
    "strength_of_control", "How sure controls are, 0 to 1, one for all or for each; default: 1."
)
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
_EXPAND = _FLAGS.bare_or_text(
    "expand",
    OWN_CAPTIONER,
    "Write prompts out at length first: by the captioner of sampling.captioner or of the run; =RUNDIR: of that run; "
    "=URL or =URL#MODEL: by a chat server (docs/captions.md).",
)
_OUTPUT = _FLAGS.paths(
    "output",
    "Files to write, .mp4 .webm .gif .webp .png or frames_%04d.png; what is there is replaced. Default: named by "
    "prompt, under WORKDIR/samples/prompted, with a number where that is another video.",
)


def _opened() -> Session:
    """Returns the run, or the public model."""
    schedule = {"sampling.grid": _GRID.value, "sampling.shift": _SHIFT.value}
    given = {key: value for key, value in schedule.items() if value is not None}
    if _MODEL.value is not None:
        return open_model(_MODEL.value, changes=given, lora=_LORA.value)
    if given:
        raise UserError(
            f"--{'/--'.join(key.split('.')[1] for key in given)} is for --model: a run has its own schedule"
        )
    return open_run(
        _WORKDIR.value, checkpoint=_CHECKPOINT.value, weights=_WEIGHTS.value, ema=_EMA.value, lora=_LORA.value
    )


def main(_: Sequence[str]) -> None:
    """Makes every request that is not done, and writes a file for each."""
    run = _opened()
    if _REQUESTS.value is not None:
        requests = read_requests(_REQUESTS.value)
    else:
        requests = make_requests(
            _PROMPT.value,
            task=_TASK.value,
            size=_SIZE.value,
            frames=_FRAMES.value,
            seconds=_SECONDS.value,
            seed=_SEED.value,
            output=_OUTPUT.value,
            negative=_NEGATIVE.value,
            fps=_FPS.value,
            image=_IMAGE.value,
            last_image=_LAST_IMAGE.value,
            video=tuple(_VIDEO.value),
            mask=_MASK.value,
            at=_AT.value,
            strength=_STRENGTH.value,
            scale=_SCALE.value,
            refine=_REFINE.value,
            guidance=_GUIDANCE.value,
            control=tuple(_CONTROL.value),
            control_video=tuple(_CONTROL_VIDEO.value),
            boxes=_BOXES.value,
            reference=_REFERENCE.value,
            strength_of_control=tuple(_STRENGTH_OF_CONTROL.value),
            keep_pixels=_KEEP_PIXELS.value,
        )
    solver = run.solver(solver=_SOLVER.value, steps=_STEPS.value, cache=_CACHE.value)
    write_samples(run, requests, solver=solver, source=_REQUESTS.value, codec=_CODEC.value, expand=_EXPAND.value)


if __name__ == "__main__":
    run_command(main, _FLAGS)
