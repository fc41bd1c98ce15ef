"""Where things are: a box around each in every frame.

Before a plain ground, as of the drawn world, a thing is what has one hue; it may be partly hidden. Where nothing has
one, and before any other ground that stands still, it is the largest part of a frame that is not as the clip mostly is
there.

Letters: N things, T H W C pixels, 4: top, left, bottom, right in px, the last two behind the box.
"""

import dataclasses

import numpy as np

from sora_jax.data.clips import Clip
from sora_jax.preparation.context import Drawn
from sora_jax.preparation.edges import flooded

# Of boxes, in the order of their tracks; none says how the thing looks.
_COLOURS = np.array([(255, 255, 255), (255, 150, 0), (0, 150, 255)], np.float32)
_PLAIN, _NEAR = 0.6, 24  # share of the rim that is of one colour, and how near to it, of 255
_STRENGTH = 36.0  # of chroma, over noise
_HUES, _HUE_REACH = 36, 2  # bins of a turn, and how many to each side are the same thing
_SMALLEST, _SECOND = 0.008, 0.15  # of the frame, and of the first thing
_CHANGE = 30  # of 255, of what moves
_FEWEST = 5  # frames that tell what a clip mostly is
_CAMERA = 0.35  # share of changed pixels, over which the camera moves
_CELLS = 24  # along the short side, where what moves is joined
_SEEN = 0.2  # of a thing's largest area, under which it is not seen in a frame


