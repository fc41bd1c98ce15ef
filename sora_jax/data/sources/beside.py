"""Files that are no clips but say something of one frame by frame: NAME_depth.mp4 beside NAME.mp4.

Or any file that a table of captions names for a clip, under control_depth.
"""

from collections.abc import Iterable, Mapping, Sequence

from sora_jax.data.media.file_kinds import MEDIA_SUFFIXES, suffix_of
from sora_jax.data.sources.caption_lookup import Names, window_named
from sora_jax.data.sources.pairing import rank


def find_beside(names: Iterable[str], kinds: Sequence[str]) -> dict[str, dict[str, str]]:
    """Returns of media files, by name, the files beside them by kind.

    NAME_KIND with any ending of a medium belongs to NAME in the same folder, and is no clip; where there is no NAME it
    is one. Of several of one kind, and of several called NAME, the first by `pairing.rank` counts; the others of a kind
    are no clips either: see `names_beside`.
    """
    found: dict[str, dict[str, str]] = {}
    for owner, kind, name in _pairs(names, kinds):
        found.setdefault(owner, {}).setdefault(kind, name)
    return found


def names_beside(names: Iterable[str], kinds: Sequence[str]) -> set[str]:
    """Returns the names of files that are no clips."""
    return {name for _, _, name in _pairs(names, kinds)}


def place_named(
    tables: Mapping[str, Mapping[str, Mapping[str, str]]], names: Iterable[str]
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Returns what `caption_tables.read_files_beside` found, by names of media files, and what names none of `names`.

    `tables` are by folder, of those that name the same the first counts; their names are relative to it. What a line
    says of a window of a file is said of the whole file.
    """
    media = Names(name for name in names if suffix_of(name) in MEDIA_SUFFIXES)
    found: dict[str, dict[str, str]] = {}
    lost = []
    for folder, table in tables.items():
        for written, files in table.items():
            owner = media.find(written, folder) or media.find((window_named(written) or (written,))[0], folder)
            for kind, file in files.items():
                there = media.find(file, folder)
                if there is None or there == owner:
                    lost.append(file)
                elif owner is not None:
                    found.setdefault(owner, {}).setdefault(kind, there)
    return found, lost


def _pairs(names: Iterable[str], kinds: Sequence[str]) -> list[tuple[str, str, str]]:
    """Returns (media file, kind, file beside it), those that count first."""
    media = sorted((name for name in names if suffix_of(name) in MEDIA_SUFFIXES), key=rank)
    stems: dict[str, str] = {}
    for name in media:
        stems.setdefault(_stem(name), name)
    pairs = []
    for name in media:
        for kind in kinds:
            owner = stems.get(_stem(name).removesuffix(f"_{kind}"))
            if _stem(name).endswith(f"_{kind}") and owner is not None:
                pairs.append((owner, kind, name))
    return pairs


def _stem(name: str) -> str:
    return name[: len(name) - len(suffix_of(name))]
