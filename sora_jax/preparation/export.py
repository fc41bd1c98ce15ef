"""The windows that curation keeps as files of their own, for people and programs that write captions."""

from pathlib import Path, PurePosixPath

from absl import logging

from sora_jax.core.printable import printable
from sora_jax.data.clips import BadClip
from sora_jax.data.curation.source import CuratedSource
from sora_jax.data.media.writer import write_clip


def export_windows(source: CuratedSource, directory: Path) -> int:
    """Returns how many windows were written to `directory`: `FILE#FIRST-LAST.mp4`, images as .png.

    A file that is there already stays as it is. Windows that cannot be read, and names that lead out of the folder, as
    members of a tar may have, are named in the log. Raises `StorageError` where the disk refuses.
    """
    written = 0
    for index in range(len(source)):
        name = PurePosixPath(source.source_id(index))
        if name.is_absolute() or ".." in name.parts:
            logging.warning("not written, since the name leads out of the folder: %s", printable(str(name)))
            continue
        path = directory / name
        if any(path.with_name(f"{path.name}{suffix}").exists() for suffix in (".mp4", ".png")):
            continue
        try:
            clip = source[index]
        except BadClip as bad:
            logging.warning("not written: %s", bad)
            continue
        suffix = ".mp4" if len(clip.pixels_THWC) > 1 else ".png"
        write_clip(path.with_name(f"{path.name}{suffix}"), clip.pixels_THWC, fps=clip.fps)
        written += 1
    return written
