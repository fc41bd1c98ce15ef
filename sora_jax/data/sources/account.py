"""One line that accounts for every file under a path: clips, what is left out, and what is no clip."""

import collections
from collections.abc import Mapping, Sequence

from sora_jax.data.media.file_kinds import MEDIA_SUFFIXES
from sora_jax.data.sources.caption_tables import TABLE_SUFFIXES
from sora_jax.data.sources.pairing import TEXT_SUFFIXES

_MOST_ENDINGS = 6  # that are listed


def account(
    endings: Mapping[str, int],
    *,
    captioned: int,
    uncaptioned: int,
    previews: int,
    sharing: int,
    linked: Sequence[str] = (),
) -> str:
    """Returns the line about as many files as `endings` has of each ending (in small letters, "" for none).

    The first four numbers are of media files. What else has the ending of one, links and sparse members of tars, is
    counted as that.
    """
    media = sum(count for ending, count in endings.items() if ending in MEDIA_SUFFIXES)
    texts = sum(count for ending, count in endings.items() if ending in (*TEXT_SUFFIXES, *TABLE_SUFFIXES))
    others = collections.Counter(
        {ending: n for ending, n in endings.items() if ending not in (*MEDIA_SUFFIXES, *TEXT_SUFFIXES, *TABLE_SUFFIXES)}
    )
    parts = [
        f"{captioned} clips with a caption",
        f"{uncaptioned} without",
        _counted(previews, "thumbnails of videos"),
        _counted(sharing, "beside a clip that has their caption"),
        _counted(media - captioned - uncaptioned - previews - sharing, "links"),
        _counted(texts, "texts and tables"),
        _counted(others.total(), f"of endings that are not read{_listed(others)}"),
    ]
    line = f"{sum(endings.values())} files: {', '.join(part for part in parts if part)}"
    return line + (f"; {len(linked)} folders behind links are passed over" if linked else "")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number else ""


def _listed(endings: collections.Counter[str]) -> str:
    """Returns the commonest endings with their numbers, in brackets."""
    most = [f"{ending or 'none'} {count}" for ending, count in endings.most_common(_MOST_ENDINGS)]
    return f" ({', '.join(most)}{', ...' if len(endings) > _MOST_ENDINGS else ''})"
