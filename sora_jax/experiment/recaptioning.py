"""Captions of clips written anew: by the captioner of a run, or by a model behind a server, into a table."""

import collections
import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from sora_jax.checkpoints.frozen import params_fingerprint
from sora_jax.core.errors import UserError
from sora_jax.core.paths import check_writable, expanded
from sora_jax.core.stop import StopSignal
from sora_jax.data.clips import Clip
from sora_jax.data.fitting import ClipBudget, Collection
from sora_jax.data.sources.base import Source, digest
from sora_jax.data.sources.caption_tables import TABLE_NAMES
from sora_jax.data.sources.remote import is_remote
from sora_jax.experiment.captioners import load_captioner, make_describer
from sora_jax.experiment.datasets import curate, open_collections
from sora_jax.experiment.models import RunModels
from sora_jax.experiment.schema import Settings
from sora_jax.experiment.settings import read_settings
from sora_jax.generate.captioning import EncodedClip
from sora_jax.preparation.caption_filters import DraftFilters
from sora_jax.preparation.caption_rows import CaptionRows
from sora_jax.preparation.drafts import Draft, Drafts
from sora_jax.preparation.recaption import ClipDescriber, RecaptionSummary, recaption
from sora_jax.preparation.remote_captions import RemoteDescriber
from sora_jax.train.progress import Progress
from sora_jax.train.workdir import Workdir
from sora_jax.video import latents

# Clips of one size that are encoded at once, filled up with repeats: so each size is one program.
_ENCODED = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecaptionRequest:
    """What is to be captioned, and by what.

    Attributes:
      output: The table.
      workdir: Folder of a run whose captioner writes and whose config counts; None: there is none, a server writes.
      data: A folder of clips; None: those of the config.
      server: Address of a server that writes instead; None: the captioner does.
      model: Its model; None: the only one it has.
      count: How many clips, from the first; None: all.
      retry_failed: Whether clips that failed before are tried again.
    """

    output: Path
    workdir: str | None
    data: str | None
    server: str | None
    model: str | None
    count: int | None
    retry_failed: bool


def caption_anew(request: RecaptionRequest, config: Any, changes: Mapping[str, Any]) -> RecaptionSummary:
    """Returns what was done so that clips have captions in a table; it is printed as well.

    Args:
      request: What is wanted.
      config: What counts where there is no workdir.
      changes: Values by the names of keys, which take the place of those of the workdir's config.

    Raises UserError for what does not go together, `Preempted` after a signal, and as `CaptionRows` and `recaption`.
    """
    _check(request)
    check_writable(request.output)
    workdir = None if request.workdir is None else Workdir(request.workdir)
    settings = read_settings(_told(request, config if workdir is None else _changed(workdir.config(), changes)))
    # Before what takes its time, so that no other process writes the same file meanwhile.
    with CaptionRows(request.output) as rows:
        collection = _clips(settings, request.output)
        describer = _describer(request, settings, workdir, collection.limits)
        filters = DraftFilters(
            settings.recaption, tokenizer=settings.text_encoder.tokenizer, max_tokens=settings.text.max_tokens
        )
        total = min(len(collection.source), request.count or len(collection.source))
        with StopSignal() as stop, contextlib.closing(Progress("captions", total=total, unit="clips")) as bar:

            def show(done: int) -> None:
                bar.update(done)
                stop.check(f"captions of {done} of {total} clips are saved")

            return recaption(
                collection,
                describer,
                filters,
                settings.recaption,
                rows,
                count=request.count,
                retry_failed=request.retry_failed,
                progress=show,
            )


def _check(request: RecaptionRequest) -> None:
    """Raises UserError where flags do not go together."""
    if request.server is None and request.model is not None:
        raise UserError(f"--model={request.model} is one of a server: give its address as --server=URL")
    if request.server is None and request.workdir is None:
        raise UserError("nothing writes captions: give --workdir=DIR of a run with a captioner, or --server=URL")
    if request.data is not None and not is_remote(request.data) and not Path(request.data).is_dir():
        raise UserError(f"--data={request.data} is not a folder: give one with videos or images")


def _changed(config: Mapping[str, Any], changes: Mapping[str, Any]) -> ConfigDict:
    """Returns a config with other values of keys."""
    changed = ConfigDict(dict(config))
    try:
        changed.update_from_flattened_dict(dict(changes))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"the config of the workdir has no such key or value: {error}") from error
    return changed


