"""How the subject of a drawn clip lies in its frame: whole, or cut by an edge, and by how much.

What an edge cuts off cannot be seen, but the drawn world has three shapes of two sizes: the template that explains the
visible part best, its centre anywhere up to beyond the frame, says how much of it is missing. One template is taken for
all frames of a clip: a subject that moves shows its size where it is whole.

Lengths are in px but for margins, in radii. T frames, H rows, W columns, K places of a template, P pixels.
"""

import dataclasses
import functools
import itertools
from typing import Any

import numpy as np

from sora_jax.data.sources.shapes_world import RADII, SHAPES, Scene, ShapesWorld, coverage
from sora_jax.evaluation.form import BOX, steep
from sora_jax.evaluation.shapes_oracle import coverages, unbarred

CUT = 0.1  # radii that the box may reach beyond the frame with the subject still whole: less than a pixel, unseen
_LEAST_OVERLAP = 0.6  # with the best template, mean over frames, below which there is no subject to speak of
_LEAST_SEEN = 0.1  # of the template's area; a frame that shows less tells nothing
_OUTSIDE = 0.8  # radii that a centre may lie beyond the frame
_SIZES = (0.94, 1.0, 1.06)  # times the radii of the world: what is made is not exact
_UNUSUAL = 1.3  # times the error, and one pixel, of a template of another size than the world's
_MOVES_K2 = np.array(list(itertools.product((0, 1, -1), repeat=2)), np.float32)
_REFINED = 6  # templates, those that explain a clip best at whole pixels
_FIRST_STEP, _ROUNDS = 0.5, 3  # px, of the search around the best whole pixel; halved in each round


@dataclasses.dataclass(frozen=True, kw_only=True)
class Framing:
    """How one subject lies in the frame, in the frames that show it.

    Attributes:
      in_view_T: Share of its area that lies within the frame, in [0, 1].
      margin_T: From its box to the nearest edge of the frame, in radii; negative where the box reaches beyond it.
    """

    in_view_T: np.ndarray
    margin_T: np.ndarray

    @property
    def whole(self) -> bool:
        """Whether no edge cuts it in any frame."""
        return bool(self.margin_T.min() >= -CUT)


def known_framing(scene: Scene, *, top: int = 0, left: int = 0, size: tuple[int, int] | None = None) -> Framing:
    """Returns the truth about a scene of one object that is cut to `size` (height, width), by default not at all.

    `top` rows and `left` columns are cut off before what is kept.
    """
    (spec,) = scene.objects
    size = (scene.height, scene.width) if size is None else size
    progress_T1 = np.linspace(0, 1, scene.frames)[:, None]
    place_T2 = np.array(spec.start) + progress_T1 * (np.array(spec.end) - np.array(spec.start))
    place_T2 = place_T2 * (scene.height, scene.width) - (top, left)
    return _framing(spec.shape, spec.radius * min(scene.height, scene.width), place_T2, size)


