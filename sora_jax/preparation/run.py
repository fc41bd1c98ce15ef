"""The prepare stage: every clip of a source -> fitted -> latent -> shards, once.

Clips go chunk by chunk in the order of the source, and a chunk is a shard. So a run that was stopped goes on at the
first chunk it had not finished and ends with the same samples in the same order.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sora_jax.core.errors import DataError
from sora_jax.data.captions import TOKENIZER, count_tokens, cut_caption
from sora_jax.data.clips import BadClip, Clip, Fitted, fit_clip
from sora_jax.data.shard_files import read_skipped
from sora_jax.data.shards import Prepared, ShardWriter
from sora_jax.data.sources import Source
from sora_jax.models.codec import Codec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What is done to a clip before it is encoded; see `data.clips.fit_clip`.

    Attributes:
      stride: Frames, rows and columns of pixels of one token.
      min_tokens: Of a clip.
      max_tokens: Of a clip.
      max_frames: Of a clip.
      max_text_tokens: Of a caption.
      max_bad_share: Share of clips that may be skipped.
    """

    stride: tuple[int, int, int]
    min_tokens: int
    max_tokens: int
    max_frames: int
    max_text_tokens: int
    max_bad_share: float

    def fit(self, source: Source, index: int) -> Fitted:
        """Returns clip `index` as it will be encoded; raises BadClip."""
        return self.cut(source[index])

    def cut(self, clip: Clip) -> Fitted:
        """Returns a clip as it will be encoded; raises BadClip."""
        return fit_clip(
            clip,
            stride=self.stride,
            min_tokens=self.min_tokens,
            max_tokens=self.max_tokens,
            max_frames=self.max_frames,
        )


class FittedSource:
    """A source whose clips come as they will be encoded, so that the autoencoder trains at that scale."""

    def __init__(self, source: Source, limits: Limits):
        self._source = source
        self._limits = limits

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Clip:
        """Returns clip `index`, fitted; raises BadClip."""
        return self._limits.fit(self._source, index).clip

    def source_id(self, index: int) -> str:
        """Returns the name of clip `index`."""
        return self._source.source_id(index)

    def fingerprint(self) -> str:
        """Returns the fingerprint of the clips before they are fitted."""
        return self._source.fingerprint()


@dataclasses.dataclass(kw_only=True)
class Summary:
    """What a preparation did, this time: counts of clips, and of what was cut from them."""

    written: int = 0
    already_done: int = 0
    skipped: int = 0
    trimmed_frames: int = 0
    scaled_down: int = 0
    cut_captions: int = 0


def header(codec: Codec, source: Source) -> dict[str, object]:
    """Returns what the shards say they were made with."""
    return {
        "autoencoder": codec.fingerprint(),
        "text_encoder": TOKENIZER,
        "source": source.fingerprint(),
        "latent_mean": codec.mean_C.tolist(),
        "latent_scale": codec.scale_C.tolist(),
        "strides": list(codec.stride[:2]),
        "channels": codec.config.channels,
    }


def prepare(
    source: Source,
    codec: Codec,
    directory: Path,
    *,
    limits: Limits,
    batch: int,
    clips_per_shard: int,
    process_index: int = 0,
    process_count: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> Summary:
    """Returns the summary of writing all clips of `source` that are this process's share and not done yet.

    Args:
      source: Where clips come from.
      codec: What encodes them.
      directory: Of the shards.
      limits: What is done to clips, and how many may be bad.
      batch: Clips of one size encoded at once.
      clips_per_shard: Clips of a chunk.
      process_index: Of this process; chunks are dealt to processes in turn.
      process_count: Of all processes.
      progress: Called after each chunk with the number of clips, of the share, that are done.

    Raises:
      DataError: more than `limits.max_bad_share` of the clips were skipped.
    """
    summary, done = Summary(), 0
    name = f"part{process_index:03d}of{process_count:03d}"
    with ShardWriter(directory, header=header(codec, source), name=name, records_per_shard=clips_per_shard) as writer:
        starts = range(process_index * clips_per_shard, len(source), process_count * clips_per_shard)
        for start in starts:
            chunk = range(start, min(start + clips_per_shard, len(source)))
            todo = [index for index in chunk if source.source_id(index) not in writer.done]
            summary.already_done += len(chunk) - len(todo)
            for sample in _encode_chunk(source, todo, codec, limits, batch, writer, summary):
                writer.add(sample)
            writer.close()
            done += len(chunk)
            progress(done)
    skipped = len(read_skipped(directory))  # by all runs and processes so far
    if skipped > limits.max_bad_share * len(source):
        raise DataError(
            f"{skipped} of {len(source)} clips could not be used, more than the share of {limits.max_bad_share:g} "
            f"that data.max_bad_share allows; {directory / 'skipped.jsonl'} names each with its reason"
        )
    return summary


def _encode_chunk(
    source: Source,
    indices: Sequence[int],
    codec: Codec,
    limits: Limits,
    batch: int,
    writer: ShardWriter,
    summary: Summary,
) -> list[Prepared]:
    """Returns the samples of a chunk in the order of the source; clips of one size are encoded together."""
    fitted: dict[int, Fitted] = {}
    sizes: dict[tuple[int, ...], list[int]] = collections.defaultdict(list)
    for index in indices:
        try:
            fitted[index] = limits.fit(source, index)
        except BadClip as bad:
            writer.skip(bad.source_id, bad.reason)
            summary.skipped += 1
            continue
        sizes[fitted[index].clip.pixels_THWC.shape].append(index)
    latent: dict[int, np.ndarray] = {}
    for members in sizes.values():
        for first in range(0, len(members), batch):
            part = members[first : first + batch]
            # Filled up with repeats, so that each size is compiled for one batch only.
            full = part + [part[-1]] * (min(batch, len(members)) - len(part))
            encoded = codec.encode(np.stack([fitted[index].clip.pixels_THWC for index in full]))
            latent.update(zip(part, encoded, strict=False))
    return [_sample(fitted[index], latent[index], limits, summary) for index in indices if index in fitted]


def _sample(fitted: Fitted, latent_THWC: np.ndarray, limits: Limits, summary: Summary) -> Prepared:
    clip = fitted.clip
    captions = tuple(cut_caption(caption, limits.max_text_tokens) for caption in clip.captions)
    summary.written += 1
    summary.trimmed_frames += fitted.trimmed_frames
    summary.scaled_down += fitted.scale < 1
    summary.cut_captions += any(count_tokens(c) > limits.max_text_tokens for c in clip.captions)
    frames, height, width = clip.pixels_THWC.shape[:3]
    return Prepared(
        latent_THWC=latent_THWC,
        fps=clip.fps,
        captions=captions,
        weights=clip.weights,
        source_id=clip.source_id,
        pixel_shape=(frames, height, width),
        trimmed_frames=fitted.trimmed_frames,
    )
