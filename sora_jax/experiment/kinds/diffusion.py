"""The kind of stage that trains the transformer on prepared clips."""

import dataclasses
import functools
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from absl import logging
from flax import nnx
from jax.sharding import Mesh

from sora_jax.checkpoints.frozen import WeightSource
from sora_jax.core.errors import UserError
from sora_jax.core.precision import compute_dtype
from sora_jax.core.sharding import batch_part
from sora_jax.core.tree import Params, abstract_model, count_parameters
from sora_jax.data.packing.context import ContextMix
from sora_jax.diffusion.known import NOTHING_KNOWN, KnownConfig
from sora_jax.evaluation.loss_grid import LEVELS
from sora_jax.experiment.base_weights import expert_of, public_weights, source_of
from sora_jax.experiment.datasets import PackedBatches
from sora_jax.experiment.heldout import NONE_HELD_OUT, make_loss_grid
from sora_jax.experiment.kinds.base import Run, Show, TrainKind, Validate, check_split, unknown_collections
from sora_jax.experiment.kinds.prepare import heldout_clips, open_prepared, warn_of_left_out
from sora_jax.experiment.loading import build_generator, limits_of
from sora_jax.experiment.programs import StepBatch, packed_batch
from sora_jax.experiment.sample_prompts import choose_examples, count_examples
from sora_jax.experiment.schema import Settings
from sora_jax.experiment.speed import Costs
from sora_jax.experiment.stage_settings import TEXT_TO_VIDEO, MixConfig, TrainStage
from sora_jax.experiment.training_samples import TrainingSamples
from sora_jax.models import flops
from sora_jax.objectives import diffusion
from sora_jax.train.state import TrainState, track_name
from sora_jax.train.step import Objective


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionStage(TrainStage):
    """Trains the transformer on prepared clips, from where the stage before it ended that trains it.

    Attributes:
      mix: What is drawn.
      known: Which part of a clip is given.
      token_drop: Least and largest share of its tokens that a clip loses, in [0, 1).
      noise_range: Lowest and highest noise level that is drawn; None: any.
      context: Shares of what is given beside clips, as of `ContextMix`; None: nothing is.
    """

    trains = TEXT_TO_VIDEO

    mix: MixConfig
    known: KnownConfig
    token_drop: tuple[float, float]
    noise_range: tuple[float, float] | None
    context: dict[str, float] | None

    def __post_init__(self):
        super().__post_init__()
        least, largest = self.token_drop
        if not 0 <= least <= largest < 1:
            raise UserError(
                f"token_drop ({least:g}, {largest:g}) must be two shares from 0 to less than 1, the smaller first; "
                "(0, 0) drops nothing"
            )
        low, high = self.levels
        if not 0 <= low < high <= 1:
            raise UserError(
                f"noise_range ({low:g}, {high:g}) must be two levels from 0 to 1, the lower first; None draws from all"
            )

    @property
    def levels(self) -> tuple[float, float]:
        """Lowest and highest noise level that is drawn."""
        return self.noise_range or (0.0, 1.0)

    @property
    def gives_known_tokens(self) -> bool:
        """Whether some clips have parts that are given."""
        return self.known.none < 1

    @property
    def context_kinds(self) -> tuple[str, ...]:
        """Kinds of clips that are given beside some clips."""
        return () if self.context is None else ContextMix(shares=self.context, dropout=0.0).kinds


