"""The kind of stage that trains the autoencoder on windows of clips."""

import dataclasses
import functools
import math
from typing import Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from sora_jax.core.distributed import from_first, wait_for_all
from sora_jax.core.errors import UserError
from sora_jax.core.precision import compute_dtype
from sora_jax.core.rng import Rngs
from sora_jax.core.sharding import batch_part
from sora_jax.core.tree import Params, abstract_model
from sora_jax.data.crops import CropConfig
from sora_jax.experiment import activations, sample_log
from sora_jax.experiment.codec_programs import compile_halves_ahead, decoder_chunks, encoder_chunks
from sora_jax.experiment.datasets import PixelBatches
from sora_jax.experiment.init_from import take_autoencoder
from sora_jax.experiment.kinds.base import Run, Show, TrainKind
from sora_jax.experiment.loading import build_autoencoder, given_codec, given_statistics
from sora_jax.experiment.programs import StepBatch
from sora_jax.experiment.schema import Settings
from sora_jax.experiment.speed import CONVOLUTIONS_TRAINED, Costs
from sora_jax.experiment.stage_settings import AUTOENCODER, TrainStage
from sora_jax.models.codec import Codec, measure_latents
from sora_jax.models.discriminator import AdversarialAutoencoder
from sora_jax.models.perceptual import load_perceptual, lpips, smallest_side
from sora_jax.objectives import autoencoder
from sora_jax.train.state import TrainState, track_name
from sora_jax.train.step import Objective
from sora_jax.video import shapes

# Clips over which the latent's statistics are measured, and of how many sizes: each is compiled for.
_CLIPS_MEASURED, _SIZES_MEASURED = 128, 12
# Clips whose reconstruction is shown as the autoencoder trains.
_CLIPS_SHOWN, _SIZES_SHOWN = 6, 3
# What a stage trains that freezes the encoder: latents, and the bottleneck that makes them, stay as they are.
_DECODER = r"(decoder|discriminator)\..*"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderStage(TrainStage):
    """Trains the autoencoder on windows of clips, from where the autoencoder stage before it ended.

    Attributes:
      crops: The windows.
      adversarial: Length of the discriminator's gradient, as a share of the other terms'; 0: no discriminator.
      freeze: "encoder": only the decoder is trained, and the latent of a clip stays as it was; None: both are.
    """

    trains = AUTOENCODER
    reads_clips = True

    crops: CropConfig
    adversarial: float
    freeze: Literal["encoder"] | None

    def __post_init__(self):
        super().__post_init__()
        if self.freeze is not None and self.trainable is not None:
            raise UserError(f"freeze {self.freeze!r} and trainable {self.trainable!r} both say what is trained")
        if self.adversarial < 0:
            raise UserError(f"adversarial {self.adversarial:g} must be 0 for no discriminator, or more; 0.05 is usual")

    @property
    def trained(self) -> str | None:
        """Regular expression of the names of the parameters that are trained; None: all are."""
        return self.trainable if self.freeze is None else _DECODER

    @property
    def most_frames(self) -> int:
        """Frames of the longest windows of clips that it trains on."""
        return max(frames for frames, *_ in self.crops.buckets)

    @property
    def cache_mb(self) -> int:
        """Megabytes of decoded clips that it keeps in memory at most."""
        return self.crops.cache_mb

    def with_cache(self, megabytes: int) -> Self:
        """Returns the stage keeping at most so many."""
        return dataclasses.replace(self, crops=dataclasses.replace(self.crops, cache_mb=megabytes))


