"""The form of one object: which template its outline fits, and what keeps an eye from calling it clean.

An object and a template are compared as masks: coverage made twice as steep about one half, which leaves outlines where
they are, while blur, noise and fading leave little trace. Lengths are in px.

T frames, H rows, W columns, K candidates of a search.
"""

import dataclasses

import numpy as np

from sora_jax.data.sources.shapes_world import coverage

LEAST_OVERLAP = 0.85  # of a clean outline, mean over frames; a circle and the best square overlap by that much
_LEAST_OF_A_FRAME = 0.7
_SOFTEST = 1.75, 0.25  # px, or radii where that is more, in which an edge goes from a quarter to three quarters
_LARGEST_DEFECT = 0.55  # of a window of two fifths of the radius, the share that is wrong: a second peak, a notch
_DEFECT_WINDOW = 0.4  # of the radius
_LARGEST_GROWTH = 1.4  # largest over smallest area
_SECOND_PART = 0.04  # of the object's area, below which what lies apart is a speck
_CUT = 0.75  # px that a template may reach beyond the frame with the object still whole
_HIDDEN = 0.02  # of the template, more than in the frame where least is hidden, with the object still whole
_FOOT = 2  # px around the template that belong to the object: a soft edge is no stain
_STEEP = 2.0
_FILL = {"circle": np.pi, "square": np.pi, "triangle": 2.0}  # area over squared radius
_CENTROID = {"circle": 0.0, "square": 0.0, "triangle": 1 / 3}  # rows below the centre of the box, in radii
_EDGE = {"circle": 2 * np.pi, "square": 4 * np.sqrt(np.pi), "triangle": 2 + 2 * np.sqrt(5)}  # perimeter, in radii
BOX = {"circle": 1.0, "square": np.sqrt(np.pi) / 2, "triangle": 1.0}  # half of the box's side, in radii
_MOVES_K3 = np.array([(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)], np.float32)
_FIRST_STEP, _ROUNDS = 1 / 8, 8  # of the search: in radii, halved where no move is better


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """The template of a shape that overlaps an object best in each frame: row and column of its centre, its radius."""

    shape: str
    place_3T: np.ndarray
    overlap_T: np.ndarray  # intersection over union of both masks, in [0, 1]
    mask_THW: np.ndarray  # of the template

    def whole_T(self, visible_HW: np.ndarray) -> np.ndarray:
        """Returns in which frames the template lies within the frame, and behind a bar as little as it ever does."""
        row_T, column_T, radius_T = self.place_3T
        half_T = BOX[self.shape] * radius_T - _CUT
        height, width = self.mask_THW.shape[1:]
        inside_T = (row_T >= half_T) & (row_T <= height - half_T)
        inside_T &= (column_T >= half_T) & (column_T <= width - half_T)
        hidden_T = (self.mask_THW * ~visible_HW).sum(axis=(1, 2)) / np.maximum(self.mask_THW.sum(axis=(1, 2)), 1e-6)
        return inside_T & (hidden_T <= np.min(hidden_T[inside_T], initial=1.0) + _HIDDEN)

    def footprint_THW(self) -> np.ndarray:
        """Returns where the object and its soft edge are."""
        foot_THW = self.mask_THW > 0
        for _ in range(_FOOT):
            foot_THW = _spread(foot_THW)
        return foot_THW


def steep(coverage_THW: np.ndarray) -> np.ndarray:
    """Returns the mask, in [0, 1], of a coverage that is about 0 outside of an object and 1 within."""
    return np.clip(_STEEP * (coverage_THW - 0.5) + 0.5, 0, 1).astype(np.float32, copy=False)


def fit_template(shape: str, mask_THW: np.ndarray, visible_HW: np.ndarray) -> Fit:
    """Returns the best template of `shape`, searched from the centroid and area of `mask_THW`.

    Only pixels that are visible count: the template goes on behind what hides the object, and beyond the frame.
    """
    frames, height, width = mask_THW.shape
    row_H1 = np.arange(height, dtype=np.float32)[:, None] + 0.5
    column_W = np.arange(width, dtype=np.float32) + 0.5
    mask_THW = mask_THW * visible_HW
    area_T = np.maximum(mask_THW.sum(axis=(1, 2)), 1e-6)
    radius_T = np.sqrt(area_T / _FILL[shape])
    row_T = (mask_THW * row_H1).sum(axis=(1, 2)) / area_T - _CENTROID[shape] * radius_T
    column_T = (mask_THW * column_W).sum(axis=(1, 2)) / area_T
    place_3T = np.stack([row_T, column_T, radius_T])

    def draw(place_K3T: np.ndarray) -> np.ndarray:
        row_KT11, column_KT11, radius_KT11 = (place_K3T[:, part, :, None, None] for part in range(3))
        return steep(coverage(shape, row_H1 - row_KT11, column_W - column_KT11, radius=radius_KT11))

    def overlap(place_K3T: np.ndarray) -> np.ndarray:
        template_KTHW = draw(place_K3T)
        template_KTHW *= visible_HW
        shared_KT = np.minimum(mask_THW, template_KTHW).sum(axis=(2, 3))
        return shared_KT / (area_T + template_KTHW.sum(axis=(2, 3)) - shared_KT)

    (best_T,) = overlap(place_3T[None])
    step_T = radius_T * np.float32(_FIRST_STEP)
    for _ in range(_ROUNDS):
        place_K3T = place_3T + _MOVES_K3[:, :, None] * step_T
        overlap_KT = overlap(place_K3T)
        choice_T, better_T = overlap_KT.argmax(axis=0), overlap_KT.max(axis=0) > best_T
        place_3T = np.where(better_T, place_K3T[choice_T, :, np.arange(frames)].T, place_3T)
        best_T = np.maximum(overlap_KT.max(axis=0), best_T)
        step_T = np.where(better_T, step_T, step_T / 2)
    return Fit(shape=shape, place_3T=place_3T, overlap_T=best_T, mask_THW=draw(place_3T[None])[0])


