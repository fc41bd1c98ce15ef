"""Verdicts for the eye: tables as text, the clips that came back worst, and samples with what the oracle says."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from sora_jax.evaluation.evaluator import Judged
from sora_jax.evaluation.reconstruction import Damaged
from sora_jax.evaluation.shapes_oracle import Reading

_AMPLIFIED = 4  # times the difference; grey is none
_SMALLEST, _LARGEST = 96, 384  # px of the longer side of a frame in the picture
_ENLARGED, _MOST_FRAMES = 4, 9  # times the px of a sample, and frames in its row
_RIGHT, _WRONG = (0, 110, 40), (200, 30, 30)
_GAP, _LINE = 4, 16  # px between frames, and of a line of text


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns a line for each group of clips, under the names of the scores."""
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


def verdicts_picture(judged: Judged) -> np.ndarray:
    """Returns uint8 (H, W, 3): for each sample a row of up to nine frames, four times as large, under two lines.

    The first line is the prompt, with the name of every score in green where it is right, in red where not; the second
    is what the oracle read.
    """
    height, width = (max(clip.shape[axis] for clip in judged.clips) * _ENLARGED for axis in (1, 2))
    frames = min(_MOST_FRAMES, max(len(clip) for clip in judged.clips))
    row = 2 * _LINE + height + _GAP
    sheet = Image.new("RGB", (max(640, frames * (width + _GAP) + _GAP), row * len(judged.clips)), "white")
    pen = ImageDraw.Draw(sheet)
    pen.fontmode = "1"  # letters of one colour, not smoothed
    for number, (prompt, clip, verdict) in enumerate(zip(judged.prompts, judged.clips, judged.verdicts, strict=True)):
        top, left = number * row, _GAP
        words = [(f"{number}: {prompt}  ", (0, 0, 0))]
        words += [(f"{name} ", _RIGHT if right else _WRONG) for name, right in verdict.right.items()]
        for word, colour in words:
            pen.text((left, top + 2), word, fill=colour)
            left += 7 * len(word)
        read = "; ".join(map(_read, verdict.readings)) or "nothing"
        pen.text((_GAP, top + _LINE + 1), f"seen: {read}", fill=(90, 90, 90))
        chosen = np.unique(np.linspace(0, len(clip) - 1, frames).round().astype(int))
        for place, frame_HWC in enumerate(clip[chosen].repeat(_ENLARGED, axis=1).repeat(_ENLARGED, axis=2)):
            sheet.paste(Image.fromarray(frame_HWC), (_GAP + place * (width + _GAP), top + 2 * _LINE))
    return np.asarray(sheet)


def _read(reading: Reading) -> str:
    words = [reading.colour or "no colour", reading.shape or "no shape", reading.motion or "no motion"]
    return " ".join([*words, *(f"({fault})" for fault in reading.faults)])
