"""Reads colour, shape and motion of the drawn world's objects back from pixels alone.

Everything is measured in chroma (colour less its own mean), where the plain backgrounds and the bar vanish
and a faded or blurred object keeps its direction. The reading is right on drawn clips also after the blur,
noise and loss of contrast of a middling sample; what it cannot make out is None, which counts as wrong.

T frames, H rows, W columns, C channels (RGB), G palette colours, F frames used for the shape, K window side.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from sora_jax.data.shapes_prompts import PromptCase
from sora_jax.data.shapes_world import PALETTE, SHAPES, STILL, Attributes, coverage

_COLOURS = tuple(PALETTE)
# In chroma the palette's norms are 107 to 154, the bar's is 24 and noise of 8/255 has 8 along a direction.
_STRENGTH = 36.0
_SMALLEST = 0.008  # share of the frame that must carry a colour before it is an object
_LEADING = 0.3  # of all chroma that the first object must hold; noise spreads it over the six hues
_SECOND = 0.15  # of the first object's mass, below which a second hue is a stain on the first
_DISPLACED = 0.12  # of the side, first third to last third; drawn motions give 0.3 and more
_STRAY = 0.20  # of the side: something that ends where it began but went this far did not stay still
_CORRELATION = 0.6  # below this the best template says nothing
_FILL = {"circle": np.pi, "square": np.pi, "triangle": 2.0}  # area over squared radius
_CENTROID = {"circle": 0.0, "square": 0.0, "triangle": 1 / 3}  # rows below the centre of the box, in radii


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """What one object looks like; a part is None where it cannot be told, motion always in an image."""

    colour: str | None = None
    shape: str | None = None
    motion: str | None = None
    persistent: bool = False  # seen in every frame
    # Centre (row, column) in each frame, px; of no meaning where it is not seen.
    position_T2: np.ndarray | None = dataclasses.field(default=None, compare=False)


def read(pixels_THWC: np.ndarray) -> Reading:
    """Returns the reading of the main object of a clip, uint8 (T, H, W, 3); all None without an object."""
    readings = read_objects(pixels_THWC, max_objects=1)
    return readings[0] if readings else Reading()


def read_objects(pixels_THWC: np.ndarray, *, max_objects: int) -> tuple[Reading, ...]:
    """Returns readings of up to `max_objects` objects of different colours, the most visible first."""
    projection_GTHW = _projections(pixels_THWC)
    strength_THW = projection_GTHW.max(axis=0)
    nearest_THW = projection_GTHW.argmax(axis=0)
    seen_THW = np.maximum(strength_THW - _STRENGTH, 0)
    mass_G = np.array([seen_THW[nearest_THW == number].sum() for number in range(len(_COLOURS))])
    least = _SMALLEST * seen_THW.size * _STRENGTH
    readings = []
    if mass_G.max() < _LEADING * mass_G.sum():
        return ()
    for number in np.argsort(-mass_G)[:max_objects]:
        if mass_G[number] < max(least, _SECOND * mass_G.max()):
            break
        # Only the object's own hue: a neighbouring one 60 degrees away would project with half its strength.
        own_THW = (nearest_THW == number) | (strength_THW < _STRENGTH)
        alpha_THW = np.where(own_THW, projection_GTHW[number], 0)
        level = np.percentile(alpha_THW[own_THW & (alpha_THW > _STRENGTH)], 75)
        readings.append(_read_mask(alpha_THW / level, colour=_COLOURS[number]))
    return tuple(readings)


def score(cases: Sequence[PromptCase], clips: Sequence[np.ndarray]) -> dict[str, float]:
    """Returns shares of prompts followed: `colour`, `shape`, `motion`, `all` of them, and `persistent`.

    `clips[i]`, uint8 (T, H, W, 3), answers `cases[i]`; `prompts` is how many there are. An attribute of a
    prompt with two objects is right when both are. `motion` is over the prompts that ask for one, and absent
    where none does.
    """
    assert len(cases) == len(clips), (len(cases), len(clips))
    right: dict[str, list[bool]] = {}
    for case, pixels_THWC in zip(cases, clips, strict=True):
        readings = read_objects(pixels_THWC, max_objects=len(case.objects))
        for name, value in _compare(case.objects, readings).items():
            right.setdefault(name, []).append(value)
    return {"prompts": len(cases)} | {name: float(np.mean(values)) for name, values in right.items()}


def _compare(asked: tuple[Attributes, ...], readings: tuple[Reading, ...]) -> dict[str, bool]:
    """Returns which attributes are right under the pairing of objects and readings that is kindest."""
    padded = readings + (Reading(),) * (len(asked) - len(readings))
    best: dict[str, bool] = {}
    for order in itertools.permutations(padded, len(asked)):
        pairs = list(zip(asked, order, strict=True))
        right = {
            "colour": all(kind.colour == seen.colour for kind, seen in pairs),
            "shape": all(kind.shape == seen.shape for kind, seen in pairs),
        }
        if any(kind.motion is not None for kind in asked):
            right["motion"] = all(kind.motion == seen.motion for kind, seen in pairs)
        right["all"] = all(right.values())
        right["persistent"] = all(seen.persistent for seen in order)
        if sum(right.values()) > sum(best.values()) or not best:
            best = right
    return best


def _projections(pixels_THWC: np.ndarray) -> np.ndarray:
    """Returns how far each pixel's chroma goes in the direction of each palette colour, (G, T, H, W)."""
    palette_GC = np.array(list(PALETTE.values()), np.float32)
    palette_GC -= palette_GC.mean(axis=1, keepdims=True)
    palette_GC /= np.linalg.norm(palette_GC, axis=1, keepdims=True)
    pixels = pixels_THWC.astype(np.float32)
    edges = (pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1])
    border_C = np.median(np.concatenate([edge.reshape(-1, 3) for edge in edges]), axis=0)
    # The palette's directions sum to zero over channels, which takes the mean off the pixels as well.
    return np.einsum("thwc,gc->gthw", pixels - border_C, palette_GC)