def find_faults(fit: Fit, mask_THW: np.ndarray, visible_HW: np.ndarray) -> tuple[str, ...]:
    """Returns what keeps an eye from calling the object clean, from frames that show it whole.

    "parts": it comes in two; "outline": it overlaps too little with the template, or has a peak or notch that this has
    not; "blur": its edges are soft; "size": its area changes; "view": it is whole in no frame.
    """
    whole_T = fit.whole_T(visible_HW)
    if not whole_T.any():
        return ("view",)
    overlap_T, radius_T = fit.overlap_T[whole_T], fit.place_3T[2, whole_T]
    seen_THW, radius = mask_THW[whole_T] * visible_HW, float(np.median(radius_T))
    # A straight ramp from 0 to 1 has 2/3 of its width in the sum of 4 m (1 - m).
    soft = 1.5 * float(np.mean((4 * seen_THW * (1 - seen_THW)).sum(axis=(1, 2)) / (_EDGE[fit.shape] * radius_T)))
    wrong_THW = np.abs(seen_THW - fit.mask_THW[whole_T] * visible_HW)
    window = max(3, round(_DEFECT_WINDOW * radius))
    found = {
        "parts": _second_part_T(mask_THW[whole_T], visible_HW).max() > _SECOND_PART,
        "outline": overlap_T.mean() < LEAST_OVERLAP
        or overlap_T.min() < _LEAST_OF_A_FRAME
        or window_means(wrong_THW, window).max() > _LARGEST_DEFECT,
        "blur": soft > max(_SOFTEST[0], _SOFTEST[1] * radius),
        "size": (radius_T.max() / radius_T.min()) ** 2 > _LARGEST_GROWTH,
    }
    return tuple(name for name, fault in found.items() if fault)


def window_means(values_THW: np.ndarray, side: int) -> np.ndarray:
    """Returns the mean of every square window of `side` px within the frame (T, H - side + 1, W - side + 1)."""
    sums_THW = np.cumsum(np.cumsum(np.pad(values_THW, ((0, 0), (1, 0), (1, 0))), axis=1), axis=2)
    sums_THW = sums_THW[:, side:] - sums_THW[:, :-side]
    return (sums_THW[:, :, side:] - sums_THW[:, :, :-side]) / side**2


def _second_part_T(mask_THW: np.ndarray, visible_HW: np.ndarray) -> np.ndarray:
    """Returns the area of all but one connected part, as a share of the object; what hides it joins its parts."""
    object_THW = mask_THW > 0.5
    solid_THW = object_THW | ~visible_HW
    # From where the object is thick: a speck would be all of its own part.
    thick_THW = window_means(np.pad(mask_THW, ((0, 0), (1, 1), (1, 1))), 3)
    part_THW = thick_THW == thick_THW.max(axis=(1, 2), keepdims=True)
    part_THW &= np.cumsum(part_THW.reshape(len(part_THW), -1), axis=1).reshape(part_THW.shape) == 1
    size = -1
    while size != (size := int(part_THW.sum())):
        part_THW = _spread(part_THW) & solid_THW
    share_T = (part_THW & object_THW).sum(axis=(1, 2)) / np.maximum(object_THW.sum(axis=(1, 2)), 1)
    return np.minimum(share_T, 1 - share_T)


def _spread(flags_THW: np.ndarray) -> np.ndarray:
    """Returns the flags with those of the four neighbours of every flag."""
    spread_THW = flags_THW.copy()
    spread_THW[:, 1:] |= flags_THW[:, :-1]
    spread_THW[:, :-1] |= flags_THW[:, 1:]
    spread_THW[:, :, 1:] |= flags_THW[:, :, :-1]
    spread_THW[:, :, :-1] |= flags_THW[:, :, 1:]
    return spread_THW
