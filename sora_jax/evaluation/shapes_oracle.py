"""Reads colour, shape and motion of the drawn world's objects back from pixels alone, and whether they are clean.

Everything is measured in chroma (colour less its own mean), where the plain backgrounds and the bar vanish
and a faded or blurred object keeps its direction. The reading is right on drawn clips also after the blur,
noise and loss of contrast of a middling sample; what it cannot make out is None, which counts as wrong.
`evaluation/form.py` says what fits a shape and what is clean.

T frames, H rows, W columns, C channels (RGB), G palette colours, F frames used for the shape.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from sora_jax.data.sources.shapes_prompts import PromptCase
from sora_jax.data.sources.shapes_world import PALETTE, SHAPES, STILL
from sora_jax.evaluation.form import Fit, find_faults, fit_template, steep, window_means

_COLOURS = tuple(PALETTE)
_ATTRIBUTES = ("colour", "shape", "motion")
# In chroma the palette's norms are 107 to 154, the bar's is 24 and noise of 8/255 has 8 along a direction.
_STRENGTH = 36.0
_SMALLEST = 0.008  # share of the frame that must carry a colour before it is an object
_LEADING = 0.3  # of all chroma that the first object must hold; noise spreads it over the six hues
_SECOND = 0.15  # of the first object's mass, below which a second hue is a stain on the first
_DISPLACED = 0.12  # of the side, first third to last third; drawn motions give 0.3 and more
_STRAY = 0.20  # of the side: something that ends where it began but went this far did not stay still
_LEAST_OVERLAP = 0.8  # with the best template, below which an object is a lump; clean ones have more
_FRAMES_OF_SHAPE = 6
_STAIN = 20.0  # chroma that the eye sees on a plain ground, mean of a window; noise of 8/255 leaves 15 at most
_STAIN_WINDOW = 0.1  # of the short side
# A bar is brown all along: red over green and over blue by 22 and 34, two thirds of that where faded.
_BROWN = (5.0, 10.0)
_REDDEST = 60.0  # of a bar; objects are redder by far
_WIDEST_BAR = 0.4  # of the side; more is a ground that has turned brown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """What one object looks like; a part is None where it cannot be told, motion always in an image."""

    colour: str | None = None
    shape: str | None = None
    motion: str | None = None
    persistent: bool = False  # seen in every frame
    faults: tuple[str, ...] = ()  # why it is not clean: those of `find_faults`, "stain" beside it, "gone" in some frame
    # Centre (row, column) in each frame, px; of no meaning where it is not seen.
    position_T2: np.ndarray | None = dataclasses.field(default=None, compare=False)

    @property
    def clean(self) -> bool:
        """Whether an eye would see one whole, lasting object of its shape, and nothing beside it."""
        return self.shape is not None and not self.faults


def read(pixels_THWC: np.ndarray) -> Reading:
    """Returns the reading of the main object of a clip, uint8 (T, H, W, 3); all None without an object."""
    readings = read_objects(pixels_THWC, max_objects=1)
    return readings[0] if readings else Reading()


def read_objects(pixels_THWC: np.ndarray, *, max_objects: int) -> tuple[Reading, ...]:
    """Returns readings of up to `max_objects` objects of different colours, the most visible first."""
    visible_HW = unbarred(pixels_THWC)
    readings, fits = [], []
    for colour, alpha_THW in coverages(pixels_THWC, max_objects=max_objects):
        reading, fit = _read_object(alpha_THW, visible_HW, colour=colour)
        readings.append(reading)
        fits.append(fit)
    if any(fit is not None for fit in fits) and _is_stained(pixels_THWC, visible_HW, fits):
        readings = [dataclasses.replace(reading, faults=(*reading.faults, "stain")) for reading in readings]
    return tuple(readings)


def coverages(pixels_THWC: np.ndarray, *, max_objects: int) -> list[tuple[str, np.ndarray]]:
    """Returns (colour, noisy coverage of each pixel, about 0 to 1, (T, H, W)) of the most visible objects."""
    projection_GTHW = _projections(pixels_THWC)
    strength_THW = projection_GTHW.max(axis=0)
    nearest_THW = projection_GTHW.argmax(axis=0)
    seen_THW = np.maximum(strength_THW - _STRENGTH, 0)
    mass_G = np.array([seen_THW[nearest_THW == number].sum() for number in range(len(_COLOURS))])
    least = _SMALLEST * seen_THW.size * _STRENGTH
    if mass_G.max() < _LEADING * mass_G.sum():
        return []
    found = []
    for number in np.argsort(-mass_G)[:max_objects]:
        if mass_G[number] < max(least, _SECOND * mass_G.max()):
            break
        # Only the object's own hue: a neighbouring one 60 degrees away would project with half its strength.
        own_THW = (nearest_THW == number) | (strength_THW < _STRENGTH)
        alpha_THW = np.where(own_THW, projection_GTHW[number], 0)
        level = np.percentile(alpha_THW[own_THW & (alpha_THW > _STRENGTH)], 75)
        found.append((_COLOURS[number], alpha_THW / level))
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipScore:
    """What a clip has right of its prompt, by the names of `score` but `prompts`, and what was read from it."""

    right: dict[str, bool]
    readings: tuple[Reading, ...]


def score_clip(case: PromptCase, pixels_THWC: np.ndarray) -> ClipScore:
    """Returns the verdict on a clip, uint8 (T, H, W, 3), that answers a prompt."""
    readings = read_objects(pixels_THWC, max_objects=len(case.objects))
    return ClipScore(right=_compare(case, readings), readings=readings)


def score(cases: Sequence[PromptCase], clips: Sequence[np.ndarray]) -> dict[str, float]:
    """Returns shares of prompts followed: `colour`, `shape`, `motion`, `all` of them, `persistent` and `clean`.

    `clips[i]`, uint8 (T, H, W, 3), answers `cases[i]`; `prompts` is how many there are. An attribute of a
    prompt with two objects is right when both are. Each attribute is over the prompts that ask for it, and absent
    where none does. A clean object has the shape that was asked for, if any was.
    """
    assert len(cases) == len(clips), (len(cases), len(clips))
    return shares([score_clip(case, pixels_THWC) for case, pixels_THWC in zip(cases, clips, strict=True)])


def shares(verdicts: Sequence[ClipScore]) -> dict[str, float]:
    """Returns the scores of `score` that verdicts add up to."""
    names = dict.fromkeys(name for verdict in verdicts for name in verdict.right)
    return {"prompts": len(verdicts)} | {
        name: float(np.mean([one.right[name] for one in verdicts if name in one.right])) for name in names
    }


def _compare(case: PromptCase, readings: tuple[Reading, ...]) -> dict[str, bool]:
    """Returns which attributes are right under the pairing of objects and readings that is kindest."""
    asked = case.objects
    padded = readings + (Reading(),) * (len(asked) - len(readings))
    told = [name for name in _ATTRIBUTES if name not in case.left_open and any(getattr(one, name) for one in asked)]
    best: dict[str, bool] = {}
    for order in itertools.permutations(padded, len(asked)):
        pairs = list(zip(asked, order, strict=True))
        right = {name: all(getattr(kind, name) == getattr(seen, name) for kind, seen in pairs) for name in told}
        right["all"] = all(right.values())
        right["persistent"] = all(seen.persistent for seen in order)
        right["clean"] = right.get("shape", True) and all(seen.clean for seen in order)
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


def unbarred(pixels_THWC: np.ndarray) -> np.ndarray:
    """Returns (H, W), False where a bar may hide an object; its soft edges count as the bar."""
    # A bar stands still before what moves: its mean over time is the bar with less noise.
    pixels_HWC = pixels_THWC.mean(axis=0, dtype=np.float32)
    brown_HW2 = pixels_HWC[..., :1] - pixels_HWC[..., 1:]
    visible_HW = np.ones(pixels_HWC.shape[:2], bool)
    for axis, across in ((1, 1), (2, 0)):
        low, high = np.percentile(brown_HW2, (25, 75), axis=across)
        bar = (low > _BROWN).all(axis=-1) & (high < _REDDEST).all(axis=-1)
        if bar.any() and bar.mean() <= _WIDEST_BAR:
            near = np.convolve(bar, np.ones(3), mode="same") > 0
            visible_HW &= ~(near[:, None] if axis == 1 else near[None, :])
    return visible_HW


def _read_object(alpha_THW: np.ndarray, visible_HW: np.ndarray, *, colour: str) -> tuple[Reading, Fit | None]:
    """Returns the reading of one object but for stains, and its template, from its noisy coverage, about 0 to 1."""
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
    mask_THW = steep(alpha_THW)
    shape = _read_shape(mask_THW, visible_HW, mass_T)
    fit = None if shape is None else fit_template(shape, mask_THW, visible_HW)
    faults = () if fit is None else find_faults(fit, mask_THW, visible_HW)
    reading = Reading(
        colour=colour,
        shape=shape,
        motion=motion,
        persistent=bool(seen_T.all()),
        faults=faults if seen_T.all() else (*faults, "gone"),
        position_T2=position_T2,
    )
    return reading, fit


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


def _read_shape(mask_THW: np.ndarray, visible_HW: np.ndarray, mass_T: np.ndarray) -> str | None:
    """Returns the shape whose templates overlap best, in up to six frames where most of the object is in view."""
    whole = np.flatnonzero(mass_T >= 0.85 * mass_T.max())
    chosen = np.linspace(0, len(whole) - 1, min(len(whole), _FRAMES_OF_SHAPE)).round().astype(int)
    mask_FHW = mask_THW[whole[chosen]]
    overlap = {shape: fit_template(shape, mask_FHW, visible_HW).overlap_T.mean() for shape in SHAPES}
    best = max(SHAPES, key=lambda shape: overlap[shape])
    return best if overlap[best] >= _LEAST_OVERLAP else None


def _is_stained(pixels_THWC: np.ndarray, visible_HW: np.ndarray, fits: Sequence[Fit | None]) -> bool:
    """Returns whether chroma lies on the ground beside the objects in a frame that shows them whole."""
    known = [fit for fit in fits if fit is not None]
    outside_THW = ~np.any([fit.footprint_THW() for fit in known], axis=0) & visible_HW
    whole_T = np.all([fit.whole_T(visible_HW) for fit in known], axis=0)
    pixels = pixels_THWC[whole_T].astype(np.float32)
    chroma_THWC = (pixels - pixels.mean(axis=-1, keepdims=True)) * outside_THW[whole_T, ..., None]
    window = max(3, round(_STAIN_WINDOW * min(pixels_THWC.shape[1:3])))
    squares_THW = sum(window_means(chroma_THWC[..., channel], window) ** 2 for channel in range(3))
    return bool(np.max(squares_THW, initial=0) > _STAIN**2)
