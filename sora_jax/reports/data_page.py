"""The page of `inspect_data`: counts, histograms, and each clip before and after it is cut."""

import base64
from collections.abc import Iterable
from html import escape
from pathlib import Path

import numpy as np

from sora_jax.core.files import write_atomically
from sora_jax.core.printable import printable
from sora_jax.data.media.writer import encode_png
from sora_jax.data.survey import Look, Survey, measures, reasons
from sora_jax.reports.charts import compact, histogram
from sora_jax.reports.style import HTML_PAGE

_MOST_DROPPED = 500
_ENLARGED = 160  # px, short side up to which a picture is enlarged


def write_page(path: Path, found: Survey, packing: dict[str, float], *, title: str) -> None:
    """Writes the page, whole, to `path`."""
    tiles = {"clips kept": len(found.kept), "left out": len(found.dropped), **packing}
    shown = "".join(
        f"<div><b>{compact(value)}</b><span>{escape(name.replace('_', ' '))}</span></div>"
        for name, value in tiles.items()
    )
    body = f'<header><h1>{escape(title)}</h1></header><div class="tiles">{shown}</div>'
    if found.dropped:
        why = _rows((str(number), reason) for reason, number in reasons(found.dropped))
        body += f'<section><h2>Left out</h2><div class="wide"><table>{why}</table></div>'
        each = _rows((printable(name), reason) for name, reason in found.dropped[:_MOST_DROPPED])
        body += f"<details><summary>each clip</summary><table>{each}</table></details></section>"
    if found.kept:
        charts = []
        for name, values in measures(found.kept).items():
            what, _, unit = name.partition(", ")
            charts.append(histogram(what, values, unit=unit))
        body += f'<section><h2>Distributions</h2><div class="row">{"".join(charts)}</div></section>'
        clips = "".join(_clip(one) for one in found.kept if one.pictures)
        note = "First the middle frame, with what is kept drawn in, then the same frame as the model will see it."
        body += f'<section><h2>Clips</h2><p class="note">{note}</p><div class="row">{clips}</div></section>'
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, HTML_PAGE.format(title=escape(title), body=body))


def _clip(one: Look) -> str:
    """Returns the card of one clip."""
    cut = [f"{_size(one.size)} px at {compact(one.fps)} fps" if one.size[0] > 1 else f"{_size(one.size)} px"]
    cut.append(f"to {_size(one.fitted)}, {one.tokens} tokens")
    if one.scale < 1:
        cut.append(f"scaled by {one.scale:.3g}")
    if one.trimmed_frames:
        cut.append(f"{one.trimmed_frames} frames trimmed")
    if any(one.cropped):
        cut.append(f"{one.cropped[0]} rows and {one.cropped[1]} columns cropped, {one.cut:.1%} of the picture")
    seen = ("the middle frame, with what is kept drawn in", "the same frame as the model will see it")
    name = printable(one.source_id)
    shown = zip(one.pictures or (), seen, strict=False)
    pictures = "".join(_picture(picture, alt=f"{name}: {what}") for picture, what in shown)
    pictures = f'<div class="row">{pictures}</div>'
    words = f"<p><b>{escape(name)}</b> {escape(one.caption)}</p>"
    return f'<figure class="chart">{pictures}{words}<p class="note">{escape(", ".join(cut))}</p></figure>'


def _rows(rows: Iterable[tuple[str, str]]) -> str:
    return "".join(f"<tr><td>{escape(left)}</td><td>{escape(right)}</td></tr>" for left, right in rows)


def _size(size: tuple[int, int, int]) -> str:
    frames = f"{size[0]} frames of " if size[0] > 1 else ""
    return f"{frames}{size[1]}x{size[2]}"


def _picture(pixels_HWC: np.ndarray, *, alt: str) -> str:
    height, width = pixels_HWC.shape[:2]
    factor = max(1, _ENLARGED // min(height, width))
    data = base64.b64encode(encode_png(pixels_HWC)).decode()
    size = f'width="{width * factor}" height="{height * factor}"'
    return (
        f'<img class="{"small" if factor > 1 else ""}" {size} alt="{escape(alt)}" src="data:image/png;base64,{data}">'
    )
