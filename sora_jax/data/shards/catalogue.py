"""The catalogue of a directory of shards: which record stands for which clip of a source, in the source's order.

Records are written by several processes, by runs that were stopped, and again for clips that have changed since; some
are of clips that the source no longer has. The catalogue says which of them count, so that what is trained on depends
on the source alone. Letter: N samples.

  catalogue.npz    what `Catalogue` holds
  skipped.jsonl    lines {"source_id", "origin", "reason"}: the clips of the source that are left out, in its order
"""

import dataclasses
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sora_jax.core.errors import DataError
from sora_jax.data.shards import files
from sora_jax.data.shards.files import storage
from sora_jax.data.shards.skipped import SKIPPED_FILE, read_skipped, skip_line
from sora_jax.data.sources.base import Source, fingerprint

CATALOGUE_FILE = "catalogue.npz"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Catalogue:
    """The samples of a source: `source` is its fingerprint.

    `indices` names the indices of the shards that are used; sample i is record `record_N[i]` of the shard whose index
    is `indices[shard_N[i]]` (both int32).
    """

    source: str
    indices: tuple[str, ...]
    shard_N: np.ndarray
    record_N: np.ndarray


def write_catalogue(directory: Path, source: Source) -> dict[str, str]:
    """Returns source id -> reason of what is skipped, after writing the catalogue and `skipped.jsonl`.

    Raises `DataError` when a clip of the source is neither written nor skipped yet.
    """
    written, skipped = files.read_written(directory), read_skipped(directory)
    places, lines, missing, reasons = [], [], [], {}
    for index in range(len(source)):
        clip = (source.source_id(index), source.origin(index))
        if clip in written:
            places.append(written[clip])
        elif clip in skipped:
            lines.append(skip_line(clip, skipped[clip]))
            reasons[clip[0]] = skipped[clip]
        else:
            missing.append(clip[0])
    if missing:
        raise DataError(
            f"{len(missing)} of {len(source)} clips are not prepared yet (the first: {missing[0]}): "
            "let every process prepare its share, then run prepare once more"
        )
    names = sorted({name for name, _ in places})
    numbers = {name: number for number, name in enumerate(names)}
    catalogue = Catalogue(
        source=fingerprint(source),
        indices=tuple(names),
        shard_N=np.array([numbers[name] for name, _ in places], np.int32),
        record_N=np.array([record for _, record in places], np.int32),
    )
    _write(directory, catalogue, lines)
    return reasons


def read_catalogue(directory: Path) -> Catalogue | None:
    """Returns the catalogue; None where no preparation has ended; raises `DataError` when it is damaged."""
    path = directory / CATALOGUE_FILE
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Catalogue(
                source=arrays["source"].tobytes().decode(),
                indices=tuple(json.loads(arrays["indices"].tobytes())),
                shard_N=arrays["shard_N"],
                record_N=arrays["record_N"],
            )
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, OSError) as error:
        raise DataError(f"{path} is damaged ({error}): remove it and run prepare, which makes it anew") from error


def read_words(*directories: Path) -> set[str] | None:
    """Returns the words (`words_of`) of all captions in shards that count.

    Those of a caption that was replaced are among them while a clip of its shard counts. None where a shard has not
    noted them, and where a directory has no shard.
    """
    return _read_noted(directories, "words")


def read_spellings(*directories: Path) -> set[str] | None:
    """Returns how captions in shards that count are spelled (`spellings_of`); None as of `read_words`."""
    return _read_noted(directories, "spellings")


def _read_noted(directories: Sequence[Path], name: str) -> set[str] | None:
    found: set[str] = set()
    for paths in map(_counting, directories):
        noted = [files.read_index(path, only=(name,)).get(name) for path in paths]
        if not paths or any(one is None for one in noted):
            return None
        found.update(*(json.loads(one.tobytes()) for one in noted if one is not None))
    return found


def _counting(directory: Path) -> list[Path]:
    """Returns the indices of the shards that have samples of the catalogue; all where no preparation has ended."""
    catalogue = read_catalogue(directory)
    return files.index_paths(directory) if catalogue is None else [directory / name for name in catalogue.indices]


def _write(directory: Path, catalogue: Catalogue, skipped: list[bytes]) -> None:
    path, listed = directory / CATALOGUE_FILE, directory / SKIPPED_FILE
    temporary, listed_temporary = (one.with_name(f"{one.name}.tmp") for one in (path, listed))
    with storage(path):
        with temporary.open("wb") as file:
            np.savez(
                file,
                source=np.frombuffer(catalogue.source.encode(), np.uint8),
                indices=np.frombuffer(json.dumps(catalogue.indices).encode(), np.uint8),
                shard_N=catalogue.shard_N,
                record_N=catalogue.record_N,
            )
        listed_temporary.write_bytes(b"".join(skipped))
        # The catalogue comes last: what it leaves out is then told already.
        files.commit(listed_temporary, listed)
        files.commit(temporary, path)
