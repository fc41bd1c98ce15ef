"""The page of `inspect_data`: counts, histograms, and each clip before and after it is cut."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from sora_jax.core.files import write_atomically
from sora_jax.core.printable import printable
from sora_jax.data.caption_habits import CaptionHabits, caption_habits
from sora_jax.data.media.writer import encode_png
from sora_jax.data.survey import Look, Survey, measures, reasons
from sora_jax.reports.charts import compact, histogram
from sora_jax.reports.style import HTML_PAGE

_MOST_DROPPED = 500
_ENLARGED = 160  # px, short side up to which a picture is enlarged


def write_page(
    path: Path,
    found: Survey,
    packing: dict[str, float],
    *,
    title: str,
    after: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Writes the page, whole, to `path`; `after` has other captions of clips by name, which are shown beside theirs."""
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
        named = [(name.partition(", "), values) for name, values in measures(found.kept).items()]
        charts = [histogram(what, values, unit=unit) for (what, _, unit), values in named]
        body += f'<section><h2>Distributions</h2><div class="row">{"".join(charts)}</div></section>'
        body += _captions(habits(found.kept, after))
        clips = "".join(_clip(one, after) for one in found.kept if one.pictures)
        note = "First the middle frame, with what is kept drawn in, then the same frame as the model will see it."
        body += f'<section><h2>Clips</h2><p class="note">{note}</p><div class="row">{clips}</div></section>'
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, HTML_PAGE.format(title=escape(title), body=body))


def habits(looks: Sequence[Look], after: Mapping[str, Sequence[str]] | None) -> dict[str, CaptionHabits]:
    """Returns of what kind the captions of clips are: "now", or "before" and "after" where there are others."""
    own = caption_habits([one.captions for one in looks])
    if after is None:
        return {"now": own}
    return {"before": own, "after": caption_habits([after.get(one.source_id, ()) for one in looks])}


def _captions(found: dict[str, CaptionHabits]) -> str:
    """Returns the section about captions; nothing where there are none at all."""
    if not any(one.lengths for one in found.values()):
        return ""
    head = "".join(f"<th>{name}</th>" for name in ("", *found))
    facts = [one.facts() for one in found.values()]
    rows = "".join(_row(name, *(one[name] for one in facts)) for name in facts[0])
    parts = [f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>']
    for name, one in found.items():
        parts.append(histogram(f"words of a caption, {name}", [float(length) for length in one.lengths], unit=""))
        openings = "".join(_row(f"{count / len(one.lengths):.1%}", f"{words} ...") for words, count in one.openings)
        head = f"<thead><tr><th>{name}</th><th>commonest openings</th></tr></thead>"
        parts.append(f"<table>{head}<tbody>{openings}</tbody></table>" if openings else "")
    return f'<section><h2>Captions</h2>{parts[0]}<div class="row">{"".join(parts[1:])}</div></section>'


def _clip(one: Look, after: Mapping[str, Sequence[str]] | None) -> str:
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
    words = f"<p><b>{escape(name)}</b> {escape(one.captions[0] if one.captions else '')}</p>"
    if after is not None:
        told = {"before": one.captions, "after": after.get(one.source_id, ())}
        rows = (_row(when, text) for when, texts in told.items() for text in texts or ("-",))
        words = f"<p><b>{escape(name)}</b></p><table>{''.join(rows)}</table>"
    return f'<figure class="chart">{pictures}{words}<p class="note">{escape(", ".join(cut))}</p></figure>'


def _rows(rows: Iterable[tuple[str, str]]) -> str:
    return "".join(_row(*cells) for cells in rows)


def _row(*cells: str) -> str:
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def _size(size: tuple[int, int, int]) -> str:
    frames = f"{size[0]} frames of " if size[0] > 1 else ""
    return f"{frames}{size[1]}x{size[2]}"


def _picture(pixels_HWC: np.ndarray, *, alt: str) -> str:
    height, width = pixels_HWC.shape[:2]
    factor = max(1, _ENLARGED // min(height, width))
    data = base64.b64encode(encode_png(pixels_HWC)).decode()
    size = f'width="{width * factor}" height="{height * factor}"'
    kind = "small" if factor > 1 else ""
    return f'<img class="{kind}" {size} alt="{escape(alt)}" src="data:image/png;base64,{data}">'
