"""The prepare stage: every clip of a source -> fitted -> latent -> shards, once.

Clips that are not prepared yet go chunk by chunk in the order of the source, and a chunk is a shard. So a run that was
stopped goes on after the last chunk that it finished, and one over a heap that has grown encodes what is new.
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sora_jax.core.errors import DataError, UserError
from sora_jax.data.clips import LITTLE_CUT, BadClip, Clip, Fitted
from sora_jax.data.fitting import ClipBudget, Collection
from sora_jax.data.shards.catalogue import write_catalogue
from sora_jax.data.shards.prepared import Prepared, ShardWriter
from sora_jax.data.sources.base import read_ahead
from sora_jax.data.tokens import Tokenizer
from sora_jax.models.codec import Codec
from sora_jax.models.vision.shown import Shower
from sora_jax.preparation.context import ContextEncoder, Controls, recipes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """Which part of the clips one of `count` processes prepares; chunks are dealt to them in turn."""

    index: int = 0
    count: int = 1

    def __post_init__(self):
        if not 0 <= self.index < self.count:
            raise UserError(f"process_index {self.index} must be 0 or more and less than process_count {self.count}")

    @property
    def name(self) -> str:
        """How its shards are called."""
        return f"part{self.index:03d}of{self.count:03d}"

    def of(self, clips: int, *, chunk: int) -> list[int]:
        """Returns the numbers, among so many clips in chunks of `chunk`, that are this process's."""
        return [number for number in range(clips) if number // chunk % self.count == self.index]


WHOLE = Share()


@dataclasses.dataclass(kw_only=True)
class Summary:
    """What a preparation did, this time: counts of clips, and of what was cut from them.

    Frames that are left in files are known of clips that are no windows of curation.
    """

    written: int = 0
    already_done: int = 0
    skipped: int = 0
    frames_encoded: int = 0
    frames_left_in_files: int = 0
    trimmed_frames: int = 0
    scaled_down: int = 0
    cropped_over_2_percent: int = 0
    cut_captions: int = 0


def header(
    codec: Codec, tokenizer: Tokenizer, shower: Shower | None = None, controls: Controls | None = None
) -> dict[str, object]:
    """Returns what the shards say they were made with; `shower` where the model is shown frames, `controls` if any."""
    return {
        "autoencoder": codec.fingerprint(),
        **tokenizer.recipe,
        **({} if shower is None else {"shown": shower.recipe()}),
        **({"context": recipes(controls)} if controls else {}),
        "latent_mean": codec.mean_C.tolist(),
        "latent_scale": codec.scale_C.tolist(),
        "strides": list(codec.stride[:2]),
        "channels": codec.config.channels,
    }


def prepare(
    collection: Collection,
    codec: Codec,
    directory: Path,
    *,
    batch: int,
    clips_per_shard: int,
    share: Share = WHOLE,
    shower: Shower | None = None,
    controls: Controls | None = None,
    whole_batches: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Summary:
    """Returns the summary of writing all clips of a share that are not written yet; `finish` makes them a set.

    Args:
      collection: The clips, and what is done to them.
      codec: What encodes them.
      directory: Of the shards.
      batch: Clips of one size encoded at once.
      clips_per_shard: Clips of a chunk.
      share: Of this process.
      shower: Encodes what the model is shown of each clip; None: it is shown nothing.
      controls: What is made and encoded beside each clip, by name; None: nothing.
      whole_batches: Whether batches of all sizes are filled up with repeats, as where their programs are compiled.
      progress: Called after each chunk with the number of clips, of the share, that are done.
    """
    source, tokenizer, summary = collection.source, collection.limits.tokenizer, Summary()
    made_with = header(codec, tokenizer, shower, controls)
    shards = {"header": made_with, "tokenizer": tokenizer, "records_per_shard": clips_per_shard}
    with ShardWriter(directory, name=share.name, **shards) as writer:
        own = share.of(len(source), chunk=clips_per_shard)
        todo = [index for index in own if (source.source_id(index), source.origin(index)) not in writer.done]
        summary.already_done = len(own) - len(todo)
        for start in range(0, len(todo), clips_per_shard):
            chunk = todo[start : start + clips_per_shard]
            beside = ContextEncoder(controls or {}, codec, batch=batch, stride=collection.limits.stride)
            encoder = _Encoder(collection, codec, shower, beside, batch, writer, summary, whole_batches=whole_batches)
            for sample in encoder.encode(chunk):
                writer.add(sample)
            writer.close()
            progress(summary.already_done + start + len(chunk))
    return summary


def finish(collection: Collection, directory: Path) -> None:
    """Makes the shards in `directory` the set of the collection's clips, once all shares are prepared.

    Raises `DataError` when clips are missing, or more than `max_bad_share` of them were skipped.
    """
    total, allowed = len(collection.source), collection.limits.max_bad_share
    skipped = len(write_catalogue(directory, collection.source))
    if skipped > allowed * total:
        raise DataError(
            f"{skipped} of {total} clips could not be used, more than the share of {allowed:g} "
            f"that data.max_bad_share allows; {directory / 'skipped.jsonl'} names each with its reason"
        )


class _Encoder:
    """Turns the clips of a chunk into samples; pixels are held only until a batch of their size is full."""

    def __init__(
        self,
        collection: Collection,
        codec: Codec,
        shower: Shower | None,
        beside: ContextEncoder,
        batch: int,
        writer: ShardWriter,
        summary: Summary,
        *,
        whole_batches: bool,
    ):
        self._source, self._limits, self._readers = collection.source, collection.limits, collection.readers
        self._codec, self._shower, self._batch, self._writer, self._summary = codec, shower, batch, writer, summary
        self._beside = beside
        self._waiting: dict[tuple[int, ...], dict[int, Fitted]] = collections.defaultdict(dict)
        self._whole_batches = whole_batches
        self._common: set[tuple[int, ...]] = set()  # sizes that filled a batch
        self._samples: dict[int, Prepared] = {}

    def encode(self, indices: Sequence[int]) -> list[Prepared]:
        """Returns the samples in the order of `indices`; clips that cannot be used are told to the writer."""
        with read_ahead(self._fit, indices, readers=self._readers) as clips:
            for index, fitted in zip(indices, clips, strict=True):
                if isinstance(fitted, BadClip):
                    self._writer.skip((self._source.source_id(index), self._source.origin(index)), fitted.reason)
                    self._summary.skipped += 1
                else:
                    self._add(index, fitted)
        for size, members in self._waiting.items():
            # A rest is filled up with repeats, so that its size is not compiled for another batch.
            fills = self._whole_batches or size in self._common
            self._encode_batch(members, length=self._batch if fills else len(members))
        for index, context in self._beside.encoded().items():
            self._samples[index] = dataclasses.replace(self._samples[index], context=context)
        samples = [self._samples[index] for index in indices if index in self._samples]
        return with_texts(samples, self._limits.tokenizer) if self._limits.tokenizer.stored else samples

    def _fit(self, index: int) -> Fitted | BadClip:
        """Returns a clip as it will be encoded, or why it cannot be."""
        try:
            return self._limits.fit(self._source, index)
        except BadClip as bad:
            return bad

    def _add(self, index: int, fitted: Fitted) -> None:
        """Adds a clip to those of its size, and encodes these when there are enough."""
        self._beside.add(index, fitted.clip)
        size = fitted.clip.pixels_THWC.shape
        self._waiting[size][index] = fitted
        if len(self._waiting[size]) == self._batch:
            self._common.add(size)
            self._encode_batch(self._waiting.pop(size), length=self._batch)

    def _encode_batch(self, members: dict[int, Fitted], *, length: int) -> None:
        """Encodes clips of one size in a batch of `length`."""
        pixels = [fitted.clip.pixels_THWC for fitted in members.values()]
        filled_BTHWC = np.stack(pixels + [pixels[-1]] * (length - len(pixels)))
        latents = self._codec.encode(filled_BTHWC)
        for (index, fitted), latent_THWC in zip(members.items(), latents, strict=False):
            self._samples[index] = _sample(fitted, latent_THWC, self._source.origin(index), self._limits, self._summary)
        if self._shower is not None:
            for index, latent_THWC, image_ME in zip(members, *self._shower.raw(filled_BTHWC), strict=False):
                sample = self._samples[index]
                self._samples[index] = dataclasses.replace(sample, shown_THWC=latent_THWC, image_ME=image_ME)


def _sample(fitted: Fitted, latent_THWC: np.ndarray, origin: str, limits: ClipBudget, summary: Summary) -> Prepared:
    clip = fitted.clip
    captions, were_cut = cut_captions(clip, limits)
    summary.written += 1
    summary.trimmed_frames += fitted.trimmed_frames
    summary.scaled_down += fitted.scale < 1
    summary.cropped_over_2_percent += fitted.cut > LITTLE_CUT
    summary.cut_captions += were_cut
    frames, height, width = clip.pixels_THWC.shape[:3]
    summary.frames_encoded += frames
    summary.frames_left_in_files += (clip.file_frames or frames) - frames
    return Prepared(
        latent_THWC=latent_THWC,
        fps=clip.fps,
        captions=captions,
        weights=clip.weights,
        source_id=clip.source_id,
        pixel_shape=(frames, height, width),
        trimmed_frames=fitted.trimmed_frames,
        origin=origin,
        file_frames=clip.file_frames,
    )


def cut_captions(clip: Clip, limits: ClipBudget) -> tuple[tuple[str, ...], bool]:
    """Returns the captions of a clip, each of as many tokens as are allowed, and whether one had more."""
    tokenizer, most = limits.tokenizer, limits.max_text_tokens
    captions = tuple(tokenizer.cut(caption, most) for caption in clip.captions)
    return captions, any(tokenizer.count(caption) > most for caption in clip.captions)


def with_texts(samples: Sequence[Prepared], tokenizer: Tokenizer) -> list[Prepared]:
    """Returns the samples with the arrays of their captions, which are encoded all at once."""
    texts = iter(tokenizer.encode([caption for sample in samples for caption in sample.captions]))
    return [
        dataclasses.replace(sample, texts=tuple(itertools.islice(texts, len(sample.captions)))) for sample in samples
    ]
