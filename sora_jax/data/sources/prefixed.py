"""A phrase before every caption of a source, such as a word that stands for a style or a person."""

import dataclasses

from sora_jax.data.clips import Clip
from sora_jax.data.sources.base import digest
from sora_jax.data.sources.decoded import DecodedSource
from sora_jax.data.tokens import Tokenizer, clean_caption


class PrefixedSource:
    """The clips of a source, each of their captions begun with `prefix` and a space; those without any have none."""

    def __init__(self, source: DecodedSource, prefix: str):
        self._source = source
        self._prefix = clean_caption(prefix)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Clip:
        return self._begun(self._source[index])

    def window(self, index: int, first: int, last: int) -> Clip:
        """Returns what `DecodedSource.window` does."""
        return self._begun(self._source.window(index, first, last))

    def thumbnails(self, index: int, *, short_side: int) -> Clip:
        """Returns what `DecodedSource.thumbnails` does."""
        return self._begun(self._source.thumbnails(index, short_side=short_side))

    def lacks_caption(self, index: int, first: int, last: int) -> bool:
        """Returns what `DecodedSource.lacks_caption` does."""
        return self._source.lacks_caption(index, first, last)

    def captioned_windows(self, index: int) -> frozenset[tuple[int, int]]:
        """Returns what `DecodedSource.captioned_windows` does."""
        return self._source.captioned_windows(index)

    def size(self, index: int) -> int | None:
        """Returns the bytes of a clip's file, as its source tells them."""
        return self._source.size(index)

    def source_id(self, index: int) -> str:
        """Returns the clip's name within the source."""
        return self._source.source_id(index)

    def origin(self, index: int) -> str:
        """Returns a digest of the clip's own origin and of the prefix."""
        return digest(self._source.origin(index), self._prefix)

    def _begun(self, clip: Clip) -> Clip:
        return dataclasses.replace(clip, captions=tuple(f"{self._prefix} {caption}" for caption in clip.captions))


def prefix_faults(prefix: str | None, source: str, tokenizer: Tokenizer, *, max_text_tokens: int) -> list[str]:
    """Returns what is wrong with a config's prefix for a kind of source and captions of so many tokens, in words."""
    if prefix is None:
        return []
    if source == "shapes":
        return ["prefix is for captions that are read: the source 'shapes' writes its own, set None"]
    tokens = tokenizer.count(prefix)
    if not 1 < tokens < max_text_tokens:
        return [
            f"prefix {prefix[:40]!r} has {tokens} text tokens, and text.max_tokens is {max_text_tokens}: it must have "
            "at least 2, and leave room for a caption"
        ]
    return []
