"""Files that are no clips but say something of one frame by frame: NAME_depth.mp4 beside NAME.mp4."""

from collections.abc import Iterable, Sequence

from sora_jax.data.media.file_kinds import MEDIA_SUFFIXES, suffix_of


def find_beside(names: Iterable[str], kinds: Sequence[str]) -> dict[str, dict[str, str]]:
    """Returns of media files, by name, the files beside them by kind.

    NAME_KIND with any ending of a medium belongs to NAME in the same folder, and is no clip; where there is no NAME it
    is one. Of several of one kind the first counts, and the others are no clips either: see `names_beside`.
    """
    found: dict[str, dict[str, str]] = {}
    for owner, kind, name in _pairs(names, kinds):
        found.setdefault(owner, {}).setdefault(kind, name)
    return found


def names_beside(names: Iterable[str], kinds: Sequence[str]) -> set[str]:
    """Returns the names of files that are no clips."""
    return {name for _, _, name in _pairs(names, kinds)}


def _pairs(names: Iterable[str], kinds: Sequence[str]) -> list[tuple[str, str, str]]:
    """Returns (media file, kind, file beside it), sorted."""
    media = sorted(name for name in names if suffix_of(name) in MEDIA_SUFFIXES)
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
