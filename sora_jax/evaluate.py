"""Metrics of a trained run, printed and written to WORKDIR/evaluation.json.

  python -m sora_jax.evaluate --workdir=runs/base
  python -m sora_jax.evaluate --workdir=runs/base --checkpoint=2000
  python -m sora_jax.evaluate --workdir=runs/base --solver=dpm --steps=12
  python -m sora_jax.evaluate --workdir=runs/base --part=tasks --clips=32
  python -m sora_jax.evaluate --workdir=runs/base --part=autoencoder --data=DIR
  python -m sora_jax.evaluate --workdir=runs/base --part=distribution --samples=256
  python -m sora_jax.evaluate --workdir=runs/worlds --part=probes
  python -m sora_jax.evaluate --workdir=runs/base --part=refine --clips=32
  python -m sora_jax.evaluate --workdir=runs/control --part=control --clips=64
  python -m sora_jax.evaluate --workdir=runs/captions --part=captions --clips=256
  python -m sora_jax.evaluate --workdir=runs/base --part=expand --captioner=runs/captions --draws=6

docs/evaluation.md says what the metrics are, and how to make the files of --lpips and --video_features.
"""

from collections.abc import Sequence

from sora_jax import open_run
from sora_jax.core.commands import Flags, run_command
from sora_jax.core.metric_table import with_weights
from sora_jax.diffusion.solvers import METHODS
from sora_jax.experiment.evaluation import PARTS
from sora_jax.experiment.loading import WEIGHTS
from sora_jax.experiment.reporting import report_run

_FLAGS = Flags()
_WORKDIR = _FLAGS.workdir()
_CHECKPOINT = _FLAGS.checkpoint("Step of the newest diffusion stage with checkpoints, or latest.")
_WEIGHTS = _FLAGS.choice(
    "weights", "ema", WEIGHTS, "Of the transformer in that checkpoint: their average, or what its last step left."
)
_EMA = _FLAGS.number(
    "ema", None, "Relative width of that average, such as 0.08 (docs/checkpoints.md); default: the first of ema.widths."
)
_PART = _FLAGS.choice("part", "all", PARTS, "What of the run to judge.")
_FLAGS.rename("evaluate", "part")
_DATA = _FLAGS.path(
    "data",
    None,
    "A folder of videos and images to judge the autoencoder on, instead of the run's own clips; shapes: drawn ones.",
)
_CLIPS = _FLAGS.integer(
    "clips",
    None,
    "How many clips to judge a part on: the autoencoder, tasks, refining, control, each world of probes; of the part "
    "expand, prompts; default: as in the config.",
    least=1,
)
_SOLVER = _FLAGS.choice("solver", None, list(METHODS), "Of the samples; default: as in the config.")
_STEPS = _FLAGS.integer("steps", None, "Of that solver; default: as in the config.", least=1)
_GUIDANCE = _FLAGS.number("guidance", None, "Of that solver; default: as in the config.", least=0.0)
_DRAWS = _FLAGS.integer("draws", None, "Samples of each prompt; default: as in the config.", least=1)
_CAPTIONER = _FLAGS.path(
    "captioner", None, "Of the part expand: a run whose captioner writes prompts out; default: sampling.captioner."
)
_CACHE = _FLAGS.number("cache", None, "Of that solver; default: as in the config.", least=0.0)
_LPIPS = _FLAGS.path("lpips", None, "Weights of LPIPS, .safetensors; without them it is not measured.")
_VIDEO_FEATURES = _FLAGS.path(
    "video_features",
    None,
    "Weights of I3D or VideoMAE, .safetensors; without them rFVD compares features of a random network.",
)
_REFERENCE = _FLAGS.path(
    "reference", None, "Of the distribution: a folder of real clips with captions; default: clips that were held out."
)
_SAMPLES = _FLAGS.integer("samples", None, "Clips of each set of the distribution at most; default: 2048.", least=1)
_SAMPLES_FROM = _FLAGS.path(
    "samples_from", None, "A folder of clips to judge, of any model; default: this run makes one for each caption."
)
_IMAGE_FEATURES = _FLAGS.path(
    "image_features",
    None,
    f"Weights of a network of images, for {with_weights('image_features')}; without them a random network looks.",
)
_TEXT_FEATURES = _FLAGS.path(
    "text_features", None, f"Weights of CLIP, a folder or .safetensors, for {with_weights('text_features')}."
)


def main(_: Sequence[str]) -> None:
    """Evaluates the averaged weights, or those asked for, and writes the report with what was found."""
    run = open_run(_WORKDIR.value, checkpoint=_CHECKPOINT.value, weights=_WEIGHTS.value, ema=_EMA.value)
    run.evaluate(
        _PART.value,
        data=_DATA.value,
        clips=_CLIPS.value,
        draws=_DRAWS.value,
        guidance=_GUIDANCE.value,
        captioner=_CAPTIONER.value,
        lpips=_LPIPS.value,
        video_features=_VIDEO_FEATURES.value,
        reference=_REFERENCE.value,
        samples=_SAMPLES.value,
        samples_from=_SAMPLES_FROM.value,
        image_features=_IMAGE_FEATURES.value,
        text_features=_TEXT_FEATURES.value,
        solver=_SOLVER.value,
        steps=_STEPS.value,
        cache=_CACHE.value,
    )
    report_run(run.models.workdir, run.settings)


if __name__ == "__main__":
    run_command(main, _FLAGS)
