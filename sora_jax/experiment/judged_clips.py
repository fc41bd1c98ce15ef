"""The two sets of clips by which a generator is judged: real ones, and what is made of their captions, or a folder."""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import logging

from sora_jax.core import rng
from sora_jax.core.distributed import from_first, is_first, wait_for_all
from sora_jax.core.errors import UserError
from sora_jax.core.paths import beside
from sora_jax.data.clips import BadClip, Clip
from sora_jax.data.fitting import Collection, FittedSource
from sora_jax.data.shards.prepared import PreparedSet
from sora_jax.data.sources.base import FolderSource, read_ahead
from sora_jax.data.tokens import clean_caption
from sora_jax.evaluation.generated import JudgedClip
from sora_jax.experiment.datasets import clip_limits, curate_all, open_collections
from sora_jax.experiment.heldout import NONE_HELD_OUT, prepare_heldout
from sora_jax.experiment.kinds.prepare import prepare_stages
from sora_jax.experiment.loading import limits_of, solver_config
from sora_jax.experiment.models import RunModels
from sora_jax.experiment.schema import Settings
from sora_jax.generate.canvas import Canvas
from sora_jax.models.codec import Codec
from sora_jax.train.progress import Progress
from sora_jax.train.workdir import Workdir
from sora_jax.video import shapes

