"""The clips of a run, and what stages train on: numbered batches of windows, or of packs."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import grain
import numpy as np
from absl import logging

from sora_jax.core.errors import UserError
from sora_jax.core.printable import printable
from sora_jax.data.crops import CropConfig, CropStream
from sora_jax.data.curation.source import CuratedSource, VideoFiles
from sora_jax.data.fitting import ClipBudget, Collection
from sora_jax.data.media.file_kinds import HEIC_REMEDY
from sora_jax.data.packing.context import ContextMix
from sora_jax.data.packing.expansion_pairs import ExpansionPairs
from sora_jax.data.packing.packs import groups_beside
from sora_jax.data.packing.pipeline import Batches, RowDataset
from sora_jax.data.shards.prepared import PreparedSet
from sora_jax.data.sources.base import FolderSource, Source
from sora_jax.data.sources.decoded import DecodedSource
from sora_jax.data.sources.prefixed import PrefixedSource
from sora_jax.data.sources.retold import RetoldSource
from sora_jax.data.sources.split import split_source
from sora_jax.data.sources.table import SOURCES
from sora_jax.data.sources.webdataset import TarSource
from sora_jax.data.tokens import Tokenizer
from sora_jax.experiment.schema import DataConfig, Settings
from sora_jax.experiment.stage_settings import MixConfig
from sora_jax.models.flops import Work, step_flops, work_of
from sora_jax.preparation.given import GIVEN_KINDS
from sora_jax.train.progress import Progress
from sora_jax.train.reporter import HostBatch
from sora_jax.train.workdir import Workdir


class Retellable(Source, Protocol):
    """A source of which a table may tell clips anew: `retold` of them."""

    retold: int


Opened = TypeVar("Opened", bound=Retellable)

# Names listed in a warning; a heap may have thousands.
_MOST_NAMED = 20
# Lists of a source, and what to say where they are not empty.
_NOTICES = {
    "uncaptioned": "files without a caption are left out",
    "missing": "captions name no file",
    "unread": "captioned files have an ending that is not read; convert them",
    "heic": f"HEIC pictures are not read; {HEIC_REMEDY}",
    "previews": "pictures are left out, being thumbnails of videos",
    "sharing": "files are left out, since another file has their caption; give each one of its own",
    "linked": "folders behind links are passed over; make them copies, or hard links (cp -rlL)",
    "damaged": "places cannot be read",
}


def open_collections(settings: Settings, *, look: bool = False) -> list[Collection]:
    """Returns the clips that training draws from, nothing curated yet; warns of what a source leaves out.

    Captions are needed where clips are prepared; a run that trains an autoencoder alone takes all clips.
    With `look`, only to see what is there, clips of which none has a caption yet are taken as they are, too.
    """
    return [
        Collection(
            name=name,
            source=_open_source(data, settings, look=look),
            limits=clip_limits(settings, data),
            readers=data.readers,
            heldout=settings.shapes.source(seed=settings.seed, split="heldout") if data.source == "shapes" else None,
        )
        for name, data in settings.collections.items()
    ]


def _open_source(data: DataConfig, settings: Settings, *, look: bool) -> Source:
    given = [kind for kind in settings.context.kinds if kind in GIVEN_KINDS]
    if given and data.source != "folder":
        raise UserError(
            f"context.kinds {', '.join(given)} lie beside clips as files, NAME_{given[0]}.mp4 beside NAME.mp4, which "
            f"data.source {data.source} has none of: take a folder"
        )
    if data.source == "shapes":
        drawn = settings.shapes.source(seed=settings.seed, split="train")
        return drawn if data.captions is None else _told(data, RetoldSource(drawn, data.captions))
    needed = any(settings.stages[name].reads_captions for name in settings.run)
    source = _open_path(data, given, captions_required=(None if look else True) if needed else False)
    if needed and not source.captions_required:
        logging.warning("%s: no clip has a caption yet: they are needed when clips are prepared", data.path)
    if isinstance(source, FolderSource | TarSource):
        logging.info("%s: %s", data.path, source.account)
    _told(data, source, silent=() if source.captions_required else ("uncaptioned",))
    return source if data.prefix is None else PrefixedSource(source, data.prefix)


def _told(data: DataConfig, source: Opened, *, silent: Sequence[str] = ()) -> Opened:
    """Returns the source, after saying what it leaves out, but for the lists in `silent`, and whose captions it has."""
    place = data.path or data.source
    for name, what in _NOTICES.items():
        found = [] if name in silent else getattr(source, name, [])
        if found:
            listed = ", ".join(map(printable, found[:_MOST_NAMED])) + (", ..." if found[_MOST_NAMED:] else "")
            logging.warning("%s: %d %s: %s", place, len(found), what, listed)
    if data.captions is not None:
        said = "%s: %s has captions of %d of %d clips; the others keep theirs"
        logging.info(said, place, data.captions, source.retold, len(source))
    return source


def _open_path(data: DataConfig, given: Sequence[str], *, captions_required: bool | None) -> DecodedSource:
    """Returns the clips under `data.path`, which `read_settings` has made sure of."""
    assert data.path is not None, data.source
    return SOURCES[data.source].open(
        data.path,
        **({"kinds": given} if given else {}),
        captions=data.captions,
        captions_required=captions_required,
        max_frames=data.max_frames,
        fps=data.fps,
    )


def curate(collection: Collection, data: DataConfig, directory: Path, *, writes: bool = True) -> Collection:
    """Returns what curation keeps of a collection, after scanning what is new in it; all of it where that is off.

    `directory` holds the table of what was measured; of several processes that read it only one may be told to write.
    """
    config, source = data.curation, collection.source
    if config.off:
        return collection
    assert isinstance(source, VideoFiles), data.source
    with contextlib.closing(Progress("curation", total=len(source), unit="files")) as progress:
        curated = CuratedSource(
            source,
            config,
            max_frames=data.max_frames,
            fps=data.fps,
            readers=data.readers,
            directory=directory,
            writes=writes,
            progress=progress.update,
        )
    print(f"  curation: {curated.summary()}", flush=True)
    return dataclasses.replace(collection, source=curated)


def curate_all(
    collections: list[Collection], settings: Settings, workdir: Workdir, *, writes: bool
) -> list[Collection]:
    """Returns what curation keeps of each collection, without the clips that are held out; `writes` as in `curate`.

    Raises UserError where a share holds out no clip, or all.
    """
    found = []
    for one in collections:
        data = settings.collections[one.name]
        kept = curate(one, data, workdir.curation(one.name), writes=writes)
        found.append(hold_out(kept, data))
    return found


def hold_out(collection: Collection, data: DataConfig) -> Collection:
    """Returns a collection with the clips apart that `data.heldout_share` holds out; raises as `split_source`.

    After curation, which drops repeats: no clip is held out of which training sees a copy that curation found.
    """
    if not data.heldout_share:
        return collection
    source, heldout = split_source(collection.source, data.heldout_share)
    logging.info("%s: %d of %d clips are held out", collection.name, len(heldout), len(collection.source))
    return dataclasses.replace(collection, source=source, heldout=heldout)


def clip_limits(settings: Settings, data: DataConfig) -> ClipBudget:
    """Returns what is done to the clips of a collection before they are encoded."""
    return ClipBudget(
        stride=settings.token_stride,
        min_tokens=data.min_tokens,
        max_tokens=data.max_tokens,
        max_frames=data.max_frames,
        tokenizer=settings.text_encoder.tokenizer,
        max_text_tokens=settings.text.max_tokens,
        max_bad_share=data.max_bad_share,
        square_crop=data.square_crop,
    )


class PixelBatches:
    """Windows of clips for the autoencoder; a token is a pixel. `part` is (index, count): what is read of a batch."""

    def __init__(self, source: Source, config: CropConfig, *, seed: int, part: tuple[int, int] = (0, 1)):
        index, self._parts = part
        self._crops = CropStream(source, config, seed=seed, process_index=index, process_count=self._parts)

    def batches(self, start: int) -> grain.DatasetIterator:
        """Returns batches `start`, `start` + 1, ..., read ahead."""
        return iter(self._crops.batches(start))

    def fingerprint(self) -> dict[str, Any]:
        """Returns what the order of batches depends on."""
        return self._crops.fingerprint()

    def names(self, number: int) -> list[str]:
        """Returns what the clips of a batch are called."""
        return self._crops.names(number)

    def tokens(self, batch: HostBatch) -> tuple[int, int]:
        """Returns the number of pixels in all parts, twice: nothing is padded."""
        pixels = self._parts * batch["clip_BTHWC"].size // 3
        return pixels, pixels

    def flops(self, batch: HostBatch) -> float:
        """Returns 0: those of convolutions are not counted."""
        del batch
        return 0.0


class PackedBatches:
    """Packs of prepared clips for the transformer.

    `part` is (index, count): what is read of a batch. `trained` is the share of the weights that have a gradient.
    `tokenizer`, of as many tokens as the clips were prepared with, and `work_flops`, the model FLOPs of a step, are
    those of another model than the transformer; None: of this.
    """

    def __init__(
        self,
        prepared: PreparedSet,
        settings: Settings,
        *,
        mix: MixConfig,
        token_drop: tuple[float, float] = (0.0, 0.0),
        part: tuple[int, int] = (0, 1),
        trained: float = 1.0,
        context: ContextMix | None = None,
        tokenizer: Tokenizer | None = None,
        work_flops: Callable[[Work], float] | None = None,
        pairs: ExpansionPairs | None = None,
    ):
        weights = mix.collections
        self._part = part
        self._blind = settings.context.blind
        self._work_flops = work_flops or (lambda work: _transformer_flops(settings, work, trained=trained))
        self._per_batch = settings.packing.rows
        self.rows = RowDataset(
            prepared,
            settings.packing,
            patch=settings.transformer.patch,
            time_rate=settings.transformer.time_rate,
            tokenizer=tokenizer or settings.text_encoder.tokenizer,
            seed=settings.seed,
            mix=mix.kinds,
            weights_G=[weights.get(name, 0.0) for name in settings.collections] if weights else None,
            token_drop=token_drop,
            shown=settings.shown,
            context=context,
            pairs=pairs,
            fps=settings.counted_fps,
        )

    def batches(self, start: int) -> Batches:
        """Returns batches `start`, `start` + 1, ..., read ahead; nothing before `start` is read."""
        index, count = self._part
        return self.rows.batches(start_row=start * self._per_batch, process_index=index, process_count=count)

    def fingerprint(self) -> dict[str, Any]:
        """Returns what the order of batches depends on."""
        return self.rows.fingerprint()

    def names(self, number: int) -> list[str]:
        """Returns what the samples of a batch are called, of all processes, row by row."""
        rows = range(number * self._per_batch, (number + 1) * self._per_batch)
        return [name for row in rows for name in self.rows.names(row)]

    def tokens(self, batch: HostBatch) -> tuple[int, int]:
        """Returns (real, possible) tokens of a pack, the other parts taken to be as full as this one."""
        segment_BL, (_, parts) = batch["segment_BL"], self._part
        return parts * int(np.count_nonzero(segment_BL)), parts * segment_BL.size

    def flops(self, batch: HostBatch) -> float:
        """Returns the model FLOPs of a step on a pack, all parts together, taken to be alike."""
        alone_BL = groups_beside(batch) if self._blind and "part_BL" in batch else None
        arrays = batch["segment_BL"], batch["text_segment_BK"], batch.get("image_segment_BM")
        work = work_of(*arrays, alone_BL=alone_BL)
        return self._part[1] * self._work_flops(work)


def _transformer_flops(settings: Settings, work: Work, *, trained: float) -> float:
    """Returns the model FLOPs of a step of the transformer."""
    text, wide = settings.text_encoder, settings.patch_width
    return step_flops(settings.transformer, text, patch_width=wide, work=work, trained=trained)
