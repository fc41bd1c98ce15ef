"""Dark bars around a picture.

Letters: T frames, G frames looked at, H rows, W columns, C colours.
"""

import numpy as np

from sora_jax.data.curation.frames import FRAMES, grey, spread

# A row or column belongs to a bar while no pixel of it is brighter, or varies more, than this; of 255.
_BAR_LUMA, _BAR_SPREAD = 40, 16
# Share of a side that opposite bars may differ by.
_BAR_SKEW = 0.02


def letterbox(pixels_THWC: np.ndarray) -> tuple[int, int, int, int]:
    """Returns the dark bars at (top, bottom, left, right), px; zeros without bars.

    A bar is rows (columns) of which no pixel is brighter than 40 of 255 or varies over more than 16, in place or in
    time, and beside which most of the picture's edge is brighter. Bars come in pairs of one width (within 2 % of the
    side, at least 2 px). So a dark room is no bar, nor a night sky, nor a bar with a logo in it; a clip that is dark
    all over has none.
    """
    luma_GHW = grey(pixels_THWC[spread(len(pixels_THWC), FRAMES)], short_side=min(pixels_THWC.shape[1:3]))
    low_HW, high_HW = luma_GHW.min(axis=0).astype(np.int16), luma_GHW.max(axis=0).astype(np.int16)
    dark_H = _is_bar(low_HW, high_HW)
    dark_W = _is_bar(low_HW.T, high_HW.T)
    if dark_H.all() or dark_W.all():
        return 0, 0, 0, 0
    top, bottom = _ends(dark_H)
    left, right = _ends(dark_W)
    lit_HW = high_HW[top : len(dark_H) - bottom, left : len(dark_W) - right] > _BAR_LUMA
    if not _framed(lit_HW, top, bottom, side=len(dark_H)):
        top = bottom = 0
    if not _framed(lit_HW.T, left, right, side=len(dark_W)):
        left = right = 0
    return top, bottom, left, right


def _is_bar(low_HW: np.ndarray, high_HW: np.ndarray) -> np.ndarray:
    """Returns for each row whether it is dark and even, from the extremes of its pixels over time."""
    high_H = high_HW.max(axis=1)
    return (high_H <= _BAR_LUMA) & (high_H - low_HW.min(axis=1) <= _BAR_SPREAD)


def _ends(dark: np.ndarray) -> tuple[int, int]:
    """Returns how many lines are dark at the start and at the end."""
    picture = np.flatnonzero(~dark)
    return int(picture[0]), len(dark) - 1 - int(picture[-1])


def _framed(lit_HW: np.ndarray, first: int, last: int, *, side: int) -> bool:
    """Returns whether `first` and `last` of `side` lines are bars, from where the picture between them is lit."""
    slack = max(2, round(_BAR_SKEW * side))
    depth = min(slack, len(lit_HW) - 1)
    edged = min(lit_HW[depth].mean(), lit_HW[-1 - depth].mean()) > 0.5
    return bool(edged) and min(first, last) > 0 and abs(first - last) <= slack


def crop_bars(pixels_THWC: np.ndarray, bars: tuple[int, int, int, int]) -> np.ndarray:
    """Returns the pixels within `bars` = (top, bottom, left, right), px."""
    top, bottom, left, right = bars
    height, width = pixels_THWC.shape[1:3]
    return pixels_THWC[:, top : height - bottom, left : width - right]
