"""Which way a caption says that something goes, and whether anything in its clip goes that way.

Letters: T H W C pixels, F pairs of frames, R K rows and columns of blocks, N blocks that move, 2: rows and columns.
"""

import re

import numpy as np
from PIL import Image

from sora_jax.preparation.colours import luma
from sora_jax.preparation.flow import block_flow

# Where each way leads, in rows and columns.
_WAYS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
_GOES = (
    r"(?:mov|com|driv|glid|slid|driv|chas|rac)(?:e|es|ing)|(?:go|cross)(?:es|ing)?|(?:run)(?:s|ning)?|(?:swim)(?:s|ming)?|"
    r"(?:travel|drift|float|walk|roll|head|shift|jump|fall|sail|crawl|turn|point)(?:s|ing)?|fl(?:y|ies|ying)"
)
# These words alone may also be a side, a hand, "exactly", a verb, or along a way.
_ALONE = (
    r"right(?!\s+(?:past|after|before|at|next|beside|by|in\s+front|off|away|back|now)\b)|left(?!\s+the\b)|"
    r"(?:up|down)(?!\s+(?:the|a|an)\s+(?:\w+\s+)?(?:street|road|path|hall|hallway|corridor|aisle|lane|sidewalk|river)\b)"
)
_SAID = re.compile(
    rf"\b(?:{_GOES})\s+(?:\w+\s+)?"
    rf"(?:to(?:wards?)?\s+(?:the|its|his|her|their)\s+(up|down|left|right)\b|({_ALONE})\b)|"
    r"\b(up|down|left|right)wards?\b",
    re.IGNORECASE,
)
# The way of the camera is not that of what it shows.
_CAMERA = re.compile(r"\b(?:camera|pan(?:s|ning)?|tilt(?:s|ing)?|zoom(?:s|ing)?|viewpoint|footage)\b", re.IGNORECASE)
_CLAUSE = re.compile(r"[.;,:!?]")
_SIDE = 32  # px, of the short side at which motion is looked for
_BLOCK = 2  # px
_PAIRS = 3  # of frames, spread over the clip
_LEAST_SPEED = 0.1  # px per frame of a block that moves
_MOST_MOVING = 0.5  # share of blocks; where more move the camera may, and nothing is known of what it shows


def directions_said(text: str) -> list[str]:
    """Returns which of up, down, left and right a caption says that something in the clip goes, each once."""
    clauses = (clause for clause in _CLAUSE.split(text) if not _CAMERA.search(clause))
    found = (match for clause in clauses for match in _SAID.finditer(clause))
    return list(dict.fromkeys(match[match.lastindex or 0].lower() for match in found))


def shares_of_motion(pixels_THWC: np.ndarray) -> dict[str, float] | None:
    """Returns how much of what moves in uint8 frames goes up, down, left and right: of sum 1, or all 0 at rest.

    None where that is not to be told: of an image, where brightness does not show it, or where so much moves that the
    camera may.
    """
    if len(pixels_THWC) < 2:
        return None
    pairs_2FHWC = _pairs(pixels_THWC)
    if not np.any(pairs_2FHWC[0] != pairs_2FHWC[1]):
        return dict.fromkeys(_WAYS, 0.0)
    # One call for all of them: what lies between two pairs is dropped.
    flow_FRK2 = block_flow(luma(np.concatenate(list(pairs_2FHWC.swapaxes(0, 1)))), block=_BLOCK)[::2]
    moving_FRK = np.abs(flow_FRK2).max(axis=-1) >= _LEAST_SPEED
    moved_N2 = flow_FRK2[moving_FRK]
    total = float(np.abs(moved_N2).sum())
    # Colours alone may change, and then nothing is known either.
    if not total or moving_FRK.mean() > _MOST_MOVING:
        return None
    return {name: float(np.maximum(moved_N2 @ np.array(way), 0).sum()) / total for name, way in _WAYS.items()}


def _pairs(pixels_THWC: np.ndarray) -> np.ndarray:
    """Returns pairs of frames that follow each other, small: uint8 (2, F, H, W, C)."""
    frames, height, width = pixels_THWC.shape[:3]
    firsts = np.unique(np.linspace(0, frames - 2, _PAIRS).astype(int))
    pairs_2FHWC = pixels_THWC[np.stack([firsts, firsts + 1])]
    scale = _SIDE / min(height, width)
    if scale >= 1:
        return pairs_2FHWC
    size = (round(width * scale), round(height * scale))
    small = [
        np.asarray(Image.fromarray(frame_HWC).resize(size, Image.Resampling.BOX))
        for frame_HWC in pairs_2FHWC.reshape(-1, height, width, 3)
    ]
    return np.stack(small).reshape(*pairs_2FHWC.shape[:2], size[1], size[0], 3)
