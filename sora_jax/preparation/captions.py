"""Captions that changed, in shards that keep their latents: `prepare --captions_only`.

Latents are the expensive part of a record, and a better captioner leaves them as they are. So a clip that is prepared
under other captions is written again with its latent as it lies there, and with new texts.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from sora_jax.core.errors import UserError
from sora_jax.data import fitting
from sora_jax.data.clips import BadClip, Fitted
from sora_jax.data.shards.catalogue import read_catalogue
from sora_jax.data.shards.prepared import Prepared, PreparedSet, ShardWriter
from sora_jax.data.shards.skipped import read_skipped
from sora_jax.data.sources.base import Source, read_ahead
from sora_jax.preparation.encode import WHOLE, cut_captions, finish, with_texts


@dataclasses.dataclass(kw_only=True)
class CaptionSummary:
    """What was done this time: counts of clips, and of those whose captions were cut.

    `unchanged` are those that have the captions they had, also because no new ones were given.
    """

    rewritten: int = 0
    unchanged: int = 0
    skipped: int = 0
    cut_captions: int = 0


def prepare_captions(
    collection: fitting.Collection,
    directory: Path,
    *,
    clips_per_shard: int,
    progress: Callable[[int], None] = lambda done: None,
) -> CaptionSummary:
    """Returns the summary of writing clips whose captions changed again, with the latents that are there; no codec.

    Shards appear whole, so one that was stopped goes on where it was; the set stays what it was until all is written.

    Args:
      collection: The clips. Those with other captions are decoded, to know that their size is what it was.
      directory: Of the shards.
      clips_per_shard: Clips of a chunk, which is a shard.
      progress: Called after each chunk with the number of clips that are done.

    Raises `UserError` when texts were made in another way, or the clips are others by their names: nothing is then
    written. It does so as well for clips of another size than that prepared, once it has written what changed of the
    others, and `prepare` goes on from there.
    """
    source, tokenizer, summary = collection.source, collection.limits.tokenizer, CaptionSummary()
    there = PreparedSet(directory)
    place = {name: number for number, name in enumerate(there.source_ids())}
    _check_same_clips(source, directory, prepared=place)
    header, name = {**there.header, **tokenizer.recipe}, WHOLE.name
    left: list[str] = []
    with ShardWriter(directory, header=header, tokenizer=tokenizer, name=name, records_per_shard=clips_per_shard) as to:
        todo = [i for i in range(len(source)) if (source.source_id(i), source.origin(i)) not in to.done]
        summary.unchanged = len(source) - len(todo)
        for start in range(0, len(todo), clips_per_shard):
            chunk = todo[start : start + clips_per_shard]
            olds = [there.raw(place[name]) if name in place else None for name in map(source.source_id, chunk)]
            samples = []
            for index, found in zip(chunk, _reworded(collection, chunk, olds, summary), strict=True):
                if isinstance(found, Prepared):
                    samples.append(found)
                elif found is None:
                    left.append(source.source_id(index))
                else:
                    to.skip((source.source_id(index), source.origin(index)), found.reason)
                    summary.skipped += 1
            for sample in with_texts(samples, tokenizer) if tokenizer.stored else samples:
                to.add(sample)
            to.close()
            progress(summary.unchanged + start + len(chunk))
    if left:
        raise _left_out(left, summary, clips=len(source))
    finish(collection, directory)
    return summary


def _check_same_clips(source: Source, directory: Path, *, prepared: Collection[str]) -> None:
    """Raises `UserError` where the clips of the source are not those that were prepared, or skipped, by their names."""
    names = dict.fromkeys(map(source.source_id, range(len(source))))
    skipped = {name for name, _ in read_skipped(directory)}
    new = [name for name in names if name not in prepared and name not in skipped]
    # Before a preparation has ended, shards may hold clips that are no longer of the set.
    gone = [] if read_catalogue(directory) is None else [name for name in prepared if name not in names]
    if new or gone:
        said = [
            f"{len(found)} {what} (the first: {found[0]})" for found, what in ((new, "new"), (gone, "gone")) if found
        ]
        raise UserError(
            f"these are not the {len(prepared)} clips that {directory} was prepared from: {' and '.join(said)}; "
            "--captions_only changes captions alone; prepare without it takes these in, and encodes again each clip "
            "whose captions changed"
        )


def _left_out(left: Sequence[str], summary: CaptionSummary, *, clips: int) -> UserError:
    return UserError(
        f"{summary.rewritten} clips have their new captions, but {len(left)} of {clips} (the first: {left[0]}) are of "
        "another size than those that were prepared: run prepare without --captions_only, which encodes them"
    )


def _reworded(
    collection: fitting.Collection, indices: Sequence[int], olds: Sequence[Prepared | None], summary: CaptionSummary
) -> list[Prepared | BadClip | None]:
    """Returns the samples with the captions that the clips have now.

    A clip that cannot be used is why; one that is not that of its sample, or has none, is None.
    """

    def fit(index: int) -> Fitted | BadClip:
        try:
            return collection.limits.fit(collection.source, index)
        except BadClip as bad:
            return bad

    samples: list[Prepared | BadClip | None] = []
    with read_ahead(fit, indices, readers=collection.readers) as clips:
        for index, old, fitted in zip(indices, olds, clips, strict=True):
            if isinstance(fitted, BadClip) or old is None or fitted.clip.pixels_THWC.shape[:3] != old.pixel_shape:
                samples.append(fitted if isinstance(fitted, BadClip) else None)
                continue
            clip, origin = fitted.clip, collection.source.origin(index)
            captions, were_cut = cut_captions(clip, collection.limits)
            summary.rewritten += 1
            summary.cut_captions += were_cut
            known = {"weights": clip.weights, "origin": origin, "file_frames": clip.file_frames, "texts": None}
            samples.append(dataclasses.replace(old, captions=captions, **known))
    return samples