class DiffusionKind(TrainKind[DiffusionStage]):
    """Stages of it, each with its mix of clips and its learning rate, train one transformer."""

    stage = DiffusionStage
    after = ("autoencoder", "prepare")
    key = "generator parameters"
    keeps_averages = True

    def conflicts(self, settings: Settings, name: str) -> list[str]:
        """Returns which weights are those of no collection, and whether an adapter has nothing to adapt."""
        stage, said = self.of(settings, name), _context_conflicts(settings, name, self.of(settings, name))
        lora, first = settings.transformer.lora, settings.stages_of(TEXT_TO_VIDEO)[:1] == [name]
        if lora is not None and lora.rank is not None and first and stage.start_from is None and settings.model is None:
            said.append(
                f"transformer.lora.rank is {lora.rank}, and the stage {name} has no weights to adapt: give "
                f"stages.{name}.start_from or model"
            )
        return said + unknown_collections(settings, name, stage.mix)

    def check(self, settings: Settings, name: str, mesh: Mesh) -> None:
        """Raises UserError where the mesh splits rows or heads unevenly, and for the levels of two experts at once."""
        try:
            self.lineage(settings, name)
        except UserError as error:
            raise UserError(f"stages.{name}.noise_range {self.of(settings, name).noise_range}: {error}") from error
        check_split(settings, mesh, heads=settings.transformer.heads, key="transformer.heads")

    def lineage(self, settings: Settings, name: str) -> int | None:
        """Returns the transformer of the public model that the stage trains; None: the run makes its own."""
        return expert_of(settings, self.of(settings, name).levels)

    def source(self, settings: Settings, name: str) -> WeightSource | None:
        """Returns the files of that transformer."""
        return source_of(settings, name)

    def build(self, settings: Settings, name: str, key: jax.Array) -> nnx.Module:
        """Returns a fresh text encoder and transformer."""
        del name
        return build_generator(settings, key)

    def prediction(self, settings: Settings) -> str | None:
        return settings.diffusion.path.prediction

    def base_shapes(self, settings: Settings, name: str) -> dict[str, tuple[int, ...]] | None:
        """Returns those of the generator at `transformer.base_width`."""
        if settings.transformer.base_width is None:
            return None
        narrow = dataclasses.replace(settings, transformer=settings.transformer.at_base_width())
        params = abstract_model(functools.partial(self.build, narrow, name))[1]
        return {one: value.shape for one, value in params.items()}

    def objective(self, settings: Settings, name: str) -> Objective:
        """Returns the error of predictions over noise levels and known tokens, none where frames are shown."""
        stage, dtype = self.of(settings, name), compute_dtype(settings.precision)
        shares = stage.known if settings.shown is None else NOTHING_KNOWN
        return diffusion.make_objective(
            settings.diffusion,
            shares,
            dtype=dtype,
            noise_range=stage.levels,
            context_levels=settings.context.max_levels(),
        )

    def stream(self, run: Run, name: str) -> PackedBatches:
        """Returns packs of prepared clips; UserError where they were not prepared with the run's autoencoder."""
        stage = self.of(run.settings, name)
        stream = PackedBatches(
            open_prepared(run),
            run.settings,
            mix=stage.mix,
            token_drop=stage.token_drop,
            part=batch_part(run.mesh),
            trained=self._share_trained(run.settings, name),
            context=_mix_of_context(run.settings, stage),
        )
        warn_of_left_out(name, stream)
        return stream

    def batches(self, settings: Settings, name: str, *, segment_tokens: int) -> list[StepBatch]:
        """Returns a pack whose rows are full of segments of one size; UserError for segments that no row holds.

        Each has beside it the set of clips that takes most tokens of those that the stage draws.
        """
        stage, transformer = self.of(settings, name), settings.transformer
        mix, trained = _mix_of_context(settings, stage), self._share_trained(settings, name)
        batch = packed_batch(
            settings,
            segment_tokens=segment_tokens,
            accumulate=stage.accumulate,
            widths=(transformer.mlp_width, transformer.width // transformer.heads),
            step_flops=lambda work: flops.step_flops(
                transformer, settings.text_encoder, patch_width=settings.patch_width, work=work, trained=trained
            ),
            recomputed=lambda work: _recomputed(settings, work),
            parts=0 if mix is None else mix.parts,
            beside=() if mix is None else _beside(settings, mix, segment_tokens),
        )
        return [batch]

    def _share_trained(self, settings: Settings, name: str) -> float:
        """Returns the share of the parameters that a stage trains."""
        trainable = self.of(settings, name).trained
        if trainable is None:
            return 1.0
        params = abstract_model(functools.partial(self.build, settings, name))[1]
        trained = {one: value for one, value in params.items() if re.fullmatch(trainable, one)}
        return count_parameters(trained) / count_parameters(params)

    def step_seconds(self, settings: Settings, name: str, costs: Costs) -> float:
        """Returns how long a step takes, on average over the clips that are drawn."""
        mix = self.of(settings, name).mix
        return costs.step_seconds(mix.images / (mix.images + mix.videos))

    def once_seconds(self, settings: Settings, name: str, costs: Costs) -> float:
        """Returns how long it takes to compile, and to make the samples."""
        sampling = costs.sampling_seconds(count_examples(settings))
        return super().once_seconds(settings, name, costs) + settings.log.samples_per_stage * sampling

    def show(self, run: Run, name: str) -> Show:
        """Shows samples of the same prompts at every moment, and beside them those without adapters."""
        settings, maker = run.settings, self.maker(run.settings, name, run.mesh)
        frames = settings.sampling.frames if self.of(settings, name).mix.videos else 1

        def other(expert: int) -> Params:
            source = public_weights(settings, expert, frozen_dtype=self.of(settings, name).frozen_dtype)
            assert source is not None
            return _whole(source, maker.abstract_params())

        samples = TrainingSamples(
            settings,
            run.codec,
            abstract_model(maker.build)[0],
            mesh=run.mesh,
            examples=choose_examples(
                settings, functools.partial(open_prepared, run), limits_of(settings), frames=frames
            ),
            frames=frames,
            expert=self.lineage(settings, name) or 0,
            other=other,
        )
        if settings.text_encoder.tokenizer.stored:
            # Now, so that the text encoder is gone before the transformer trains: what it was asked for it remembers.
            texts = [text for job in samples.jobs for text in (*job.prompts, job.negative)]
            settings.text_encoder.tokenizer.encode(texts)
            settings.text_encoder.release()

        def show(state: TrainState, step: int) -> None:
            if not samples.jobs:  # they need an image
                return
            params = state.averaged(track_name(settings.ema.widths[0]))
            before = samples.without_adapters(params)
            clips = samples.made(params)
            run.sample_log(name, step).samples(samples.jobs, clips, before)

        return show

    def validation(self, run: Run, name: str) -> Validate | None:
        """Measures the loss of the averaged weights on held-out clips: of kinds, at noise levels as the stage sees."""
        settings, stage = run.settings, self.of(run.settings, name)
        clips = heldout_clips(run)
        if clips is None:
            logging.info("%s: there is no held-out loss: %s", name, NONE_HELD_OUT)
            return None
        structure = abstract_model(self.maker(settings, name, run.mesh).build)[0]
        seen = {"noise_range": stage.levels, "kinds": stage.mix.kinds}
        grid = make_loss_grid(settings, structure, clips, **seen, mesh=run.mesh)
        track = track_name(settings.ema.widths[0])
        return lambda state: grid(state.averaged(track)).scalars()

    def validation_seconds(self, settings: Settings, name: str, costs: Costs, *, clips: int) -> float:
        """Returns how long it takes to measure the held-out loss once, at all its noise levels."""
        text, shape = (
            settings.text_encoder,
            {"text_dim": settings.text_encoder.width, "patch_width": settings.patch_width},
        )

        def forward(work: flops.Work) -> float:
            return flops.transformer_flops(settings.transformer, **shape, work=work) + text.flops(work)

        return LEVELS * costs.measuring_seconds(clips, self.of(settings, name).mix.kinds, forward)


def _beside(settings: Settings, mix: ContextMix, segment_tokens: int) -> tuple[int, ...]:
    """Returns the tokens of what is beside a clip of so many; none where no row holds both: such clips go without."""
    beside = settings.context.most_beside(mix.sets, segment_tokens)
    return beside if segment_tokens + sum(beside) <= settings.packing.tokens else ()


def _mix_of_context(settings: Settings, stage: DiffusionStage) -> ContextMix | None:
    """Returns what a stage gives beside clips, how often; None where it gives nothing."""
    mix = None if stage.context is None else ContextMix(shares=stage.context, dropout=settings.context.dropout)
    return mix if mix is not None and mix.parts else None


def _context_conflicts(settings: Settings, name: str, stage: DiffusionStage) -> list[str]:
    """Returns what is wrong with the shares of context of a stage, in words."""
    try:
        mix = _mix_of_context(settings, stage)
    except UserError as error:
        return [f"stages.{name}.context: {error}"]
    lacking = [] if mix is None else [kind for kind in mix.kinds if kind not in settings.context.kinds]
    if not lacking:
        return []
    return [
        f"stages.{name}.context names {', '.join(lacking)}, and context.kinds, which is prepared, has "
        f"{', '.join(settings.context.kinds) or 'none'}: name it there too"
    ]


def _whole(source: WeightSource, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> Params:
    """Returns all parameters of a generator that has those of a source, and adapters that add nothing to them."""
    wanted = {n: jax.ShapeDtypeStruct(v.shape, source.dtype, sharding=v.sharding) for n, v in shapes.items()}
    given = source.load({name: one for name, one in wanted.items() if source.has(name)})
    rest = {n: jax.device_put(jnp.zeros(v.shape, v.dtype), v.sharding) for n, v in shapes.items() if n not in given}
    return {**given, **rest}


def _recomputed(settings: Settings, work: flops.Work) -> float:
    """Returns the FLOPs of the forward pass that the backward pass does again, at least."""
    transformer, text = settings.transformer, settings.text_encoder
    if transformer.remat not in ("attention", "full", "offload"):
        return 0.0
    forward = flops.step_flops(transformer, text, patch_width=settings.patch_width, work=work) / 3
    return forward - (flops.attention_flops(transformer, work) if transformer.remat == "attention" else 0.0)
