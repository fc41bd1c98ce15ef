"""A verdict for the eye: its table as text, and one picture of the clips that fared worst."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from sora_jax.evaluation.reconstruction import Damaged, Verdict

_AMPLIFIED = 4  # times the difference; grey is none
_SMALLEST, _LARGEST = 96, 384  # px of the longer side of a frame in the picture
_GAP, _LINE = 4, 16  # px between frames, and of a line of text


def table(verdict: Verdict) -> str:
    """Returns a line for each group and one for all clips, under the names of the scores."""
    rows: list[Mapping[str, Any]] = [*verdict.groups, {"frames": "all", "size": "all", **verdict.total}]
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([_text(row.get(name)) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.rjust, line, widths)) for line in cells)


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def worst_picture(worst: Sequence[Damaged]) -> np.ndarray:
    """Returns uint8 (H, W, 3): for each clip a line with its name and PSNR, and below it a row for each of its frames.

    In a row are the frame, its reconstruction, and the difference made four times as large, grey where there is none.
    """
    bands = [_band(one) for one in worst]
    sheet = Image.new("RGB", (max(band.width for band in bands), sum(band.height for band in bands)), "white")
    top = 0
    for band in bands:
        sheet.paste(band, (0, top))
        top += band.height
    return np.asarray(sheet)


def _band(one: Damaged) -> Image.Image:
    frames, height, width, _ = one.truth_FHWC.shape
    side = max(height, width)
    scale = -(-_SMALLEST // side) if side < _LARGEST else _LARGEST / side
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    label = f"{one.name}  {one.shape[0]} x {height} x {width}  {one.psnr:.2f} dB"
    across = max(3 * (size[0] + _GAP), 7 * len(label)) + _GAP
    band = Image.new("RGB", (across, _LINE + frames * (size[1] + _GAP) + _GAP), "white")
    # The font that comes with Pillow has few letters beyond these.
    ImageDraw.Draw(band).text((_GAP, 2), label.encode("ascii", "replace").decode(), fill="black")
    difference_FHWC = 128 + _AMPLIFIED * (one.made_FHWC.astype(int) - one.truth_FHWC)
    panels = (one.truth_FHWC, one.made_FHWC, np.clip(difference_FHWC, 0, 255).astype(np.uint8))
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    for column, panel_FHWC in enumerate(panels):
        for row, frame_HWC in enumerate(panel_FHWC):
            place = (_GAP + column * (size[0] + _GAP), _LINE + row * (size[1] + _GAP))
            band.paste(Image.fromarray(frame_HWC).resize(size, how), place)
    return band
