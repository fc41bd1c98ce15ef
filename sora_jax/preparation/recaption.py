"""Captions of a collection, written anew by a model: clips -> drafts -> those that are good enough -> rows.

The order of rows is that of the clips, and batches lie at fixed places in it, so a run that was killed and started
again leaves the file that one without an end would have left.
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NoReturn, Protocol

from absl import logging

from sora_jax.core.errors import DataError
from sora_jax.data.clips import BadClip, Clip
from sora_jax.data.fitting import Collection
from sora_jax.data.sources.base import Source, read_ahead
from sora_jax.preparation.caption_filters import DraftFilters, RecaptionConfig, Refusal
from sora_jax.preparation.caption_rows import CHOICE, CaptionRow, CaptionRows
from sora_jax.preparation.drafts import Draft, Drafts


class ClipDescriber(Protocol):
    """What writes captions of clips: a model of the run, or one behind a server.

    Attributes:
      by: Names what writes, how it is asked, and what it sees of a clip. A clip is described once by the same.
    """

    by: Mapping[str, str]

    def read(self, source: Source, index: int) -> Clip:
        """Returns a clip as it wants to see it; raises BadClip. Several threads call this."""
        ...

    def describe(self, clips: Sequence[Clip]) -> Sequence[Drafts | BadClip]:
        """Returns what it writes about each clip, or why that failed, in their order.

        Raises a `CommandError` only where there is no use in going on.
        """
        ...


@dataclasses.dataclass(kw_only=True)
class RecaptionSummary:
    """What was done this time, and what is there.

    Attributes:
      clips: That were asked for.
      already_done: Of these, before.
      written: Of these, now.
      kept_own: Of `written`, clips of which every draft was refused, so that only their own captions stand there.
      failed: Clips without a row, before and now.
      refused: Drafts refused now, by the key of config.recaption.
      openings: Drafts of which a stock opening was taken off, now.
    """

    clips: int = 0
    already_done: int = 0
    written: int = 0
    kept_own: int = 0
    failed: int = 0
    refused: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    openings: int = 0

    def lines(self, rows: CaptionRows) -> list[str]:
        """Returns what is said of it at the end."""
        made = self.already_done + self.written
        before = f", {self.already_done} of them before" if self.already_done else ""
        lines = [f"{made} of {self.clips} clips have a row in {rows.path}{before}"]
        if self.kept_own:
            lines.append(f"  {self.kept_own} of them have their own captions alone, since all new ones were refused")
        if self.failed:
            lines.append(f"  {self.failed} clips have none: {rows.failures} names each with its reason")
        lines += [f"  {count} captions refused by recaption.{key}" for key, count in self.refused.most_common()]
        if self.openings:
            lines.append(f"  {self.openings} captions lost their opening (recaption.opening)")
        return lines

    def check(self, rows: CaptionRows, *, allowed: float) -> None:
        """Raises `DataError` where a larger share of the clips than is `allowed` has failed."""
        if self.failed > allowed * self.clips:
            raise DataError(
                f"{self.failed} of {self.clips} clips have no captions, more than the share of {allowed:g} that "
                f"data.max_bad_share allows; {rows.failures} names each with its reason"
            )


def recaption(
    collection: Collection,
    describer: ClipDescriber,
    filters: DraftFilters,
    config: RecaptionConfig,
    rows: CaptionRows,
    *,
    count: int | None = None,
    retry_failed: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> RecaptionSummary:
    """Returns what was done so that each clip has its captions in `rows`, or is named with the reason it has none.

    Clips are read in the background while others are described. What is there already, and with the same `by`, stays.

    Args:
      collection: The clips; captions that they have are drawn beside the new ones, as `config.mix` says.
      describer: What writes.
      filters: What is good enough.
      config: Of the batches and the mix.
      rows: The file of captions, between its enter and exit.
      count: How many clips, from the first; None: all.
      retry_failed: Whether those that failed before are tried again.
      progress: Called after each batch, when it is on the disk, with how many clips are done; it may raise.

    Raises `DataError` where a larger share of the clips than is allowed has failed, and as `CaptionRows.begin`.
    """
    source = collection.source
    numbers = range(len(source) if count is None else min(count, len(source)))
    # A table tells clips of one name not apart.
    by_name = {source.source_id(index): index for index in reversed(numbers)}
    rows.begin({**describer.by, CHOICE: config.choice})
    if retry_failed:
        rows.forget_failed()
    there = {*rows.done, *rows.failed}
    todo = sorted(index for name, index in by_name.items() if name not in there)
    summary = RecaptionSummary(clips=len(by_name), already_done=sum(name in rows.done for name in by_name))
    work = _Work(collection, describer, filters, config, rows, summary)
    try:
        for done in work.batches(todo):
            progress(len(by_name) - len(todo) + done)
    finally:
        summary.failed = sum(name in rows.failed for name in by_name)
        summary.refused, summary.openings = filters.refused, filters.openings
        print("\n".join(summary.lines(rows)), flush=True)
    summary.check(rows, allowed=collection.limits.max_bad_share)
    return summary


class _Work:
    """Describes clips batch by batch."""

    def __init__(
        self,
        collection: Collection,
        describer: ClipDescriber,
        filters: DraftFilters,
        config: RecaptionConfig,
        rows: CaptionRows,
        summary: RecaptionSummary,
    ):
        self._source, self._readers = collection.source, collection.readers
        self._describer, self._filters, self._config = describer, filters, config
        self._rows, self._summary = rows, summary

    def batches(self, indices: Sequence[int]) -> Iterator[int]:
        """Yields how many of the clips are done, after each batch."""
        if not indices:
            return
        size, done = self._config.batch, 0
        with read_ahead(self._read, indices, readers=self._readers, ahead=size) as clips:
            for _, members in itertools.groupby(indices, key=lambda index: index // size):
                batch = list(itertools.islice(clips, len(list(members))))
                self._describe(batch)
                done += len(batch)
                yield done

    def _read(self, index: int) -> Clip | BadClip:
        try:
            return self._describer.read(self._source, index)
        except BadClip as bad:
            return bad

    def _describe(self, batch: Sequence[Clip | BadClip]) -> None:
        clips = [one for one in batch if isinstance(one, Clip)]
        drafts = iter(self._describer.describe(clips) if clips else ())
        rows, failures = [], {}
        for one in batch:
            try:
                rows.append(self._row(one, next(drafts)) if isinstance(one, Clip) else _raised(one))
            except BadClip as bad:
                failures[bad.source_id] = bad.reason
                logging.warning("no captions: %s", bad)
        self._rows.append(rows, failures)
        self._summary.written += len(rows)

    def _row(self, clip: Clip, written: Drafts | BadClip) -> CaptionRow:
        """Returns the row of a clip, without `by`; raises BadClip where nothing can stand there."""
        if isinstance(written, BadClip):
            raise written
        judged = [self._filters.judge(draft, clip) for draft in written.captions]
        good = [one for one in judged if isinstance(one, Draft)]
        if good:
            found = self._config.mix.weigh(good, clip.captions, clip.weights)
        elif clip.captions:
            self._summary.kept_own += 1
            found = dict(zip(clip.captions, clip.weights or [1.0] * len(clip.captions), strict=True))
        else:
            reasons = dict.fromkeys(one.reason for one in judged if isinstance(one, Refusal))
            raise BadClip(clip.source_id, f"its new caption {'; another '.join(reasons)}")
        fields = {"fields": dict(written.fields)} if written.fields else {}
        return {"file": clip.source_id, "captions": [*found], "weights": [*found.values()], **fields}


def _raised(bad: BadClip) -> NoReturn:
    raise bad
