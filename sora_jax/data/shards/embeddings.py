"""Embeddings of prepared clips: a vector of each, beside the index of its shard, and what made it.

  NAME-000000.embeddings.npz    embedding_NE float32, of length 1, NaN for a record without; made_by, an `EmbeddedBy`

They lie apart from records, so that they can be made anew without a latent being touched.

Letters: N samples or records, E numbers of an embedding.
"""

import dataclasses
import json
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sora_jax.core.errors import DataError, UserError
from sora_jax.core.paths import beside
from sora_jax.data.shards.files import commit, storage
from sora_jax.data.shards.prepared import PreparedSet

_INDEX, _EMBEDDINGS = ".index.npz", ".embeddings.npz"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddedBy:
    """What made embeddings.

    Attributes:
      digest: Of the captioner's weights and of the autoencoder whose latents it reads.
      folder: The workdir in which it was found.
    """

    digest: str
    folder: str

    def __str__(self) -> str:
        return f"the captioner {self.digest[:12]} of {self.folder}"

    def check_is(self, other: "EmbeddedBy", where: Path) -> None:
        """Raises UserError where the embeddings in a folder, made by `other`, are not of this captioner."""
        if self.digest != other.digest:
            raise UserError(
                f"{where} has embeddings by {other}, and here is {self}: give the run of that one, or remove "
                f"{where}/*{_EMBEDDINGS} and make them anew"
            )


def write_embeddings(
    prepared: PreparedSet,
    embed: Callable[[Sequence[int]], np.ndarray],
    made_by: EmbeddedBy,
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> int:
    """Returns how many clips of a set had no embedding and have one now, shard by shard; the others keep theirs.

    Args:
      prepared: The clips.
      embed: (numbers of samples) -> float32 (number, E), of length 1.
      made_by: What embeds.
      progress: Called after each shard with the number of clips that are done.

    Raises UserError, before any is made, where some are there that something else made; DataError on damage.
    """
    shards = list(prepared.by_shard())
    for index, _, _ in shards:
        if (known := _read(index)) is not None:
            made_by.check_is(known[1], index.parent)
    written = done = 0
    for index, sample_N, record_N in shards:
        known = _read(index)
        there_NE = np.zeros((0, 0), np.float32) if known is None else known[0]
        lacking_N = np.ones(len(record_N), bool) if known is None else ~np.isfinite(there_NE[record_N, 0])
        if lacking_N.any():
            found_NE = embed(sample_N[lacking_N].tolist())
            if known is None:
                there_NE = np.full((1 + int(record_N.max()), found_NE.shape[1]), np.nan, np.float32)
            grown = max(0, 1 + int(record_N.max()) - len(there_NE))
            there_NE = np.pad(there_NE, ((0, grown), (0, 0)), constant_values=np.nan)
            there_NE[record_N[lacking_N]] = found_NE
            _write(index, there_NE, made_by)
        written, done = written + int(lacking_N.sum()), done + len(sample_N)
        progress(done)
    return written


def read_embeddings(prepared: PreparedSet, *, width: int) -> tuple[np.ndarray, EmbeddedBy]:
    """Returns embedding_NE, float32 of length 1, of all clips of a set, and what made them.

    Raises UserError where clips have none, where they are of several captioners, or of another width than `width`.
    """
    embedding_NE, made_by = np.full((len(prepared), width), np.nan, np.float32), None
    for index, sample_N, record_N in prepared.by_shard():
        if (known := _read(index)) is None:
            continue
        there_NE, maker = known
        if made_by is not None:
            made_by.check_is(maker, index.parent)
        made_by = maker
        if there_NE.shape[1] != width:
            raise UserError(
                f"the embeddings in {index.parent}, by {maker}, have {there_NE.shape[1]} numbers, and "
                f"transformer.embedding is {width}: set it to {there_NE.shape[1]}"
            )
        inside_N = record_N < len(there_NE)
        embedding_NE[sample_N[inside_N]] = there_NE[record_N[inside_N]]
    lacking = int(np.count_nonzero(np.isnan(embedding_NE[:, 0])))
    if made_by is None or lacking:
        raise UserError(
            f"transformer.embedding is {width}, and {lacking} of {len(prepared)} prepared clips have no embedding: "
            "run prepare with --embeddings=RUN, a run with a captioner, first"
        )
    return embedding_NE, made_by


def find_maker(directory: Path) -> EmbeddedBy | None:
    """Returns what made the embeddings in a directory of shards; None where there are none."""
    found = (_read(path.with_name(path.name.replace(_EMBEDDINGS, _INDEX))) for path in _files(directory))
    return next((known[1] for known in found if known is not None), None)


def _files(directory: Path) -> list[Path]:
    return sorted(directory.glob(f"*{_EMBEDDINGS}"))


def _path(index: Path) -> Path:
    return index.with_name(index.name.replace(_INDEX, _EMBEDDINGS))


def _read(index: Path) -> tuple[np.ndarray, EmbeddedBy] | None:
    """Returns the embeddings of the records of a shard, and what made them; None where there are none."""
    path = _path(index)
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["embedding_NE"], EmbeddedBy(**json.loads(arrays["made_by"].tobytes()))
    except (zipfile.BadZipFile, zlib.error, KeyError, TypeError, ValueError, EOFError, OSError) as error:
        raise DataError(f"{path} is damaged ({error}): remove it, and run prepare --embeddings again") from error


def _write(index: Path, embedding_NE: np.ndarray, made_by: EmbeddedBy) -> None:
    path = _path(index)
    temporary = beside(path, ".tmp")
    with storage(path):
        with temporary.open("wb") as file:
            said = np.frombuffer(json.dumps(dataclasses.asdict(made_by)).encode(), np.uint8)
            np.savez(file, embedding_NE=embedding_NE, made_by=said)
        commit(temporary, path)
