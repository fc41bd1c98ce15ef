r"""What a run has trained as files for other programs: its adapter, its transformer or its autoencoder.

  python -m sora_jax.export --workdir=runs/mine --output=mine.safetensors --format=lora --trigger="a sks dog"
  python -m sora_jax.export --workdir=runs/mine --output=transformer --format=diffusers
  python -m sora_jax.export --workdir=runs/mine --output=transformer --format=original
  python -m sora_jax.export --workdir=runs/base --output=vae --part=autoencoder --format=diffusers

An adapter has the names that diffusers, ComfyUI and LightX2V read, and its scale within; of two experts each has
one. A folder in the format of diffusers is read by `WanTransformer3DModel.from_pretrained` or
`AutoencoderKLWan.from_pretrained`; the other has the names of Wan's own code, which ComfyUI, LightX2V and musubi read.
"""

from collections.abc import Sequence
from pathlib import Path

from sora_jax.core.commands import Flags, run_command
from sora_jax.core.errors import UserError
from sora_jax.core.paths import check_writable
from sora_jax.experiment.adapters import read_adapters
from sora_jax.experiment.exporting import export_autoencoder, export_lora, export_transformer
from sora_jax.experiment.loading import WEIGHTS, check_ema
from sora_jax.experiment.models import RunModels, step_of
from sora_jax.experiment.settings import read_settings
from sora_jax.models.interop.wan_names import LAYOUTS
from sora_jax.train.workdir import Workdir

_LORA = "lora"
_FLAGS = Flags()
_WORKDIR = _FLAGS.workdir()
_OUTPUT = _FLAGS.path(
    "output", None, "The folder to write, with no model in it yet; but for an autoencoder also a .safetensors file."
)
_PART = _FLAGS.choice("part", "transformer", ["transformer", "autoencoder"], "What is written.")
_FORMAT = _FLAGS.choice(
    "format", None, [_LORA, *LAYOUTS], "The adapter alone; or all weights, in the names of diffusers or of Wan's code."
)
_CHECKPOINT = _FLAGS.checkpoint("Step of the newest diffusion stage with checkpoints, or latest.")
_WEIGHTS = _FLAGS.choice("weights", "ema", WEIGHTS, "Of the transformer: their average, or what its last step left.")
_EMA = _FLAGS.number(
    "ema", None, "Relative width of that average, such as 0.08 (docs/checkpoints.md); default: the first of ema.widths."
)
_ADAPTERS = _FLAGS.strings(
    "lora", "FILE:WEIGHT, or own:WEIGHT, of adapters that are merged into a whole transformer; may be given often."
)
_DTYPE = _FLAGS.choice("dtype", None, ["bfloat16", "float32"], "Of the transformer's files; default: lora bfloat16.")
_TRIGGER = _FLAGS.string("trigger", None, "What prompts should say for an adapter to act, noted in its file.")
_FLAGS.rename("layout", "part=autoencoder --format")
# Of the transformer alone. An adapter is written without others, and only its file notes a trigger.
_OF_TRANSFORMERS = (_CHECKPOINT, _WEIGHTS, _EMA, _ADAPTERS, _DTYPE, _TRIGGER)


def main(_: Sequence[str]) -> None:
    """Writes the files and prints their names."""
    if not _OUTPUT.value:
        raise UserError("nowhere to write: pass --output=DIR")
    if _FORMAT.value is None:
        raise UserError("say what to write: --format=lora, diffusers or original, with --part=autoencoder that")
    _check_used()
    check_writable(_OUTPUT.value if _OUTPUT.value.endswith(".safetensors") else f"{_OUTPUT.value}/model")
    print(*_export(_OUTPUT.value), sep="\n")


def _check_used() -> None:
    """Raises UserError for flags that cannot be together, and for those that would change nothing."""
    check_ema(_EMA.value, _WEIGHTS.value)
    if _PART.value == "autoencoder" and _FORMAT.value == _LORA:
        raise UserError("an autoencoder has no adapter: pass --part=autoencoder --format=diffusers")
    if _PART.value == "autoencoder":
        what, unused = "--part=autoencoder", _OF_TRANSFORMERS
    else:
        what, unused = f"--format={_FORMAT.value}", [_ADAPTERS if _FORMAT.value == _LORA else _TRIGGER]
    if given := [f"--{flag.name}" for flag in unused if flag.was_given]:
        raise UserError(f"{' and '.join(given)} would change nothing of what {what} writes: leave out what is not used")


def _export(output: str) -> list[Path]:
    workdir = Workdir(_WORKDIR.value)
    settings, step = read_settings(workdir.config()), step_of(_CHECKPOINT.value)
    weights = {"step": step, "weights": _WEIGHTS.value, "ema": _EMA.value}
    if _FORMAT.value == _LORA:
        return export_lora(
            workdir, settings, output, **weights, dtype=_DTYPE.value or "bfloat16", trigger=_TRIGGER.value
        )
    layout = LAYOUTS[LAYOUTS.index(_FORMAT.value)]
    if _PART.value == "autoencoder":
        return export_autoencoder(workdir, settings, output, layout)
    adapters = read_adapters(_ADAPTERS.value)
    models = RunModels(workdir, settings, **weights, adapters=adapters)
    return export_transformer(models, output, layout, dtype=_DTYPE.value)


if __name__ == "__main__":
    run_command(main, _FLAGS)
