"""The kind of stage that trains the captioner on prepared clips."""

import dataclasses

import jax
from absl import logging
from flax import nnx
from jax.sharding import Mesh

from sora_jax.core.distributed import to_host
from sora_jax.core.precision import compute_dtype
from sora_jax.core.sharding import batch_part
from sora_jax.core.tree import abstract_model
from sora_jax.data.caption_tokens import CAPTION_TOKENIZER
from sora_jax.data.packing.pools import clips_by_kind
from sora_jax.data.shards.records import Prepared
from sora_jax.evaluation.caption_loss import CaptionLoss
from sora_jax.evaluation.heldout_packs import HeldoutPacks, curves_of
from sora_jax.experiment import sample_log
from sora_jax.experiment.captioners import build_captioner, make_describer
from sora_jax.experiment.datasets import PackedBatches
from sora_jax.experiment.heldout import NONE_HELD_OUT
from sora_jax.experiment.kinds.base import Run, Show, TrainKind, Validate, check_split, unknown_collections
from sora_jax.experiment.kinds.prepare import heldout_clips, open_prepared, warn_of_left_out
from sora_jax.experiment.loading import pack_layout
from sora_jax.experiment.programs import StepBatch, packed_batch
from sora_jax.experiment.schema import Settings
from sora_jax.experiment.speed import TRANSFORMER, Costs, clip_sizes
from sora_jax.experiment.stage_settings import CAPTIONER, MixConfig, TrainStage
from sora_jax.models.captioner_flops import captioner_flops, recomputed_flops
from sora_jax.models.flops import Work
from sora_jax.objectives import captioner
from sora_jax.train.state import TrainState, track_name
from sora_jax.train.step import Objective

_CLIPS_SHOWN = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionerStage(TrainStage):
    """Trains the captioner on prepared clips, from where the stage before it ended that trains it.

    Attributes:
      mix: What is drawn.
    """

    trains = CAPTIONER

    mix: MixConfig