def half_boxes(clip: Clip, generator: np.random.Generator) -> tuple[Clip, Drawn] | None:
    """Returns boxes on black at half the size; None where nothing is found. Nothing is drawn by lot."""
    boxes_NT4 = find_boxes(clip.pixels_THWC)
    if not len(boxes_NT4):
        return None
    height, width = clip.pixels_THWC.shape[1:3]
    pixels_THWC = draw_boxes(boxes_NT4 / 2, (height // 2, width // 2))
    return dataclasses.replace(clip, pixels_THWC=pixels_THWC), {"boxes": len(boxes_NT4)}


def find_boxes(pixels_THWC: np.ndarray) -> np.ndarray:
    """Returns boxes_NT4 float32 of up to three things in uint8 pixels, the largest first; NaN where one is not seen."""
    edges = (pixels_THWC[:, 0], pixels_THWC[:, -1], pixels_THWC[:, :, 0], pixels_THWC[:, :, -1])
    rim = np.concatenate([edge.reshape(-1, 3) for edge in edges])
    ground_C = np.median(rim, axis=0)
    plain = np.mean(np.all(np.abs(rim - ground_C) <= _NEAR, axis=-1)) >= _PLAIN
    coloured = _of_one_hue(pixels_THWC - ground_C.astype(np.float32)) if plain else []
    masks = coloured or _moving(pixels_THWC)
    tracks = [_around(mask_THW) for mask_THW in masks]
    return np.stack(tracks) if tracks else np.zeros((0, len(pixels_THWC), 4), np.float32)


def draw_boxes(boxes_NT4: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns uint8 (T, H, W, 3), the boxes of up to three tracks on black, in pixels of `size` (height, width).

    They are filled, and a pixel that a box covers in part has that share of its colour: so a small raster says more
    than its pixels where a box ends. A box is at least a pixel and ends at the rim; where it is NaN there is none. The
    last track lies on top.
    """
    pixels_THWC = np.zeros((boxes_NT4.shape[1], *size, 3), np.float32)
    for colour_C, boxes_T4 in zip(_COLOURS, boxes_NT4, strict=False):
        cover_TH, cover_TW = (_covered(boxes_T4[:, axis::2], side) for axis, side in enumerate(size))
        pixels_THWC += cover_TH[:, :, None, None] * cover_TW[:, None, :, None] * (colour_C - pixels_THWC)
    return np.rint(pixels_THWC).astype(np.uint8)


def _covered(ends_T2: np.ndarray, side: int) -> np.ndarray:
    """Returns for each of `side` pixels the share of it between both ends, float32 (T, side); 0 where these are NaN."""
    start_T1 = np.clip(ends_T2[:, :1], 0, side - 1)
    end_T1 = np.clip(ends_T2[:, 1:], start_T1 + 1, side)
    pixel_P = np.arange(side)
    share_TP = np.clip(np.minimum(end_T1, pixel_P + 1) - np.maximum(start_T1, pixel_P), 0, 1)
    return np.nan_to_num(share_TP).astype(np.float32)


def _of_one_hue(difference_THWC: np.ndarray) -> list[np.ndarray]:
    """Returns where each thing is, (T, H, W), of the difference of pixels to their plain ground."""
    red, green, blue = np.moveaxis(difference_THWC, -1, 0)
    # Two axes of chroma, at right angles to grey: shades of the ground and shadows vanish.
    first_THW, second_THW = (red - green) / np.sqrt(2), (red + green - 2 * blue) / np.sqrt(6)
    strength_THW = np.hypot(first_THW, second_THW)
    hue_THW = np.floor(np.arctan2(second_THW, first_THW) / (2 * np.pi) * _HUES).astype(int) % _HUES
    free_THW = strength_THW > _STRENGTH
    masks: list[np.ndarray] = []
    for _ in _COLOURS:
        mass = np.bincount(hue_THW[free_THW], minlength=_HUES)
        near = mass + np.roll(mass, 1) + np.roll(mass, -1)
        away_THW = np.abs((hue_THW - int(np.argmax(near)) + _HUES // 2) % _HUES - _HUES // 2)
        own_THW = free_THW & (away_THW <= _HUE_REACH)
        least = max(_SMALLEST * own_THW.size, _SECOND * masks[0].sum() if masks else 0)
        if own_THW.sum() < least:
            break
        # Soft edges end where half of the thing's colour is left.
        masks.append(own_THW & (strength_THW > 0.5 * np.percentile(strength_THW[own_THW], 75)))
        free_THW &= ~own_THW
    return masks


def _moving(pixels_THWC: np.ndarray) -> list[np.ndarray]:
    """Returns where the largest moving part of each frame is, (T, H, W), once; nothing where the camera moves."""
    frames, height, width = pixels_THWC.shape[:3]
    if frames < _FEWEST:
        return []
    mostly_HWC = np.median(pixels_THWC, axis=0).astype(np.float32)
    changed_THW = np.abs(pixels_THWC - mostly_HWC).max(axis=-1) > _CHANGE
    if changed_THW.mean() > _CAMERA:
        return []
    side = max(1, min(height, width) // _CELLS)
    padded = np.pad(changed_THW, ((0, 0), (0, -height % side), (0, -width % side)))
    cells_TRK = padded.reshape(frames, padded.shape[1] // side, side, -1, side).mean(axis=(2, 4)) > 0.25
    largest_TRK = np.concatenate([_largest(cells_TRK[frame : frame + 1]) for frame in range(frames)])
    mask_THW = largest_TRK.repeat(side, axis=1).repeat(side, axis=2)[:, :height, :width] & changed_THW
    seen = mask_THW.mean(axis=(1, 2)) >= _SMALLEST
    return [mask_THW] if seen.mean() >= 0.5 else []


def _largest(cells_1RK: np.ndarray) -> np.ndarray:
    """Returns the largest connected part of a frame, of its shape."""
    best, left = np.zeros_like(cells_1RK), cells_1RK.copy()
    while left.any():
        seed = np.zeros_like(left)
        seed.flat[np.argmax(left)] = True
        part = flooded(seed, left)
        left &= ~part
        best = part if part.sum() > best.sum() else best
    return best


def _around(mask_THW: np.ndarray) -> np.ndarray:
    """Returns boxes_T4 around a thing; NaN where hardly any of it is seen."""
    area_T = mask_THW.sum(axis=(1, 2))
    boxes_T4 = np.full((len(mask_THW), 4), np.nan, np.float32)
    for frame in np.flatnonzero(area_T > _SEEN * area_T.max()):
        rows, columns = (np.flatnonzero(mask_THW[frame].any(axis=axis)) for axis in (1, 0))
        boxes_T4[frame] = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
    return boxes_T4