def read_framing(pixels_THWC: np.ndarray) -> Framing | None:
    """Returns how the main object of a clip, uint8 (T, H, W, 3), lies in its frame; None where none can be made out."""
    found = coverages(pixels_THWC, max_objects=1)
    if not found:
        return None
    ((_, alpha_THW),) = found
    mask_THW, visible_HW = steep(alpha_THW), unbarred(pixels_THWC)
    size = mask_THW.shape[1:]
    of_world = [share * min(size) for share in RADII.values()]
    radii = [radius * scale for radius in of_world for scale in _SIZES]
    rough = [_find(shape, radius, mask_THW, visible_HW) for shape in SHAPES for radius in radii]
    rough.sort(key=lambda found: found.error)
    fits = [_refine(found, mask_THW, visible_HW) for found in rough[:_REFINED]]
    # A size of the world explains a subject better than one that only fits a little closer.
    best = min(fits, key=lambda fit: (fit.error + 1.0) * (1.0 if fit.radius in of_world else _UNUSUAL))
    if not best.seen_T.any() or best.overlap < _LEAST_OVERLAP:
        return None
    return _framing(best.shape, best.radius, best.place_T2[best.seen_T], size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Found:
    """Where a template has the least squared error at whole pixels; `error` is that but for a constant of the clip."""

    shape: str
    radius: float
    place_T2: np.ndarray
    error: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Placed:
    """A template of one shape and size, where it explains each frame best; `error` is squared, over all frames."""

    shape: str
    radius: float
    place_T2: np.ndarray
    seen_T: np.ndarray
    error: float
    overlap: float  # intersection over union within the frame, mean over frames that show it


def _find(shape: str, radius: float, mask_THW: np.ndarray, visible_HW: np.ndarray) -> _Found:
    """Returns the best places of a template; only visible pixels count."""
    frames, height, width = mask_THW.shape
    place_K2, template_KP = _templates(shape, radius, height, width)
    if not visible_HW.all():
        template_KP = template_KP * visible_HW.ravel()
    seen_TP = (mask_THW * visible_HW).reshape(frames, -1)
    error_TK = np.einsum("kp,kp->k", template_KP, template_KP) - 2 * seen_TP @ template_KP.T
    best_T = error_TK.argmin(axis=1)
    error = float(error_TK[np.arange(frames), best_T].sum())
    return _Found(shape=shape, radius=radius, place_T2=place_K2[best_T], error=error)


def _refine(found: _Found, mask_THW: np.ndarray, visible_HW: np.ndarray) -> _Placed:
    """Returns the template at the best places to an eighth of a pixel."""
    shape, radius, place_T2 = found.shape, found.radius, found.place_T2
    size, seen_THW = mask_THW.shape[1:], mask_THW * visible_HW
    step = _FIRST_STEP
    for _ in range(_ROUNDS):
        places_KT2 = place_T2 + step * _MOVES_K2[:, None]
        error_KT = ((_draw(shape, radius, places_KT2, size) * visible_HW - seen_THW) ** 2).sum(axis=(2, 3))
        place_T2 = places_KT2[error_KT.argmin(axis=0), np.arange(len(place_T2))]
        step /= 2
    drawn_THW = _draw(shape, radius, place_T2, size) * visible_HW
    shared_T = np.minimum(drawn_THW, seen_THW).sum(axis=(1, 2))
    union_T = np.maximum(drawn_THW, seen_THW).sum(axis=(1, 2))
    seen_T = seen_THW.sum(axis=(1, 2)) > _LEAST_SEEN * _area(shape, radius)
    return _Placed(
        shape=shape,
        radius=radius,
        place_T2=place_T2,
        seen_T=seen_T,
        error=float(((drawn_THW - seen_THW) ** 2).sum()),
        overlap=float((shared_T / np.maximum(union_T, 1e-6))[seen_T].mean()) if seen_T.any() else 0.0,
    )


@functools.lru_cache(maxsize=64)
def _templates(shape: str, radius: float, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (centres (K, 2), masks (K, P)) of a template at every whole px, also beyond the frame."""
    beyond = np.floor(_OUTSIDE * radius)
    axes = [np.arange(-beyond, side + beyond + 1, dtype=np.float32) for side in (height, width)]
    place_K2 = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    return place_K2, _draw(shape, radius, place_K2, (height, width)).reshape(len(place_K2), -1)


def _draw(shape: str, radius: float, places: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns masks (..., H, W) of a template with its centre at `places` (..., 2)."""
    return steep(_cover(shape, radius, places, size))


def _cover(shape: str, radius: float, places: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the share of each pixel that such templates cover (..., H, W)."""
    row = np.arange(size[0], dtype=np.float32)[:, None] + 0.5 - places[..., 0, None, None]
    column = np.arange(size[1], dtype=np.float32) + 0.5 - places[..., 1, None, None]
    return coverage(shape, row, column, radius=radius)


def _area(shape: str, radius: float) -> float:
    side = 2 * int(np.ceil(radius)) + 2
    return float(_cover(shape, radius, np.array([side / 2, side / 2]), (side, side)).sum())


def _framing(shape: str, radius: float, place_T2: np.ndarray, size: tuple[int, int]) -> Framing:
    """Returns how an object with its centres at `place_T2` lies in a frame of `size`."""
    near_T2, far_T2 = place_T2, np.array(size) - place_T2
    margin_T = np.minimum(near_T2, far_T2).min(axis=1) / radius - BOX[shape]
    visible_T = _cover(shape, radius, place_T2, size).sum(axis=(1, 2))
    return Framing(in_view_T=np.clip(visible_T / _area(shape, radius), 0, 1), margin_T=margin_T)


def calibrate(world: ShapesWorld) -> dict[str, Any]:
    """Returns on how many clips of one object, whole and cut to their central squares, the reading is right.

    `clips` and the share `right`, in [0, 1], of those whose truth and reading agree on `whole`; what cannot be read is
    wrong. `cut` is the share that an edge cuts.
    """
    right, cut = [], []
    for index in range(len(world)):
        scene, pixels_THWC = world.scene(index), world[index].pixels_THWC
        side = min(scene.height, scene.width)
        top, left = (scene.height - side) // 2, (scene.width - side) // 2
        square_THWC = pixels_THWC[:, top : top + side, left : left + side]
        known = [known_framing(scene), known_framing(scene, top=top, left=left, size=(side, side))]
        for truth, clip in zip(known, (pixels_THWC, square_THWC), strict=True):
            read = read_framing(clip)
            right.append(read is not None and read.whole == truth.whole)
            cut.append(not truth.whole)
    return {"clips": len(right), "right": float(np.mean(right)), "cut": float(np.mean(cut))}