class CaptionerKind(TrainKind[CaptionerStage]):
    """Stages of it, each with its mix of clips and its learning rate, train one captioner."""

    stage = CaptionerStage
    after = ("autoencoder", "prepare")
    key = "captioner parameters"

    def conflicts(self, settings: Settings, name: str) -> list[str]:
        """Returns whether the run's texts are not the words themselves, and collections that there are not."""
        said = []
        if settings.text.encoder != "bytes":
            said.append(
                f"stages.{name} writes the bytes of captions, and text.encoder {settings.text.encoder!r} prepares "
                "other tokens: set it to 'bytes' in the run that trains the captioner"
            )
        return said + unknown_collections(settings, name, self.of(settings, name).mix)

    def check(self, settings: Settings, name: str, mesh: Mesh) -> None:
        """Raises UserError where the mesh splits rows or heads unevenly."""
        del name
        check_split(settings, mesh, heads=settings.captioner.heads, key="captioner.heads")

    def build(self, settings: Settings, name: str, key: jax.Array) -> nnx.Module:
        """Returns a fresh captioner."""
        del name
        return build_captioner(settings, key)

    def objective(self, settings: Settings, name: str) -> Objective:
        """Returns the loss of writing captions and of telling which belongs to which clip."""
        del name
        return captioner.make_objective(settings.captioner_loss, dtype=compute_dtype(settings.precision))

    def stream(self, run: Run, name: str) -> PackedBatches:
        """Returns packs of prepared clips; UserError where they were not prepared with the run's autoencoder."""
        stream = PackedBatches(
            open_prepared(run),
            run.settings,
            mix=self.of(run.settings, name).mix,
            part=batch_part(run.mesh),
            tokenizer=CAPTION_TOKENIZER,
            work_flops=lambda work: _step_flops(run.settings, work),
            pairs=run.settings.captioner_loss.pairs(),
        )
        warn_of_left_out(name, stream)
        return stream

    def batches(self, settings: Settings, name: str, *, segment_tokens: int) -> list[StepBatch]:
        """Returns a pack whose rows are full of segments of one size; UserError for segments that no row holds."""
        shape = settings.captioner
        batch = packed_batch(
            settings,
            segment_tokens=segment_tokens,
            accumulate=self.of(settings, name).accumulate,
            widths=(shape.mlp_width, shape.width // shape.heads),
            step_flops=lambda work: _step_flops(settings, work),
            recomputed=lambda work: recomputed_flops(shape, work=work),
            prompted=settings.captioner_loss.pairs() is not None,
        )
        return [batch]

    def show(self, run: Run, name: str) -> Show:
        """Shows clips, held-out ones where there are some, each with what is written of it beside its own caption."""
        settings, stage = run.settings, self.of(run.settings, name)
        clips = _shown_clips(run, videos=stage.mix.videos > 0)
        describer = make_describer(settings, rows=1)
        pixels = [run.codec.decode(clip.latent_THWC[None])[0] for clip in clips]
        track = track_name(settings.ema.widths[0])

        def show(state: TrainState, step: int) -> None:
            params = jax.tree.map(to_host, state.averaged(track))
            pairs = zip(describer(params, clips), clips, strict=True)
            said = [f"{written.text} (its own caption: {clip.captions[0]})" for written, clip in pairs]
            rates = [clip.fps for clip in clips]
            run.sample_log(name, step).described(pixels, rates, said)

        return show

    def validation(self, run: Run, name: str) -> Validate | None:
        """Measures the captioning loss of the averaged weights on held-out clips of the kinds that the stage sees."""
        settings, mix = run.settings, self.of(run.settings, name).mix
        clips = heldout_clips(run)
        if clips is None:
            logging.info("%s: there is no held-out loss: %s", name, NONE_HELD_OUT)
            return None
        packs = HeldoutPacks(
            clips,
            dataclasses.replace(pack_layout(settings), tokenizer=CAPTION_TOKENIZER),
            rows=settings.packing.rows,
            seed=settings.seed,
            kinds=mix.kinds,
            mesh=run.mesh,
        )
        structure = abstract_model(self.maker(settings, name, run.mesh).build)[0]
        measure = CaptionLoss(structure, packs, dtype=compute_dtype(settings.precision), mesh=run.mesh)
        track = track_name(settings.ema.widths[0])
        return lambda state: curves_of(measure(state.averaged(track)).facts())

    def validation_seconds(self, settings: Settings, name: str, costs: Costs, *, clips: int) -> float:
        """Returns how long it takes to measure the captioning loss once."""

        def forward(work: Work) -> float:
            return captioner_flops(settings.captioner, patch_width=settings.patch_width, work=work)

        return costs.measuring_seconds(clips, self.of(settings, name).mix.kinds, forward)

    def step_seconds(self, settings: Settings, name: str, costs: Costs) -> float:
        """Returns how long a step takes, on average over the clips that are drawn."""
        mix = self.of(settings, name).mix
        sizes = clip_sizes(settings, mix.images / (mix.images + mix.videos))
        works = [(share, costs.work(size)) for share, size in sizes]
        return sum(share * costs.speed.seconds(_step_flops(settings, work), TRANSFORMER) for share, work in works)


def _step_flops(settings: Settings, work: Work) -> float:
    """Returns the model FLOPs of a step: the backward pass multiplies twice where the forward pass does."""
    return 3 * captioner_flops(settings.captioner, patch_width=settings.patch_width, work=work)


def _shown_clips(run: Run, *, videos: bool) -> list[Prepared]:
    """Returns clips to be described: held-out ones, or where there are none of those that are trained on."""
    held = heldout_clips(run)
    prepared = open_prepared(run) if held is None else held
    kinds = clips_by_kind(prepared.grid_N3)
    found = kinds["videos" if videos and len(kinds["videos"]) else "images"]
    return [prepared[int(found[place])] for place in sample_log.evenly(len(found), _CLIPS_SHOWN)]
