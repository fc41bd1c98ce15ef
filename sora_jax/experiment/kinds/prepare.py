"""The kind of stage that encodes all clips once, to shards; several processes may each encode a share."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh

from sora_jax.core.config import at_least_one
from sora_jax.core.distributed import from_first, gather, is_first, wait_for_all
from sora_jax.core.errors import UserError
from sora_jax.core.mesh import MeshConfig, make_mesh
from sora_jax.core.printable import printable
from sora_jax.core.stop import StopSignal
from sora_jax.data.fitting import Collection
from sora_jax.data.shards.catalogue import read_catalogue
from sora_jax.data.shards.prepared import PreparedSet
from sora_jax.data.sources.base import fingerprint
from sora_jax.experiment.codec_programs import compile_halves_ahead, encoder_chunks
from sora_jax.experiment.datasets import PackedBatches
from sora_jax.experiment.heldout import prepare_heldout
from sora_jax.experiment.kinds.base import Before, Kind, Run
from sora_jax.experiment.loading import load_codec, load_shower
from sora_jax.experiment.schema import Settings
from sora_jax.experiment.speed import CONVOLUTIONS, Costs
from sora_jax.experiment.stage_settings import Stage
from sora_jax.preparation.captions import prepare_captions
from sora_jax.preparation.encode import Share, finish, header, prepare
from sora_jax.preparation.sharing import take_prepared
from sora_jax.train.progress import Part
from sora_jax.train.workdir import MAIN, Workdir

# Of a collection: what its clips are cut to before they are encoded.
_CUT = ("max_frames", "fps", "min_tokens", "max_tokens", "square_crop")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareStage(Stage):
    """Encodes all clips once, to shards.

    Attributes:
      kind: As in `Stage`.
      batch: Clips encoded at once.
      clips_per_shard: Records of one file.
      start_from: Workdir of a run whose shards are taken over first; None: of none.
    """

    reads_clips = True
    reads_captions = True

    kind: str
    batch: int
    clips_per_shard: int
    start_from: str | None

    def __post_init__(self):
        at_least_one(self, "batch", "clips_per_shard")


class PrepareKind(Kind[PrepareStage]):
    """What later stages read, they read from the shards alone."""

    stage = PrepareStage
    after = ("autoencoder",)
    once = True
    place = "one of {kind}"
    takes_in_clips = True
    compiling = (15.0, 8.0)

    def is_outdated(self, run: Run, name: str, until: str | None) -> bool:
        """Returns whether the clips are others than those that were prepared, and should now be prepared as well.

        A run of which a later stage has begun to train goes on with what was prepared, unless it is told otherwise.
        """
        catalogues = [(read_catalogue(run.workdir.prepared(one.name)), one.source) for one in run.collections]
        if all(catalogue and catalogue.source == fingerprint(source) for catalogue, source in catalogues):
            return False
        later = run.settings.run[run.settings.run.index(name) + 1 :]
        begun = [other for other in later if run.workdir.checkpoints(other).exists()]
        if begun and until != self.of(run.settings, name).kind and not run.fresh_data:
            logging.warning(
                "the clips changed after they were prepared; %s goes on with what was prepared then: pass "
                "--fresh_data to take in the new ones",
                begun[-1],
            )
            return False
        return True

    def expected(self, settings: Settings, name: str, costs: Costs, workdir: Workdir, *, clips: int) -> Part:
        """Returns how long this process takes for its share of the clips, and how many of it are encoded."""
        stage = self.of(settings, name)
        share = Share(index=jax.process_index(), count=jax.process_count())
        total, compiling = len(share.of(clips, chunk=stage.clips_per_shard)), costs.speed.once(*self.compiling)
        mine = f"part{jax.process_index():03d}of"
        done = stage.clips_per_shard * len(list(workdir.prepared().glob(f"{mine}*.index.npz")))
        return Part(
            name=name,
            total=total,
            unit="clips",
            each=costs.speed.seconds(stage.batch * costs.pixels * costs.encode, CONVOLUTIONS) / stage.batch,
            once=compiling,
            compiling=compiling,
            done=min(done, total),
        )

    def compile_ahead(self, run: Run, name: str) -> None:
        """Lets `run.ahead` compile encoding of the clips of the drawn world."""
        clips = self.of(run.settings, name).batch
        compile_halves_ahead(run.ahead, encoder_chunks, run.settings, run.mesh, clips=clips)

    def run(self, run: Run, name: str, before: Before) -> dict[str, Any]:
        """Encodes every clip of all collections once, and makes them the sets that later stages read."""
        del before
        share = Share(index=jax.process_index(), count=jax.process_count())
        facts = encode_share(run.settings, run.workdir, run.collections, share, run.stop, run.progress.update)
        wait_for_all(f"{name}: every share is encoded")
        if is_first():
            for collection in run.collections:
                finish(collection, run.workdir.prepared(collection.name))
        wait_for_all(f"{name}: the catalogue is written")
        return facts


def encode_share(
    settings: Settings,
    workdir: Workdir,
    collections: Sequence[Collection],
    share: Share,
    stop: StopSignal,
    shown: Callable[[int], None],
) -> dict[str, Any]:
    """Returns facts of encoding one process's share of the clips that are not encoded yet.

    Of the processes of one run the facts are those of all, and all go on from chunk to chunk together, so that a signal
    to one stops them all. `shown` is called with how many clips of the share are done.
    """
    stage = prepare_stages(settings)[0]
    codec = load_codec(workdir, settings, mesh=_own_mesh(settings))
    shower = load_shower(settings, codec)
    controls = settings.context.controls()
    _take_over(settings, workdir, collections, header(codec, settings.text_encoder.tokenizer, shower, controls))
    counts = clips_of_share(settings, collections, share)
    facts = {}
    for number, collection in enumerate(collections):
        before = sum(counts[:number])

        def after(clips: int, before: int = before) -> None:
            gather("a chunk", False)
            shown(before + clips)
            stop.check(f"{before + clips} of {sum(counts)} clips are prepared")

        summary = prepare(
            collection,
            codec,
            workdir.prepared(collection.name),
            batch=stage.batch,
            clips_per_shard=stage.clips_per_shard,
            share=share,
            shower=shower,
            controls=controls,
            progress=after,
        )
        facts = {key: facts.get(key, 0) + value for key, value in dataclasses.asdict(summary).items()}
    while not all(gather("a chunk", True)):  # others have chunks left
        stop.check(f"all {sum(counts)} clips of this process are prepared")
    settings.text_encoder.release()
    every = gather("what was prepared", facts)
    facts = {key: sum(one[key] for one in every) for key in facts}
    print("  " + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in facts.items()), flush=True)
    return facts


def _take_over(
    settings: Settings, workdir: Workdir, collections: Sequence[Collection], made_with: Mapping[str, object]
) -> None:
    """Takes over what the run that the stage names prepared, if it names one; see `preparation.sharing`.

    Collections that it has not are left to be encoded.
    """
    stage = prepare_stages(settings)[0]
    if stage.start_from is None:
        return
    start = Workdir(stage.start_from)

    def take() -> None:
        _check_cut_alike(settings, start)
        there = {MAIN, *start.config().get("more_data", {})}
        for name in (one.name for one in collections if one.name in there):
            take_prepared(start.prepared(name), workdir.prepared(name), made_with)

    from_first("clips that another run prepared", take)


def _check_cut_alike(settings: Settings, start: Workdir) -> None:
    """Raises UserError where the clips of another run were cut to other limits: nobody would see it of the shards."""
    config = start.config()
    told: list[tuple[str, Mapping[str, Any], object, tuple[str, ...]]]
    told = [("text.", config["text"], settings.text, ("max_tokens",))]
    for name, data in settings.collections.items():
        place = "data." if name == "main" else f"more_data.{name}."
        told.append((place, config["data"] if name == "main" else config["more_data"].get(name, {}), data, _CUT))
    for place, before, now, keys in told:
        for key in keys:
            there, here = before.get(key, getattr(now, key)), getattr(now, key)
            if there != here:
                raise UserError(
                    f"stages.prepare.start_from: clips of {start.path} were prepared with {place}{key} {there}, and "
                    f"here it is {here}: give the same, or leave start_from out, and all clips are encoded"
                )


def reword_all(settings: Settings, workdir: Workdir, collections: Sequence[Collection], stop: StopSignal) -> None:
    """Writes captions that changed into the shards of every collection; see `preparation.captions`.

    Shards of the run that the stage names are taken over first. Raises UserError where no caption changed, and the
    config names none.
    """
    stage = prepare_stages(settings)[0]
    _take_over(settings, workdir, collections, settings.text_encoder.tokenizer.recipe)
    before = _note_reworded(settings, workdir)
    for collection in collections:
        total = len(collection.source)

        def after(clips: int, total: int = total) -> None:
            stop.check(f"{clips} of {total} clips have their captions")

        summary = prepare_captions(
            collection,
            workdir.prepared(collection.name),
            clips_per_shard=stage.clips_per_shard,
            progress=after,
        )
        told = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in dataclasses.asdict(summary).items())
        print(f"  captions of {collection.name}: {told}; no clip was encoded", flush=True)
    settings.text_encoder.release()
    if _note_reworded(settings, workdir) == before and all(
        data.captions is None for data in settings.collections.values()
    ):
        raise UserError(
            "no caption changed since the clips were prepared, and no file of captions is named: pass "
            "--config.data.captions=FILE (.jsonl, .csv or .parquet), with a line for each clip that is told anew"
        )


def _note_reworded(settings: Settings, workdir: Workdir) -> str:
    """Returns the fingerprint of what is prepared now, after noting which clips it holds, whatever their captions."""
    prepared = PreparedSet(*(workdir.prepared(name) for name in settings.collections))
    found = prepared.fingerprint()
    workdir.note_reworded(found, prepared.clips_fingerprint())
    return found


def clips_of_share(settings: Settings, collections: Sequence[Collection], share: Share) -> list[int]:
    """Returns how many clips of each collection a share has."""
    chunk = prepare_stages(settings)[0].clips_per_shard
    return [len(share.of(len(collection.source), chunk=chunk)) for collection in collections]


def prepare_stages(settings: Settings) -> list[PrepareStage]:
    """Returns the stages of the run that encode clips: one, or none where it trains an autoencoder alone."""
    stages = (settings.stages[name] for name in settings.run)
    return [stage for stage in stages if isinstance(stage, PrepareStage)]


def check_prepares(settings: Settings) -> None:
    """Raises UserError where no stage of the run encodes clips."""
    if not prepare_stages(settings):
        named = ", ".join(name for name, stage in settings.stages.items() if isinstance(stage, PrepareStage))
        raise UserError(
            f"no stage of the run {', '.join(settings.run)} prepares clips: name one in config.run"
            f"{f', such as {named}' if named else ', of the kind prepare'}"
        )


def prepare_names(settings: Settings) -> list[str]:
    """Returns the names of these stages."""
    return [name for name in settings.run if isinstance(settings.stages[name], PrepareStage)]


def _own_mesh(settings: Settings) -> Mesh:
    """Returns the mesh on which a process encodes its share: as configured, or all its devices side by side."""
    if jax.process_count() == 1:
        return make_mesh(settings.mesh)
    return make_mesh(MeshConfig(data=None, fsdp=1, sequence=1, tensor=1), jax.local_devices())


def open_prepared(run: Run) -> PreparedSet:
    """Returns the clips that the run has prepared; UserError where that was not with its autoencoder and texts."""
    settings = run.settings
    made_with = header(run.codec, settings.text_encoder.tokenizer, load_shower(settings, run.codec))
    expected = {key: str(value) for key, value in made_with.items() if isinstance(value, str)}
    return PreparedSet.open([run.workdir.prepared(collection) for collection in settings.collections], expected)


def heldout_clips(run: Run) -> PreparedSet | None:
    """Returns the held-out clips that the run's models are measured on; None where no collection holds clips out."""
    if not any(one.heldout is not None for one in run.collections):
        return None
    settings, batch = run.settings, prepare_stages(run.settings)[0].batch
    count = settings.evaluation.clips
    return prepare_heldout(run.workdir, settings, run.collections, run.codec, count=count, batch=batch)


def warn_of_left_out(name: str, stream: PackedBatches) -> None:
    """Names the samples that no row of the stage `name` holds, and counts those that train without context."""
    for sample, reason in stream.rows.left_out().items():
        logging.warning("%s: %s is left out: %s", name, printable(sample), reason)
    lacking = stream.rows.without_context()
    if lacking is None:
        return
    for kind, count in lacking.missing.items():
        logging.warning("%s: %d of %d clips have no %s, and train without it", name, count, lacking.of, kind)
    if lacking.long:
        logging.warning(
            "%s: %d of %d clips fit no row with all that may be beside them, and then train without: they need up to "
            "%d tokens and a row has %d; raise packing.tokens",
            *(name, lacking.long, lacking.of, lacking.longest, lacking.room),
        )
