"""The words of the captions that a run was prepared with, read from its shards when they are first asked for."""

import contextlib
import functools
from collections.abc import Mapping, Set

from sora_jax.core.errors import DataError
from sora_jax.data.shards.catalogue import read_spellings, read_words
from sora_jax.data.shards.files import index_paths
from sora_jax.data.shards.prepared import PreparedSet
from sora_jax.data.words import words_of
from sora_jax.experiment.sample_log import evenly
from sora_jax.experiment.schema import Settings
from sora_jax.train.workdir import Workdir

# Clips whose captions are read, fewer where their latents are large: a second at most.
_MOST_CLIPS, _MOST_BYTES = 1_000, 2**26


class CaptionWords:
    """What the captions of a run say; of a public model nothing is known, nor where the prepared clips are gone."""

    def __init__(self, workdir: Workdir, settings: Settings):
        here = settings.model is None
        self._folders = [workdir.prepared(name) for name in settings.collections] if here else []
        self._spelled = here and settings.text.encoder == "bytes"

    @functools.cached_property
    def words(self) -> Set[str] | None:
        """All words (`words_of`); None where they are not known."""
        return read_words(*self._folders) if self._folders else None

    @functools.cached_property
    def spellings(self) -> Set[str]:
        """How the words are spelled (`spellings_of`); none where it is not known, or does not matter.

        Encoders other than the embedded one know the words of a language in whatever way they are spelled.
        """
        return (read_spellings(*self._folders) if self._spelled else None) or set()

    @functools.cached_property
    def captions(self) -> Mapping[str, Set[str]]:
        """Captions of clips spread over the collections, each with its words."""
        if not self._folders or not all(map(index_paths, self._folders)):
            return {}
        prepared = PreparedSet(*self._folders)
        size = sum(file.stat().st_size for folder in self._folders for file in folder.glob("*.arrayrecord"))
        count = min(len(prepared), _MOST_CLIPS, 1 + _MOST_BYTES * len(prepared) // max(size, 1))
        found: dict[str, Set[str]] = {}
        for number in evenly(len(prepared), count):
            with contextlib.suppress(DataError):  # training and `verify` tell of it
                found |= {text: words_of(text) for text in prepared.raw(number).captions if text}
        return found
