"""What a run has trained as files for other programs: its adapters, its transformer, its autoencoder."""

import re
from pathlib import Path

import jax.numpy as jnp

from sora_jax.core.errors import UserError
from sora_jax.core.tree import Params, abstract_model
from sora_jax.core.versions import own_version
from sora_jax.experiment.kinds.diffusion import DiffusionKind
from sora_jax.experiment.loading import Weights, build_generator, load_codec, load_weights, placed
from sora_jax.experiment.models import RunModels
from sora_jax.experiment.posthoc import load_average
from sora_jax.experiment.settings import Settings
from sora_jax.experiment.stage_settings import TEXT_TO_VIDEO
from sora_jax.generate.experts import EXPERTS
from sora_jax.models.interop.lora_writing import LoraDtype, save_lora
from sora_jax.models.interop.wan import save_wan
from sora_jax.models.interop.wan_autoencoder import save_wan_autoencoder
from sora_jax.models.interop.wan_names import Layout
from sora_jax.models.interop.wan_shape import WanShape, inexpressible
from sora_jax.models.roles import VECTORS
from sora_jax.nn.lora import IN, KERNEL, OUT, adapters_of, is_factor
from sora_jax.train.state import track_name
from sora_jax.train.workdir import Workdir

_TRANSFORMER = "transformer."


def export_autoencoder(workdir: Workdir, settings: Settings, output: str, layout: Layout) -> list[Path]:
    """Writes the averaged weights of the autoencoder and the statistics of its latents; returns the files."""
    codec = load_codec(workdir, settings)
    return [Path(save_wan_autoencoder(output, codec.config, codec.params, codec.mean_C, codec.scale_C, layout))]


def export_transformer(models: RunModels, output: str, layout: Layout, *, dtype: str | None) -> list[Path]:
    """Writes the whole transformer, adapters merged, in Wan's names; returns the files.

    Raises UserError where other programs would not compute what this one does, and as `save_wan`.
    """
    settings = models.settings
    problems = inexpressible(settings.transformer)
    if kinds := settings.context.kinds:
        problems.append(f"Wan sees no clips beside a clip, and this one was trained with {', '.join(kinds)}")
    if problems:
        raise UserError(f"Wan's weights cannot express this transformer: {'; '.join(problems)}")
    text_dim = settings.text_encoder.width
    shape = WanShape.of(settings.transformer, patch_width=settings.patch_width, text_dim=text_dim, layout=layout)
    params = {
        name.removeprefix(_TRANSFORMER): value for name, value in models.params.items() if name.startswith(_TRANSFORMER)
    }
    return save_wan(output, params, shape, dtype=None if dtype is None else jnp.dtype(dtype))


def export_lora(
    workdir: Workdir,
    settings: Settings,
    output: str,
    *,
    step: int | None = None,
    weights: Weights = "ema",
    ema: float | None = None,
    dtype: LoraDtype = "bfloat16",
    trigger: str | None = None,
) -> list[Path]:
    """Writes the adapters that a run has trained, a file for each of its transformers, and returns the files.

    Raises UserError where it has trained none, and as `save_lora`.

    Args:
      workdir: Of the run.
      settings: Of the run.
      output: Of the file; of two, "high_noise" and "low_noise" come before its end.
      step: Of the checkpoint; None: the newest.
      weights: As in `load_weights`.
      ema: Relative width of their average, as in `load_average`; None: that of `weights`.
      dtype: Of the file.
      trigger: What prompts should say; noted in the file.
    """
    lora = settings.transformer.lora
    if lora is None or lora.rank is None:
        raise UserError(f"{workdir.path} has no adapter, as its transformer.lora.rank is None: pass --format=diffusers")
    experts = _stages(workdir, settings)
    if not experts:
        raise UserError(f"{workdir.path} has no checkpoint of a transformer yet: run main until one is written")
    files = []
    for expert, stage in experts.items():
        params = _factors(workdir, settings, stage, step=step, weights=weights, ema=ema)
        factors = {
            f"{name.removeprefix(_TRANSFORMER)}.{KERNEL}": (params[f"{name}.{IN}"], params[f"{name}.{OUT}"])
            for name in adapters_of(params)
        }
        facts = _facts(settings, trigger)
        path = Path(output if output.endswith(".safetensors") else f"{output}/lora.safetensors")
        if settings.public is not None and settings.public.variant.experts > 1 and expert is not None:
            facts["expert"] = EXPERTS[expert]
            path = path.with_name(f"{path.stem}_{EXPERTS[expert]}_noise.safetensors")
        roles = params.get(f"{_TRANSFORMER}{VECTORS}")
        files.append(save_lora(path, factors, scale=lora.scale, facts=facts, dtype=dtype, roles=roles))
    return files


def _stages(workdir: Workdir, settings: Settings) -> dict[int | None, str]:
    """Returns the newest stage with checkpoints of each transformer."""
    kind, result = DiffusionKind(), {}
    for stage in settings.stages_of(TEXT_TO_VIDEO):
        saved = workdir.checkpoints(stage)
        if saved.exists() and any(path.name.isdecimal() for path in saved.iterdir()):
            result[kind.lineage(settings, stage)] = stage
    return result


def _factors(
    workdir: Workdir, settings: Settings, stage: str, *, step: int | None, weights: Weights, ema: float | None
) -> Params:
    _, shapes, _ = abstract_model(lambda key: build_generator(settings, key))
    trained = DiffusionKind().of(settings, stage).trained or ".*"
    roles = {f"{_TRANSFORMER}{VECTORS}"} if re.fullmatch(trained, f"{_TRANSFORMER}{VECTORS}") else set()
    wanted = {name: shape for name, shape in shapes.items() if is_factor(name) or name in roles}
    if ema is not None:
        return load_average(workdir, settings, stage, placed(wanted), width=ema, step=step)[0]
    track = track_name(settings.ema.widths[0])
    return load_weights(workdir, stage, wanted, track=track, step=step, weights=weights)[0]


def _facts(settings: Settings, trigger: str | None) -> dict[str, str]:
    """Returns what who uses the adapter needs to know."""
    (height, width), frames = settings.sampling.size, settings.sampling.frames
    base = f"width {settings.transformer.width}, {settings.transformer.depth} blocks"
    return {
        "base": base if settings.public is None else settings.public.variant.title,
        "resolution": f"{height}x{width}, {frames} frames",
        "software": f"sora_jax {own_version()}",
        **({} if trigger is None else {"trigger": trigger}),
    }
