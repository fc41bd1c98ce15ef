"""Clips to files: safe names, whole files, sheets of many clips."""

import math
import re
import unicodedata
from pathlib import Path

import numpy as np

# Longest stem of a file name that is made from a prompt.
_LONGEST_STEM = 80
_LONGEST_NAME = 120  # bytes of a file name that a request gives
_GAP = 2  # px between the clips of a sheet


def file_stem(prompt: str) -> str:
    """Returns a file name made from a prompt: ASCII letters, digits and underscores, never empty."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode()
    stem = re.sub(r"[^A-Za-z0-9]+", "_", plain).strip("_").lower()[:_LONGEST_STEM].strip("_")
    return stem or "prompt"


def is_safe_name(name: str) -> bool:
    """Returns whether a name that a stranger chose stays in its folder, can be typed, and is no option of a command."""
    return (
        name.isprintable()
        and 0 < len(name.encode()) <= _LONGEST_NAME
        and not set(name) & set("/\\")
        and name[0] not in ".-"
    )


def free_path(folder: Path, stem: str, suffix: str, taken: set[Path]) -> Path:
    """Returns folder/stem.suffix, numbered where `taken` has it already."""
    path, number = folder / f"{stem}{suffix}", 2
    while path in taken:
        path, number = folder / f"{stem}_{number}{suffix}", number + 1
    return path


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