class AutoencoderKind(TrainKind[AutoencoderStage]):
    """Of the stages of a run the last one also measures the latents, for all that read them."""

    stage = AutoencoderStage
    place = "{kind} stages, one or more"
    shows_pairs = True
    key = "autoencoder parameters"
    compiling = (43.0, 22.0)

    def given(self, settings: Settings) -> bool:
        """Returns whether the run takes public weights, or the autoencoder of another run."""
        return settings.autoencoder_weights is not None or settings.autoencoder_start_from is not None

    def conflicts(self, settings: Settings, name: str) -> list[str]:
        """Returns which windows are not on the strides of the autoencoder, with the nearest that are."""
        problems = []
        for bucket in self.of(settings, name).crops.buckets if name in settings.run else ():
            try:
                shapes.latent_grid(bucket[:3], settings.stride)
            except UserError as error:
                problems.append(f"stages.{name}.crops.buckets {bucket}: {error}")
        stage, first = self.of(settings, name), settings.stages_of(AUTOENCODER)[:1] == [name]
        if stage.freeze is not None and first and not stage.begins_anew:
            problems.append(
                f"stages.{name}.freeze {stage.freeze!r} keeps what an earlier stage trained, and there is none: put "
                f"one before it in run, or give stages.{name}.start_from"
            )
        return problems

    def check(self, settings: Settings, name: str, mesh: Mesh) -> None:
        """Raises UserError where a window is too small for the perceptual network."""
        del mesh
        self._perceptual(settings, name)

    def build(self, settings: Settings, name: str, key: jax.Array) -> nnx.Module:
        """Returns a fresh autoencoder, with the discriminator that an adversarial stage needs."""
        if not self.of(settings, name).adversarial:
            return build_autoencoder(settings, key)
        return AdversarialAutoencoder(settings.autoencoder, settings.discriminator, rngs=Rngs(key))

    def objective(self, settings: Settings, name: str) -> Objective:
        """Returns the loss of reconstructions; UserError where a window is too small for the perceptual network."""
        return autoencoder.make_objective(
            settings.autoencoder_loss,
            adversarial=self.of(settings, name).adversarial,
            perceptual=self._perceptual(settings, name),
            dtype=compute_dtype(settings.precision),
        )

    def _perceptual(self, settings: Settings, name: str) -> autoencoder.Distance | None:
        """Returns the distance that the configured network sees; UserError where a window is too small for it."""
        if settings.perceptual_weights is None:
            return None
        weights = load_perceptual(settings.perceptual_weights)
        least = smallest_side(weights)
        for frames, height, width, _ in self.of(settings, name).crops.buckets:
            if min(height, width) < least:
                raise UserError(
                    f"stages.{name}.crops.buckets has windows of {frames} frames of {height}x{width} px, and the "
                    f"network of perceptual_weights needs {least} px a side: make them larger, or turn it off"
                )
        # A program over the devices of several processes takes no array of one of them.
        return functools.partial(lpips, weights if jax.process_count() > 1 else jax.device_put(weights))

    def stream(self, run: Run, name: str) -> PixelBatches:
        """Returns windows of the run's clips."""
        crops = self.of(run.settings, name).crops
        return PixelBatches(run.fitted, crops, seed=run.settings.seed, part=batch_part(run.mesh))

    def batches(self, settings: Settings, name: str, *, segment_tokens: int) -> list[StepBatch]:
        """Returns a batch for each bucket."""
        del segment_tokens
        stage = self.of(settings, name)
        return [_batch_of(name, bucket, accumulate=stage.accumulate) for bucket in dict.fromkeys(stage.crops.buckets)]

    def compile_ahead(self, run: Run, name: str) -> None:
        """Lets `run.ahead` compile the train step on each bucket, and what shows clips of the drawn world."""
        super().compile_ahead(run, name)
        for half in (encoder_chunks, decoder_chunks):
            compile_halves_ahead(run.ahead, half, run.settings, run.mesh, clips=1)

    def step_seconds(self, settings: Settings, name: str, costs: Costs) -> float:
        """Returns how long a step takes, on average over the buckets."""
        # The backward pass multiplies twice where the forward pass does; a frozen encoder has none.
        stage = self.of(settings, name)
        both = (3 if stage.freeze is None else 1) * costs.encode + 3 * costs.decode
        buckets = stage.crops.buckets
        return sum(costs.speed.seconds(both * math.prod(one), CONVOLUTIONS_TRAINED) for one in buckets) / len(buckets)

    def show(self, run: Run, name: str) -> Show:
        """Shows clips beside their reconstructions."""
        shown = sample_log.choose_clips(run.fitted, count=_CLIPS_SHOWN, sizes=_SIZES_SHOWN)

        def show(state: TrainState, step: int) -> None:
            codec = _codec_of(run, state)
            run.sample_log(name, step).reconstructions(codec, shown)

        return show

    def finish(self, run: Run, name: str, state: TrainState) -> None:
        """Measures the latents and stores their statistics, at the end of the last stage."""
        if name == run.settings.stages_of(AUTOENCODER)[-1]:
            _measure(run, _codec_of(run, state), stage=name)


def _batch_of(name: str, bucket: tuple[int, int, int, int], *, accumulate: int) -> StepBatch:
    frames, height, width, clips = bucket

    def ways(mesh: Mesh, params: Params) -> activations.Ways:
        return activations.of_clips(mesh, params, clips=clips // accumulate)

    return StepBatch(
        what=f"a bucket of stages.{name} has {clips} clips",
        size=clips,
        shapes={"clip_BTHWC": jax.ShapeDtypeStruct((clips, frames, height, width, 3), jnp.uint8)},
        ways=ways,
        flops=None,
        recomputed=0.0,
        title=f" on {clips} clips of {frames}x{height}x{width}",
        facts={"clips": clips, "frames": frames, "height": height, "width": width},
    )


def _codec_of(run: Run, state: TrainState) -> Codec:
    """Returns the averaged autoencoder, its latents as they come."""
    settings = run.settings
    names = abstract_model(functools.partial(build_autoencoder, settings))[1]
    average, scale_C = state.averaged(track_name(settings.ema.widths[0])), np.ones(settings.autoencoder.channels)
    params = {parameter: average[parameter] for parameter in names}
    return Codec(settings.autoencoder, params, mean_C=0 * scale_C, scale_C=scale_C, work=settings.codec, mesh=run.mesh)


def _measure(run: Run, codec: Codec, *, stage: str | None = None) -> None:
    """Stores the statistics of the latents of the run's clips, and which stage trained the weights."""
    measured = sample_log.choose_clips(run.fitted, count=_CLIPS_MEASURED, sizes=_SIZES_MEASURED)
    statistics = measure_latents(codec, [clip.pixels_THWC for clip in measured])
    measured_C = {"mean": statistics.mean_C.tolist(), "scale": statistics.scale_C.tolist()}
    run.workdir.write_json("latents.json", {"stage": stage, **measured_C})
    wait_for_all("latents are measured")


def take_given(run: Run) -> None:
    """Makes an autoencoder that the config takes from elsewhere that of the run, once.

    That of another run is copied; public weights that come without statistics of their latents are measured.
    """
    settings = run.settings
    start, config = settings.autoencoder_start_from, settings.autoencoder
    if start is not None:
        from_first("the autoencoder", lambda: take_autoencoder(run.workdir, config, start))
    if settings.autoencoder_weights is None or given_statistics(settings) is not None:
        return
    if not from_first("are latents measured", (run.workdir.path / "latents.json").exists):
        channels = np.ones(config.channels)
        mesh = run.mesh if jax.process_count() > 1 else None
        _measure(run, given_codec(settings, 0 * channels, channels, mesh=mesh))