# Instead of a folder: clips that the run never trained on.
HELDOUT = "heldout"
# Of the noise of the first sample; training, examples and prompts use others.
SEED = 2_000
_MADE_AT_ONCE = 64
MOST_SHOWN = 12  # clips that are kept to be looked at


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """What a made clip must have in common with the real one whose caption it follows."""

    caption: str
    shape: tuple[int, int, int]
    fps: float

    def digest(self) -> str:
        """Returns a few characters that no other case has."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self)).encode()).hexdigest()[:12]


class _FittedClips:
    """Clips of one source as the run would see them: the first frames, as many as its samples have, at its sizes.

    Attributes:
      left_out: How many of those that were read cannot be used.
    """

    def __init__(self, settings: Settings, collections: Sequence[Collection], count: int):
        self._frames = limits_of(settings).frames
        cut = [dataclasses.replace(one.limits, max_frames=self._frames) for one in collections]
        self._source = FittedSource(
            [dataclasses.replace(one, limits=limits) for one, limits in zip(collections, cut, strict=True)]
        )
        self._readers, self._count = settings.data.readers, count
        self.left_out = 0

    def __len__(self) -> int:
        """Returns how many clips there may be."""
        return min(self._count, len(self._source))

    def clips(self, count: int | None = None) -> Iterator[Clip]:
        """Yields up to `count` clips, None: as many as asked for, in an order that depends on how many there are."""
        wanted = self._count if count is None else count
        order = rng.generator(0, "evaluation/order").permutation(len(self._source)).tolist()
        found = 0
        with read_ahead(self._fit, order, readers=self._readers) as fitted:
            for one in fitted:
                if isinstance(one, BadClip):
                    self.left_out += 1
                    logging.warning("left out: %s", one)
                    continue
                yield one
                found += 1
                if found == wanted:
                    return

    def _fit(self, index: int) -> Clip | BadClip:
        try:
            clip = self._source[index]
        except BadClip as error:
            return error
        frames = len(clip.pixels_THWC)
        if frames != self._frames:
            cut = f"has {frames} frames once it is cut to whole strides and data.max_tokens"
            return BadClip(clip.source_id, f"{cut}, and samples have {self._frames}")
        return clip


class GivenClips(_FittedClips):
    """Clips of a folder that some model made, with or without captions."""

    def __init__(self, settings: Settings, folder: str, count: int):
        super().__init__(settings, [_folder(settings, folder, captioned=False)], count)

    def read(self, count: int) -> Iterator[JudgedClip]:
        """Yields up to `count` clips."""
        for clip in self.clips(count):
            caption = clean_caption(clip.captions[0]) if clip.captions else None
            yield JudgedClip(clip_THWC=clip.pixels_THWC, fps=clip.fps, caption=caption)


class RealClips(_FittedClips):
    """Real clips, none twice, each with one of its captions.

    Attributes:
      held_out: Whether the run never trained on them, as far as can be told.
      cases: Of those that were read.
      first: Some of them, to be shown.
    """

    def __init__(self, workdir: Workdir, settings: Settings, reference: str, count: int, *, captioned: bool):
        self.held_out = reference == HELDOUT or not _is_trained_on(settings, reference)
        held = reference == HELDOUT
        found = _held(workdir, settings, count) if held else [_folder(settings, reference, captioned=captioned)]
        super().__init__(settings, found, count)
        self._captioned = captioned
        self.cases: list[Case] = []
        self.first: list[np.ndarray] = []
        self._tokenizer, self._text_tokens = settings.text_encoder.tokenizer, settings.text.max_tokens

    def read(self) -> Iterator[JudgedClip]:
        """Yields the clips, and notes what each is."""
        for clip in self.clips():
            caption = self._caption(clip)
            if caption is None and self._captioned:
                self.left_out += 1
                logging.warning("left out: %s: has no caption that a sample could follow", clip.source_id)
                continue
            frames, height, width = clip.pixels_THWC.shape[:3]
            self.cases.append(Case(caption=caption or "", shape=(frames, height, width), fps=float(clip.fps)))
            if len(self.first) < MOST_SHOWN:
                self.first.append(clip.pixels_THWC)
            yield JudgedClip(clip_THWC=clip.pixels_THWC, fps=clip.fps, caption=caption)

    def tell(self) -> None:
        """Warns where there are fewer clips than were asked for: none is counted twice to make up for it."""
        if len(self.cases) < self._count:
            logging.warning(
                "the reference has %d clips that can be used, not %d: each counts once, and as many samples are judged",
                len(self.cases),
                self._count,
            )

    def _caption(self, clip: Clip) -> str | None:
        if not clip.captions:
            return None
        weights = np.asarray(clip.weights or np.ones(len(clip.captions)))
        chosen = rng.generator(0, "evaluation/caption", len(self.cases)).choice(len(weights), p=weights / weights.sum())
        return self._tokenizer.cut(clip.captions[chosen], self._text_tokens)


def _held(workdir: Workdir, settings: Settings, count: int) -> list[Collection]:
    """Returns the clips that the run never trained on; of the drawn world those as long as its samples."""
    frames = limits_of(settings).frames
    if settings.data.source == "shapes":
        alike = {"image_share": float(frames == 1), **({"frames": (frames,)} if frames > 1 else {})}
        drawn = dataclasses.replace(settings.shapes, **alike)
        world = drawn.source(seed=settings.seed, split="heldout", num_clips=count)
        return [Collection(name=HELDOUT, source=world, limits=clip_limits(settings, settings.data))]
    collections = curate_all(open_collections(settings), settings, workdir, writes=False)
    found = [dataclasses.replace(one, source=one.heldout) for one in collections if one.heldout is not None]
    if not found:
        raise UserError(f"{NONE_HELD_OUT}; or give --reference=DIR, a folder of captioned clips")
    return found


def _folder(settings: Settings, path: str, *, captioned: bool) -> Collection:
    frames, data = limits_of(settings).frames, settings.data
    source = FolderSource(path, captions_required=captioned, max_frames=frames, fps=data.fps)
    return Collection(name=path, source=source, limits=clip_limits(settings, data), readers=data.readers)


def _is_trained_on(settings: Settings, path: str) -> bool:
    """Returns whether the run was trained on clips of a folder, or of one that it lies in, after warning of it."""
    folder = Path(path).resolve()
    trained = [(Path(one.path).resolve(), one.source) for one in settings.collections.values() if one.path is not None]
    # Clips in tars or records, which a folder of files may hold as well, are not read from it.
    found = any(
        one in (folder, *folder.parents) or (kind == "folder" and folder in one.parents) for one, kind in trained
    )
    if found:
        logging.warning(
            "the run was trained on clips of %s: samples that copy them come out best, so give clips that it never saw",
            path,
        )
    return found


class Maker:
    """Makes clips of captions once, and keeps them in the workdir.

    Attributes:
      facts: Which weights and which solver make them.
    """

    def __init__(self, models: RunModels, settings: Settings):
        self._models, self._settings = models, settings
        sampling, solver = settings.sampling, solver_config(settings)
        known = models.facts()
        self.facts = {**known, "solver": f"{sampling.solver} {sampling.steps}", "guidance": sampling.guidance.scale}
        told = json.dumps({**known, "solver": repr(solver)}, sort_keys=True)
        self._folder = models.workdir.generated(hashlib.sha256(told.encode()).hexdigest()[:12])

    def path(self, number: int, case: Case) -> Path:
        """Returns the file of the sample of a case; of equal cases each has its own noise."""
        return self._folder / f"{number:06d}_{case.digest()}.npy"

    def read(self, cases: Sequence[Case]) -> Iterator[JudgedClip]:
        """Yields the clip of each case, in their order, after making those that are not there."""
        self._make(cases)
        for number, case in enumerate(cases):
            yield JudgedClip(
                clip_THWC=np.load(self.path(number, case), allow_pickle=False), fps=case.fps, caption=case.caption
            )

    def _make(self, cases: Sequence[Case]) -> None:
        missing = [number for number, case in enumerate(cases) if not self.path(number, case).exists()]
        todo: list[int] = from_first("samples that are missing", lambda: missing)
        if len(todo) < len(cases):
            print(f"{len(cases) - len(todo)} of {len(cases)} samples are made already", flush=True)
        if not todo:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        self._models.read_texts(cases[number].caption for number in todo)
        sampler = self._models.sampler(solver_config(self._settings), videos=len(todo))
        with contextlib.closing(Progress("samples made", total=len(todo), unit="videos")) as progress:
            for start in range(0, len(todo), _MADE_AT_ONCE):
                part = todo[start : start + _MADE_AT_ONCE]
                clips = sampler(self._models.params, [self._canvas(number, cases[number]) for number in part])
                for number, clip_THWC in zip(part, clips, strict=True):
                    _keep(self.path(number, cases[number]), clip_THWC)
                progress.update(start + len(part))
        wait_for_all("samples are made")

    def _canvas(self, number: int, case: Case) -> Canvas:
        settings = self._settings
        grid = shapes.clip_token_grid(case.shape, stride=settings.stride, patch=settings.transformer.patch)
        negative = limits_of(settings).negative
        return Canvas(prompt=case.caption, grid=grid, fps=case.fps, seed=SEED + number, negative=negative)


def _keep(path: Path, clip_THWC: np.ndarray) -> None:
    """Writes the pixels whole or not at all."""
    if is_first():
        temporary = beside(path, ".tmp")
        with temporary.open("wb") as file:
            np.save(file, clip_THWC)
        os.replace(temporary, path)


def heldout_of(workdir: Workdir, settings: Settings, codec: Codec, *, count: int | None) -> PreparedSet:
    """Returns up to `count` held-out clips, None: as configured, of a run that is over; raises as `prepare_heldout`."""
    held = curate_all(open_collections(settings), settings, workdir, writes=False)
    batch = prepare_stages(settings)[0].batch
    return prepare_heldout(workdir, settings, held, codec, count=count or settings.evaluation.clips, batch=batch)
