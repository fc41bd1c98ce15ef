"""Other captions for clips that are drawn: a table of them by the clips' names."""

import dataclasses
import os

from sora_jax.data.clips import Clip
from sora_jax.data.sources.base import Source, digest
from sora_jax.data.sources.caption_lookup import Names, look_up, read_named


class RetoldSource:
    """The clips of a source, of which those that a table names have its captions instead of their own.

    `retold` is how many these are; `missing` are names in the table that are of no clip, windows of clips among them.
    Raises `UserError` where there is no such table, or it cannot be understood.
    """

    def __init__(self, source: Source, table: str | os.PathLike):
        self._source = source
        told = look_up(read_named(table), Names(map(source.source_id, range(len(source)))))
        self._captions = told.captions
        windows = (f"{name}#{first}-{last}" for name, found in told.windows.items() for first, last in found)
        self.missing = [*told.missing, *windows]
        self.retold = len(self._captions)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Clip:
        clip, told = self._source[index], self._captions.get(self.source_id(index))
        return clip if told is None else dataclasses.replace(clip, captions=told[0], weights=told[1])

    def source_id(self, index: int) -> str:
        """Returns the clip's name within the source."""
        return self._source.source_id(index)

    def origin(self, index: int) -> str:
        """Returns the clip's own origin, and of one that is told anew a digest of that and of its captions."""
        own, told = self._source.origin(index), self._captions.get(self.source_id(index))
        return own if told is None else digest(own, *told)
