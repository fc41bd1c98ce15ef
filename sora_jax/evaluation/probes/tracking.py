"""Where a colour of the palette is, and how much of it, from pixels alone: grounds are grey and have no chroma.

T frames, H rows, W columns, G palette colours; places are in px, a pixel's centre at one half.
"""

import numpy as np

from sora_jax.data.sources.shapes_world import PALETTE

# What a verdict on one clip says by name: a share in [0, 1] (what is right or wrong: 1 or 0), or an error.
ProbeVerdict = dict[str, float]

_FAINTEST = 0.3  # of a colour's own chroma, below which a pixel is not of it
_PALETTE_GC = np.array(list(PALETTE.values()), np.float32)
_CHROMA_GC = _PALETTE_GC - _PALETTE_GC.mean(axis=1, keepdims=True)
_NORM_G = np.linalg.norm(_CHROMA_GC, axis=1)


def chroma(pixels_THWC: np.ndarray) -> np.ndarray:
    """Returns pixels less their own mean over colours, float32."""
    pixels = pixels_THWC.astype(np.float32)
    return pixels - pixels.mean(axis=-1, keepdims=True)


def cover_of(pixels_THWC: np.ndarray, colour: str) -> np.ndarray:
    """Returns about the share of each pixel that a palette colour covers, in [0, 1] (T, H, W); faint ones are 0."""
    strength_THWG = chroma(pixels_THWC) @ (_CHROMA_GC / _NORM_G[:, None]).T
    number = list(PALETTE).index(colour)
    share_THW = strength_THWG[..., number] / _NORM_G[number]
    own_THW = (strength_THWG.argmax(axis=-1) == number) & (share_THW > _FAINTEST)
    return np.clip(np.where(own_THW, share_THW, 0), 0, 1)


def middle_of(cover_THW: np.ndarray) -> np.ndarray:
    """Returns row and column of what is covered, its centroid (T, 2); NaN where nothing is."""
    _, height, width = cover_THW.shape
    mass_T = cover_THW.sum(axis=(1, 2))
    with np.errstate(invalid="ignore"):
        row_T = cover_THW.sum(axis=2) @ (np.arange(height) + 0.5) / mass_T
        column_T = cover_THW.sum(axis=1) @ (np.arange(width) + 0.5) / mass_T
    return np.stack([row_T, column_T], axis=1)


def distance(first_T2: np.ndarray, second_T2: np.ndarray) -> float:
    """Returns the mean distance of places, px; infinite where one is not known."""
    mean = float(np.linalg.norm(first_T2 - second_T2, axis=1).mean())
    return mean if np.isfinite(mean) else np.inf


def probe_verdict(parts: dict[str, bool], **errors: float) -> ProbeVerdict:
    """Returns `right`, whether all parts are, with each of them and with errors."""
    return {"right": float(all(parts.values()))} | {name: float(value) for name, value in (parts | errors).items()}