def _read_mask(alpha_THW: np.ndarray, *, colour: str) -> Reading:
    """Returns the reading of one object given its coverage, about 0 to 1, with noise."""
    frames, height, width = alpha_THW.shape
    firm_THW = np.clip((alpha_THW - 0.25) / 0.75, 0, 1)
    mass_T = firm_THW.sum(axis=(1, 2))
    seen_T = mass_T > 0.3 * np.percentile(mass_T, 90)
    weight_T = np.maximum(mass_T, 1e-6)
    row_T = (firm_THW.sum(axis=2) @ (np.arange(height) + 0.5)) / weight_T
    column_T = (firm_THW.sum(axis=1) @ (np.arange(width) + 0.5)) / weight_T
    position_T2 = np.stack([row_T, column_T], axis=1)
    motion = None
    if frames > 1:
        motion = _read_motion(position_T2 / np.array([height, width]), seen_T)
    return Reading(
        colour=colour,
        shape=_read_shape(alpha_THW, position_T2, mass_T),
        motion=motion,
        persistent=bool(seen_T.all()),
        position_T2=position_T2,
    )


def _read_motion(position_T2: np.ndarray, seen_T: np.ndarray) -> str | None:
    """Returns the direction from the first third to the last third; positions are fractions of the frame."""
    third = max(1, round(len(position_T2) / 3))
    first, last = seen_T[:third], seen_T[-third:]
    if not (first.any() and last.any()):
        return None
    rows, columns = position_T2[-third:][last].mean(axis=0) - position_T2[:third][first].mean(axis=0)
    if max(abs(rows), abs(columns)) < _DISPLACED:
        return STILL if np.ptp(position_T2[seen_T], axis=0).max() < _STRAY else None
    if abs(rows) > abs(columns):
        return "down" if rows > 0 else "up"
    return "right" if columns > 0 else "left"


def _read_shape(alpha_THW: np.ndarray, position_T2: np.ndarray, mass_T: np.ndarray) -> str | None:
    """Returns the shape whose template, drawn where each frame has its object, correlates best.

    Templates have the size that the area implies, within some per cent. Frames are those where most of the
    object is in view, up to six; each enters with its own subpixel offset, so nothing is resampled.
    """
    whole = np.flatnonzero(mass_T >= 0.85 * mass_T.max())
    chosen = whole[np.unique(np.linspace(0, len(whole) - 1, min(len(whole), 6)).round().astype(int))]
    area = np.clip(alpha_THW[chosen], 0, 1)
    area = float(np.where(area > 0.2, area, 0).sum()) / len(chosen)
    reach = int(np.ceil(1.5 * np.sqrt(area / 2))) + 2
    corner_F2 = np.floor(position_T2[chosen]).astype(int)
    padded = np.pad(alpha_THW[chosen], ((0, 0), (reach, reach), (reach, reach)))
    windows = [
        padded[number, row : row + 2 * reach + 1, column : column + 2 * reach + 1]
        for number, (row, column) in enumerate(corner_F2)
    ]
    window_FKK = np.clip(np.stack(windows), 0, 1)
    grid_K = np.arange(-reach, reach + 1, dtype=np.float32) + 0.5
    offset_F2 = (position_T2[chosen] - corner_F2).astype(np.float32)
    best, best_correlation = None, _CORRELATION
    for shape in SHAPES:
        for stretch in (0.88, 0.94, 1.0, 1.06, 1.12):
            radius = float(stretch * np.sqrt(area / _FILL[shape]))
            row_FK = grid_K - offset_F2[:, :1] + _CENTROID[shape] * radius
            column_FK = grid_K - offset_F2[:, 1:]
            template_FKK = coverage(shape, row_FK[:, :, None], column_FK[:, None, :], radius=radius)
            correlation = _correlation(window_FKK, template_FKK)
            if correlation > best_correlation:
                best, best_correlation = shape, correlation
    return best


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first - first.mean(), second - second.mean()
    norm = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / max(norm, 1e-6))
