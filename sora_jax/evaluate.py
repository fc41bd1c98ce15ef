"""Metrics of a trained run, printed and written to WORKDIR/evaluation.json.

  python -m sora_jax.evaluate --workdir=runs/base
  python -m sora_jax.evaluate --workdir=runs/base --checkpoint=2000
  python -m sora_jax.evaluate --workdir=runs/base --solver=dpm --steps=12
  python -m sora_jax.evaluate --workdir=runs/base --part=tasks --clips=32
  python -m sora_jax.evaluate --workdir=runs/base --part=autoencoder --data=DIR

docs/evaluation.md says what the metrics are, and how to make the files of --lpips and --video_features.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax

from sora_jax.core.commands import Flags, run_command
from sora_jax.core.compiling import use_compilation_cache
from sora_jax.core.errors import UserError
from sora_jax.core.paths import check_writable
from sora_jax.data.sources.remote import is_remote
from sora_jax.diffusion.solvers import METHODS
from sora_jax.evaluation.reconstruction import Networks
from sora_jax.experiment.evaluation import DRAWN, PARTS, evaluate, evaluate_data
from sora_jax.experiment.loading import WEIGHTS
from sora_jax.experiment.settings import read_settings
from sora_jax.models.i3d import load_i3d
from sora_jax.models.perceptual import load_perceptual
from sora_jax.train.workdir import Workdir

_FLAGS = Flags()
_WORKDIR = _FLAGS.workdir()
_CHECKPOINT = _FLAGS.string("checkpoint", "latest", "Step of the newest diffusion stage with checkpoints, or latest.")
_WEIGHTS = _FLAGS.choice(
    "weights", "ema", WEIGHTS, "Of the transformer in that checkpoint: their average, or what its last step left."
)
_EVALUATE = _FLAGS.choice("evaluate", "all", PARTS, "Which model to judge.")
_DATA = _FLAGS.path(
    "data",
    None,
    "A folder of videos and images to judge the autoencoder on, instead of the run's own clips; shapes: drawn ones.",
)
_CLIPS = _FLAGS.integer(
    "clips", None, "How many clips to judge the autoencoder, or tasks, on; default: as in the config.", least=1
)
_SOLVER = _FLAGS.choice("solver", None, list(METHODS), "Of the samples; default: as in the config.")
_STEPS = _FLAGS.integer("steps", None, "Of that solver; default: as in the config.", least=1)
_GUIDANCE = _FLAGS.number("guidance", None, "Of that solver; default: as in the config.", least=0.0)
_DRAWS = _FLAGS.integer("draws", None, "Samples of each prompt; default: as in the config.", least=1)
_CACHE = _FLAGS.number("cache", None, "Of that solver; default: as in the config.", least=0.0)
_LPIPS = _FLAGS.path("lpips", None, "Weights of LPIPS, .safetensors; without them it is not measured.")
_VIDEO_FEATURES = _FLAGS.path(
    "video_features", None, "Weights of I3D, .safetensors; without them rFVD compares features of a random network."
)


def main(_: Sequence[str]) -> None:
    """Evaluates the averaged weights, or those asked for."""
    if _CHECKPOINT.value != "latest" and not _CHECKPOINT.value.isdecimal():
        raise UserError(f"--checkpoint={_CHECKPOINT.value!r} is neither a step nor latest")
    if _EVALUATE.value == "autoencoder" and _WEIGHTS.value != "ema":
        raise UserError(
            f"--weights={_WEIGHTS.value} are of the transformer: the autoencoder is an average, judge another part"
        )
    data = _DATA.value
    if data is not None and _EVALUATE.value != "autoencoder":
        raise UserError(f"--data is for the autoencoder alone: pass --part=autoencoder, not {_EVALUATE.value}")
    if data not in (None, DRAWN) and not is_remote(data) and not Path(data).is_dir():
        raise UserError(f"--data={data} is not a folder: give one with videos or images")
    workdir = Workdir(_WORKDIR.value)
    settings = read_settings(workdir.config())
    check_writable(workdir.path / "evaluation.json")
    given = {"solver": _SOLVER.value, "steps": _STEPS.value, "cache": _CACHE.value}
    sampling = dataclasses.replace(settings.sampling, **{k: v for k, v in given.items() if v is not None})
    if _GUIDANCE.value is not None:
        guidance = dataclasses.replace(sampling.guidance, scale=_GUIDANCE.value)
        sampling = dataclasses.replace(sampling, guidance=guidance)
    evaluation = settings.evaluation
    if _DRAWS.value is not None:
        evaluation = dataclasses.replace(evaluation, draws=_DRAWS.value)
    settings = dataclasses.replace(settings, sampling=sampling, evaluation=evaluation)
    networks = Networks(
        perceptual=jax.device_put(load_perceptual(_LPIPS.value)) if _LPIPS.value else None,
        video=jax.device_put(load_i3d(_VIDEO_FEATURES.value)) if _VIDEO_FEATURES.value else None,
    )
    use_compilation_cache()
    if data is not None:
        evaluate_data(workdir, settings, data, count=_CLIPS.value, networks=networks)
        return
    step = None if _CHECKPOINT.value == "latest" else int(_CHECKPOINT.value)
    evaluate(
        workdir,
        settings,
        part=_EVALUATE.value,
        step=step,
        count=_CLIPS.value,
        weights=WEIGHTS[WEIGHTS.index(_WEIGHTS.value)],
        networks=networks,
    )


if __name__ == "__main__":
    run_command(main, _FLAGS)
