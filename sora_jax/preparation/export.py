"""The windows that curation keeps as files of their own, for people and programs that write captions."""

import os
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from absl import logging

from sora_jax.core.paths import LONGEST_NAME
from sora_jax.core.printable import printable
from sora_jax.data.clips import BadClip
from sora_jax.data.curation.source import CuratedSource
from sora_jax.data.media.writer import write_clip, write_picture

_VIDEO, _PICTURE = ".mp4", ".png"


def export_windows(source: CuratedSource, directory: Path) -> int:
    """Returns how many windows were written to `directory`: `FILE#FIRST-LAST.mp4`, images as .png.

    A file that is there already stays as it is. Windows that cannot be read, and those whose names are no names of
    files in the folder, as members of a tar may have, are named in the log. Raises `StorageError` where the disk
    refuses.
    """
    written, taken = 0, set[PurePosixPath]()
    for index in range(len(source)):
        name = PurePosixPath(source.source_id(index))
        fault = _fault_of(name, taken)
        if fault is not None:
            logging.warning("not written, since the name %s: %s", fault, printable(str(name)))
            continue
        taken.add(name)
        paths = {suffix: directory / name.with_name(f"{name.name}{suffix}") for suffix in (_VIDEO, _PICTURE)}
        if any(path.exists() for path in paths.values()):
            continue
        try:
            clip = source[index]
        except BadClip as bad:
            logging.warning("not written: %s", bad)
            continue
        if len(clip.pixels_THWC) > 1:
            write_clip(paths[_VIDEO], clip.pixels_THWC, fps=clip.fps)
        else:
            write_picture(paths[_PICTURE], clip.pixels_THWC[0])
        written += 1
    return written


def _fault_of(name: PurePosixPath, taken: Collection[PurePosixPath]) -> str | None:
    """Returns why a window is not written under its name, to end a sentence; None where it can be."""
    if name.is_absolute() or ".." in name.parts:
        return "leads out of the folder"
    longest = max(len(os.fsencode(part)) for part in (*name.parts, f"{name.name}{_VIDEO}"))
    if longest > LONGEST_NAME:
        return f"would have {longest} bytes, over the {LONGEST_NAME} that it may have; give the file a shorter one"
    if "\0" in str(name):
        return "has a zero byte in it"
    return "is that of another window, too" if name in taken else None
