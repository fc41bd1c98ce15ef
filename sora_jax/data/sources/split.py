"""Which clips of a source are held out of training: a pure function of their names."""

import hashlib
import re
from collections.abc import Sequence

from sora_jax.core.errors import UserError
from sora_jax.data.clips import Clip
from sora_jax.data.sources.base import Source

# What curation adds to the name of a file: all windows of a file are on one side.
_WINDOW = re.compile(r"#\d+-\d+$")


class ChosenSource:
    """Some clips of a source, by their indices there, in the order given."""

    def __init__(self, source: Source, indices: Sequence[int]):
        self._source, self._indices = source, list(indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Clip:
        """Returns a clip; raises BadClip."""
        return self._source[self._indices[index]]

    def source_id(self, index: int) -> str:
        """Returns the clip's name within the whole source."""
        return self._source.source_id(self._indices[index])

    def origin(self, index: int) -> str:
        """Returns the clip's origin, as the whole source tells it."""
        return self._source.origin(self._indices[index])


def _is_held_out(name: str, share: float) -> bool:
    """Returns whether the clip of a name is held out, as about a `share` in [0, 1] of all names are.

    Windows of one file, `FILE#FIRST-LAST`, are held out together. What a larger share holds out includes what a smaller
    one does.
    """
    # Names of files may be bytes that are no text: half a pair of surrogates in Python.
    digest = hashlib.sha256(f"held out {_WINDOW.sub('', name)}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def split_source(source: Source, share: float) -> tuple[ChosenSource, ChosenSource]:
    """Returns (what training sees, what is held out); raises UserError where either would be empty."""
    held_N = [_is_held_out(source.source_id(index), share) for index in range(len(source))]
    total, held = len(held_N), sum(held_N)
    if held in (0, total):
        left = "leaves none to train on: lower it" if held else "holds none out: raise it"
        raise UserError(f"heldout_share {share:g} of {total} clips {left}, or add clips")
    training, heldout = ([index for index in range(total) if held_N[index] == side] for side in (False, True))
    return ChosenSource(source, training), ChosenSource(source, heldout)
