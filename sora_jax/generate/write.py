"""Clips to files: safe names, whole files, sheets of many clips."""

import contextlib
import filecmp
import itertools
import math
import os
import re
import unicodedata
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from sora_jax.core.errors import StorageError

# Longest stem of a file name that is made from a prompt, in characters and in bytes.
_LONGEST_STEM, _LONGEST_STEM_BYTES = 80, 90
_LONGEST_NAME = 120  # bytes of a file name that a request gives
_GAP = 2  # px between the clips of a sheet
# A name that has a number already, small enough to be one that was added.
_COUNTED = re.compile(r"(.+)_([1-9]\d{0,5})")
# Letters and marks that show nothing: fillers, joiners and selectors of variants.
_UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")


def file_stem(prompt: str) -> str:
    """Returns a file name made from a prompt: letters, digits and underscores of any script, never empty.

    At most 80 characters and 90 bytes, which leaves room for a task and a seed. Nothing in it is a separator, moves a
    cursor or cannot be seen.
    """
    words: list[str] = [""]
    for character in _UNSEEN.sub("", unicodedata.normalize("NFKC", prompt).lower()):
        # A mark belongs to the letter before it.
        if character.isalnum() or (words[-1] and unicodedata.category(character).startswith("M")):
            words[-1] += character
        elif words[-1]:
            words.append("")
    stem = "_".join(filter(None, words))[:_LONGEST_STEM].encode()[:_LONGEST_STEM_BYTES]
    return unicodedata.normalize("NFC", stem.decode(errors="ignore").strip("_")) or "prompt"


def is_safe_name(name: str) -> bool:
    """Returns whether a name that a stranger chose stays in its folder, can be typed, and is no option of a command."""
    return (
        name.isprintable()
        and 0 < len(name.encode()) <= _LONGEST_NAME
        and not set(name) & set("/\\")
        and name[0] not in ".-"
    )


def free_path(folder: Path, stem: str, suffix: str, taken: Collection[Path]) -> Path:
    """Returns folder/stem.suffix, numbered where `taken` has it already."""
    return next(path for path in _names(folder / f"{stem}{suffix}") if path not in taken)


def settle(made: Path, wanted: Path, taken: Collection[Path]) -> Path:
    """Gives the file `made` the name `wanted` in the same folder, and returns its name.

    A number is added where another file of other content has the name, or where it is `taken`; a file of the very
    content is left as it is. Raises StorageError where the disk refuses.
    """
    try:
        for path in _names(wanted):
            if path != wanted and path in taken:
                continue
            with contextlib.suppress(FileExistsError):
                path.open("xb").close()  # of several processes one gets the name
                os.replace(made, path)
                return path
            if path.is_file() and filecmp.cmp(made, path, shallow=False):
                return path
        raise AssertionError("names have no end")
    except OSError as error:
        raise StorageError(f"cannot write {wanted}: {error.strerror}") from error
    finally:
        made.unlink(missing_ok=True)


def _names(path: Path) -> Iterator[Path]:
    """Yields a path, then its name with the numbers from 2 on, from the next one on where it ends in one."""
    yield path
    stem, number = path.stem, 2
    if found := _COUNTED.fullmatch(stem):
        stem, number = found[1], int(found[2]) + 1
    for following in itertools.count(number):
        yield path.with_name(f"{stem}_{following}{path.suffix}")


def contact_sheet(clips: list[np.ndarray], *, scale: int = 2) -> np.ndarray:
    """Returns one uint8 clip (T, H, W, 3) showing all clips in a near-square grid.

    Pixels are repeated `scale` times; shorter clips hold their last frame; cells are as large as the largest clip.
    """
    frames, height, width = (max(clip.shape[axis] for clip in clips) for axis in range(3))
    columns = math.ceil(math.sqrt(len(clips) * height / width))
    rows = math.ceil(len(clips) / columns)
    cell_height, cell_width = height * scale + _GAP, width * scale + _GAP
    sheet = np.full((frames, rows * cell_height + _GAP, columns * cell_width + _GAP, 3), 255, np.uint8)
    for number, clip in enumerate(clips):
        held = np.concatenate([clip, np.repeat(clip[-1:], frames - len(clip), axis=0)])
        enlarged = held.repeat(scale, axis=1).repeat(scale, axis=2)
        top, left = _GAP + number // columns * cell_height, _GAP + number % columns * cell_width
        sheet[:, top : top + enlarged.shape[1], left : left + enlarged.shape[2]] = enlarged
    return sheet
