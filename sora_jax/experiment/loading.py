"""Trained models as later stages and other commands load them from a workdir."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import numpy as np
from jax.sharding import Mesh, Sharding, SingleDeviceSharding

from sora_jax.checkpoints.frozen import WeightSource, load_params
from sora_jax.core.distributed import from_first
from sora_jax.core.errors import UserError
from sora_jax.core.precision import compute_dtype
from sora_jax.core.rng import Rngs
from sora_jax.core.sharding import param_shardings, put_whole, replicated, ways
from sora_jax.core.tree import Params, abstract_model
from sora_jax.data.packing.packs import PackLayout
from sora_jax.experiment.base_weights import source_of, transformer_of
from sora_jax.experiment.controls import controls_of, rates_of, refiner_of
from sora_jax.experiment.posthoc import load_average
from sora_jax.experiment.sample_prompts import Example
from sora_jax.experiment.schema import Settings
from sora_jax.experiment.stage_settings import TEXT_TO_VIDEO
from sora_jax.generate.denoiser import SolverConfig
from sora_jax.generate.experts import EXPERTS
from sora_jax.generate.job import Job, read_job
from sora_jax.generate.limits import ModelLimits
from sora_jax.generate.request import Request
from sora_jax.generate.sampler import Sampler
from sora_jax.models.autoencoder import Autoencoder
from sora_jax.models.codec import Codec
from sora_jax.models.interop.variants import public_statistics
from sora_jax.models.interop.wan_autoencoder import latent_statistics, load_wan_autoencoder
from sora_jax.models.text_to_video import TextToVideo
from sora_jax.models.vision.clip import ImageEncoder, load_image_encoder
from sora_jax.models.vision.shown import Shower
from sora_jax.preparation.boxes import draw_boxes
from sora_jax.train.state import track_name
from sora_jax.train.workdir import Workdir

# Which weights of a checkpoint are used: the first average, or what the last step left.
Weights = Literal["ema", "params"]
WEIGHTS: tuple[Weights, ...] = get_args(Weights)
_UNBOUND = 2**31


def check_ema(ema: float | None, weights: Weights) -> None:
    """Raises UserError where the width of an average is asked for, and weights that are none."""
    if ema is not None and weights != "ema":
        raise UserError(f"--ema={ema:g} is the width of an average, and --weights={weights} are none: pass one of both")


def build_autoencoder(settings: Settings, key: jax.Array) -> Autoencoder:
    """Returns a fresh autoencoder."""
    return Autoencoder(settings.autoencoder, rngs=Rngs(key))


def build_generator(settings: Settings, key: jax.Array) -> TextToVideo:
    """Returns a fresh text encoder and transformer."""
    return TextToVideo(
        settings.transformer,
        settings.text_encoder,
        patch_width=settings.patch_width,
        rngs=Rngs(key),
        roles=bool(settings.context.kinds),
        blind=settings.context.blind,
    )


def load_codec(workdir: Workdir, settings: Settings, *, mesh: Mesh | None = None) -> Codec:
    """Returns the autoencoder of a run, trained or given; the devices of `mesh`, or the first one, do its work.

    Raises UserError while there is none.
    """
    mean_C, scale_C = _statistics(workdir, settings)
    if settings.autoencoder_weights is not None:
        return given_codec(settings, mean_C, scale_C, mesh=mesh)
    measured = workdir.read_json("latents.json", "stage")
    _, shapes, _ = abstract_model(functools.partial(build_autoencoder, settings))
    places = None if mesh is None else dict.fromkeys(shapes, replicated(mesh))
    track = measured.get("track", track_name(settings.ema.widths[0]))  # that of another run may be another
    params, _ = load_weights(workdir, measured["stage"], shapes, track=track, places=places)
    return Codec(settings.autoencoder, params, mean_C=mean_C, scale_C=scale_C, work=settings.codec, mesh=mesh)


def load_shower(settings: Settings, codec: Codec) -> Shower | None:
    """Returns what encodes the frames that the model of a run is shown; None where it is shown none.

    Raises UserError where the transformer sees tokens of images and there is no encoder of these.
    """
    if (shown := settings.shown) is None:
        return None
    if not shown.image_tokens:
        return Shower(shown, codec, None)
    if settings.image_encoder is None:
        raise UserError(
            f"the transformer sees tokens of images (image_dim {settings.transformer.image_dim}): "
            "pass --config.image_encoder=DIR, the folder image_encoder of the model"
        )
    return Shower(shown, codec, _image_encoder(settings.image_encoder))


@functools.lru_cache(maxsize=1)
def _image_encoder(path: str) -> ImageEncoder:
    """Returns the one image encoder of all samplers of a run."""
    return load_image_encoder(path)


def given_codec(settings: Settings, mean_C: np.ndarray, scale_C: np.ndarray, *, mesh: Mesh | None = None) -> Codec:
    """Returns the codec of the public weights of `settings`, by default on the first device."""
    assert settings.autoencoder_weights is not None
    weights = load_wan_autoencoder(settings.autoencoder_weights, settings.autoencoder)
    if mesh is None:
        params = jax.device_put(weights, jax.local_devices()[0])
    else:
        params = {name: put_whole(value, mesh) for name, value in weights.items()}
    return Codec(settings.autoencoder, params, mean_C=mean_C, scale_C=scale_C, work=settings.codec, mesh=mesh)


def given_statistics(settings: Settings) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns (mean_C, scale_C) that the public weights of a run bring; None where it has, or they bring, none."""
    if settings.autoencoder_weights is None:
        return None
    channels = settings.autoencoder.channels
    brought = latent_statistics(settings.autoencoder_weights, channels)
    # A public transformer knows latents by the statistics of its training. For one of the run's own, those measured on
    # its clips serve better, and weights of this shape need not be the public ones.
    return public_statistics(channels) if brought is None and settings.model is not None else brought