def _told(request: RecaptionRequest, config: Any) -> Any:
    """Returns a config with the folder that is asked for, without a prefix, which training puts before captions."""
    told: Any = ConfigDict(config).unlock()
    if request.data is not None:
        told.data.source, told.data.path, told.data.captions = "folder", request.data, None
        told.more_data = ConfigDict()
    told.data.prefix = None
    captions = told.data.captions
    if captions is not None and Path(expanded(captions)).resolve() == request.output.resolve():
        raise UserError(f"--output={request.output} is data.captions, which the clips have now: give another file")
    folder = Path(expanded(told.data.path or ".")).resolve()
    is_table = told.data.source == "folder" and request.output.name.lower() in TABLE_NAMES
    if is_table and request.output.parent.resolve().is_relative_to(folder):
        raise UserError(
            f"--output={request.output} would be read as the table of the folder {folder} before it is whole: give "
            "another name, such as recaptioned.jsonl, or another place"
        )
    return told


def _clips(settings: Settings, output: Path) -> Collection:
    """Returns the clips, also those without a caption."""
    if settings.more_data:
        names = ", ".join(settings.collections)
        raise UserError(f"a table of captions is of one collection, and the config has {names}: give one as --data=DIR")
    # No stage that would need captions, so that clips without one are taken, too.
    (collection,) = open_collections(dataclasses.replace(settings, run=()))
    return curate(collection, settings.data, output.with_suffix(".curation"))


def _describer(
    request: RecaptionRequest, settings: Settings, workdir: Workdir | None, limits: ClipBudget
) -> ClipDescriber:
    if request.server is None:
        assert workdir is not None
        return RunDescriber(workdir, settings, limits)
    if settings.recaption.min_agreement is not None:
        raise UserError("recaption.min_agreement needs the captioner of a run: set None, or leave --server out")
    server = settings.recaption.server
    return RemoteDescriber(server.client(request.server, request.model), server)


class RunDescriber:
    """Describes clips by the captioner of a run, as `preparation.recaption` asks for it: one caption of each.

    Attributes:
      by: Stage and step, and digests of the weights and of how they are used.
    """

    def __init__(self, workdir: Workdir, settings: Settings, limits: ClipBudget):
        self._params, stage, step = load_captioner(workdir, settings)
        self._write = make_describer(settings, rows=settings.packing.rows)
        self._codec, self._limits = RunModels(workdir, settings).codec, limits
        self._compares, self._sizes = settings.recaption.min_agreement is not None, set[tuple[int, ...]]()
        weights = digest(params_fingerprint(self._params), self._codec.fingerprint())
        how = digest(dataclasses.asdict(settings.captioning), settings.text.max_tokens, *_seen(limits, settings))
        self.by: Mapping[str, str] = {"model": f"{stage} {step}", "weights": weights, "how": how}

    def read(self, source: Source, index: int) -> Clip:
        """Returns a clip as it would be prepared; raises BadClip."""
        return self._limits.fit(source, index).clip

    def describe(self, clips: Sequence[Clip]) -> list[Drafts]:
        """Returns the caption of each clip, with how well they agree where that is asked for."""
        encoded = [
            EncodedClip(latent_THWC=latent_THWC, fps=clip.fps)
            for clip, latent_THWC in zip(clips, self._encode(clips), strict=True)
        ]
        written = self._write(self._params, encoded)
        agreements: list[float | None] = [None] * len(clips)
        if self._compares:
            of_clips, of_texts = self._write.compared(self._params, encoded, [one.text for one in written])
            agreements = [*np.sum(of_clips * of_texts, axis=-1).tolist()]
        return [
            Drafts(captions=(Draft(text=one.text, whole=one.whole, agreement=agreement),))
            for one, agreement in zip(written, agreements, strict=True)
        ]

    def _encode(self, clips: Sequence[Clip]) -> list[np.ndarray]:
        """Returns the normalised latents, float32 (t, h, w, C), of clips; those of one size are encoded together."""
        of_size = collections.defaultdict[tuple[int, ...], list[int]](list)
        for number, clip in enumerate(clips):
            of_size[clip.pixels_THWC.shape].append(number)
        if new := of_size.keys() - self._sizes:
            logging.info("clips of %d new sizes: the programs of each are compiled first", len(new))
            self._sizes |= new
        found: dict[int, np.ndarray] = {}
        for numbers in of_size.values():
            for start in range(0, len(numbers), _ENCODED):
                members = numbers[start : start + _ENCODED]
                filled = members + [members[-1]] * (_ENCODED - len(members))
                raw_BTHWC = self._codec.encode(np.stack([clips[number].pixels_THWC for number in filled]))
                latents_BTHWC = latents.normalise(raw_BTHWC, self._codec.mean_C, self._codec.scale_C)
                found |= dict(zip(members, latents_BTHWC, strict=False))
        return [found[number] for number in range(len(clips))]


def _seen(limits: ClipBudget, settings: Settings) -> list[Any]:
    """Returns what of a clip is seen: how it is read and cut."""
    return [
        limits.stride,
        limits.min_tokens,
        limits.max_tokens,
        limits.max_frames,
        limits.square_crop,
        settings.data.fps,
    ]