def _statistics(workdir: Workdir, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    if (given := given_statistics(settings)) is not None:
        return given
    given = settings.autoencoder_weights is not None or settings.autoencoder_start_from is not None
    if not (workdir.path / "latents.json").exists() and given:
        raise UserError(f"{workdir.path} has no statistics of its latents yet: run main --until=autoencoder first")
    if not (workdir.path / "latents.json").exists():
        raise UserError(f"{workdir.path} has no trained autoencoder yet: run main until that stage is done")
    measured = workdir.read_json("latents.json", "mean", "scale")
    return np.array(measured["mean"]), np.array(measured["scale"])


def load_generator(
    workdir: Workdir,
    settings: Settings,
    *,
    step: int | None = None,
    weights: Weights = "ema",
    ema: float | None = None,
    mesh: Mesh | None = None,
    expert: int | None = None,
) -> tuple[Params, str, int]:
    """Returns (parameters, stage, step) of the newest diffusion stage with a checkpoint.

    Args:
      workdir: Of the run.
      settings: Of the run.
      step: Of the checkpoint; None takes the newest verified one.
      weights: As in `load_weights`.
      ema: Relative width of the average, as in `load_average`; None: that of `weights`.
      mesh: Devices that hold the parameters together, as in training; None: the first one alone.
      expert: Of two transformers of a public model the one that is asked for; None: there is one.

    Raises:
      UserError: there is none.
    """
    _, params, axes = abstract_model(lambda key: build_generator(settings, key))
    places = None if mesh is None else param_shardings(axes, params, mesh)

    def newest() -> str | None:
        for stage in reversed(settings.stages_of(TEXT_TO_VIDEO)):
            saved = workdir.checkpoints(stage)
            if expert is not None and transformer_of(settings, stage) != expert:
                continue
            if saved.exists() and any(path.name.isdecimal() for path in saved.iterdir()):
                return stage
        return None

    if stage := from_first("the newest transformer", newest):
        track = track_name(settings.ema.widths[0])
        source = source_of(settings, stage)
        if ema is not None:
            shapes = placed(params, places)
            loaded, found = load_average(workdir, settings, stage, shapes, width=ema, step=step, source=source)
            return loaded, stage, found
        loaded, found = load_weights(
            workdir, stage, params, track=track, step=step, weights=weights, places=places, source=source
        )
        return loaded, stage, found
    which = "a transformer" if expert is None else f"the expert of {EXPERTS[expert]} noise levels"
    raise UserError(f"{workdir.path} has no checkpoint of {which} yet: run main until one is written")


def load_weights(
    workdir: Workdir,
    stage: str,
    abstract: Params,
    *,
    track: str,
    step: int | None = None,
    weights: Weights = "ema",
    places: Mapping[str, Sharding] | None = None,
    source: WeightSource | None = None,
) -> tuple[Params, int]:
    """Returns (weights, step) of a stage's checkpoint, by default on the first device.

    `weights` are the average called `track` ("ema"), or what the last step left ("params"); `source` as in
    `load_params`.
    """
    part = "params" if weights == "params" else f"ema/{track}"
    return load_params(workdir.checkpoints(stage), part, placed(abstract, places), step=step, source=source)


def placed(abstract: Params, places: Mapping[str, Sharding] | None = None) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns what stands for parameters, where they are to lie; None: on the first device."""
    places = places or dict.fromkeys(abstract, SingleDeviceSharding(jax.local_devices()[0]))
    return {n: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=places[n]) for n, v in abstract.items()}


def limits_of(settings: Settings) -> ModelLimits:
    """Returns what the model of a run can make."""
    sampling, transformer = settings.sampling, settings.transformer
    step = settings.token_stride[0]
    # A way from one given frame to another takes three frames of tokens.
    window = max(sampling.window or settings.longest, 3 * step - settings.stride[0] + 1)
    tile = settings.codec.tile or _UNBOUND
    widest = settings.autoencoder.decoder_width * max(settings.autoencoder.multipliers)
    return ModelLimits(
        stride=settings.stride,
        patch=transformer.patch,
        # A public model is bound by its window alone: rows are as long as a video needs.
        row_tokens=settings.packing.tokens if settings.public is None else _UNBOUND,
        tokenizer=settings.text_encoder.tokenizer,
        text_tokens=settings.text.max_tokens,
        window=window,
        # A model that is shown one frame is shown the last one of the window before.
        overlap=sampling.overlap if settings.shown is None else step - settings.stride[0] + 1,
        max_seconds=sampling.max_seconds,
        knows=_knows(settings),
        name="this run" if settings.public is None else settings.public.variant.title,
        negative="" if settings.public is None else settings.public.variant.negative,
        size=sampling.size,
        frames=sampling.frames,
        fps=sampling.fps,
        known_guidance=sampling.known_guidance,
        refine=sampling.refine or (),
        refiner=refiner_of(settings),
        # Queries, keys, values, attention and the hidden layer; and a few images of the widest features.
        token_bytes=4.0 * (6 * transformer.width + 2 * transformer.mlp_width),
        pixel_bytes=4.0 * 4 * widest / settings.autoencoder.patch**2,
        chunk=(settings.codec.chunk_frames, tile, tile),
        shown=settings.shown,
        by_area=settings.shown is not None or settings.public is not None,
        controls=controls_of(settings),
        rates=rates_of(settings),
        draw_boxes=draw_boxes,
    )


def _knows(settings: Settings) -> bool:
    """Returns whether parts of a video may be given as known tokens."""
    if settings.public is not None:
        return settings.public.variant.any_known
    return any(settings.stages[name].gives_known_tokens for name in settings.stages_of(TEXT_TO_VIDEO))


def example_jobs(settings: Settings, examples: Sequence[Example], *, frames: int) -> list[Job]:
    """Returns examples as videos of `frames` frames, at seed 0, to be made as `sample` makes them.

    A model that is shown frames animates the configured image with each, and has none where there is no image.
    Raises UserError as `read_job`.
    """
    limits, sampling = limits_of(settings), settings.sampling
    if settings.shown is None:
        requests = [
            Request(prompt=(prompt,), frames=frames, size="x".join(map(str, size)), refine="none")
            for prompt, size in examples
        ]
    else:
        given: Any = {"task": "animate", "image": sampling.image, "last_image": sampling.last_image}
        shown = examples if sampling.image else ()
        requests = [Request(prompt=(prompt,), frames=frames, **given) for prompt, _ in shown]
    return [read_job(request, limits) for request in requests]


def pack_layout(settings: Settings) -> PackLayout:
    """Returns the layout of the run's rows."""
    return PackLayout(
        budget=settings.packing.budget(),
        patch=settings.transformer.patch,
        channels=settings.autoencoder.channels,
        temporal_stride=settings.stride[0],
        time_rate=settings.transformer.time_rate,
        tokenizer=settings.text_encoder.tokenizer,
        shown=settings.shown,
        fps=settings.counted_fps,
    )


def make_sampler(
    settings: Settings,
    codec: Codec,
    structure: Any,
    *,
    solver: SolverConfig | None = None,
    mesh: Mesh | None = None,
    videos: int | None = None,
    kind: Callable[..., Sampler] = Sampler,
) -> Sampler:
    """Returns the sampler of a run; `solver` replaces the configured one, `mesh` are the devices that hold the weights.

    `kind` makes it, with the arguments of `Sampler`.

    Batches have as many rows as in training, but no more than `videos` at once need, rounded up to a power of two so
    that few programs serve all; and a few more where they would not come out even over the mesh.
    """
    parts = 1 if mesh is None else ways("batch", mesh)
    rows = settings.packing.rows if videos is None else min(settings.packing.rows, 1 << (videos - 1).bit_length())
    return kind(
        structure,
        codec,
        pack_layout(settings),
        rows=-(-rows // parts) * parts,
        config=solver_config(settings) if solver is None else solver,
        dtype=compute_dtype(settings.precision),
        mesh=mesh,
        shower=load_shower(settings, codec),
        blind=settings.context.blind,
    )


def solver_config(settings: Settings) -> SolverConfig:
    """Returns the configured solver."""
    sampling, diffusion = settings.sampling, settings.diffusion
    return SolverConfig(
        steps=sampling.steps,
        method=sampling.solver,
        path=diffusion.path,
        noise=dataclasses.replace(diffusion.noise, shift_base_tokens=sampling.shift_base_tokens),
        guidance=sampling.guidance,
        cache=sampling.cache,
        grid=sampling.public_grid(),
        experts=_experts(settings),
        keeps_known=settings.model is not None,
        forgets_context=sampling.forget_context,
        context_steps=sampling.context_steps,
    )


def _experts(settings: Settings) -> tuple[float, float] | None:
    """Returns the boundary of a public model with two experts, and the scale of guidance below; None for one."""
    if settings.public is None or (boundary := settings.public.variant.boundary) is None:
        return None
    low = settings.sampling.low_guidance
    return (boundary, settings.sampling.guidance.scale if low is None else low)
