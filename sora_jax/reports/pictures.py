"""The pictures of a run's report, each with its title, its prompts and a text for those who cannot see it."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from sora_jax.core.printable import printable

_MOST_COLUMNS = 6  # moments of training side by side
_MOST_ROWS = 12  # prompts
_MOST_PROMPTS = 6  # of a sheet that are shown without being asked for
_LONGEST_ALT = 300  # characters
_LARGEST_BYTES = 2_000_000  # of a picture; larger ones are shown as a small still
_SHOWN = (200, 112)  # px, (width, height) up to which a small picture is enlarged, by a whole factor
_SHEET = (1000, 800)  # the same for a contact sheet
_PICTURES = (".gif", ".png", ".webp", ".jpg")
_TITLES = {
    "shapes": "Held-out prompts",
    "shapes_pairs": "Held-out prompts about two objects",
    "shapes_open": "Prompts that leave colour, shape or motion open",
    "distribution": "Real clips, each beside what was made of its caption",
    "task_animate": "Task animate: what follows a given image",
    "task_extend_forward": "Task extend: what follows a given start",
    "task_extend_backward": "Task extend: what leads to a given end",
    "task_loop": "Task loop: a video and a way back to its start",
    "task_connect": "Task connect: one video, a transition, another",
    "task_edit": "Task edit: a video in another colour",
    "task_fill": "Task fill: a half that was masked, made anew",
    "task_upscale": "Task upscale: a video made larger",
    "probe_permanence": "Probe: what was out of sight comes back; left what is true, right what was made",
    "probe_parallax": "Probe: a camera passes near and far things; left what is true, right what was made",
    "probe_turning": "Probe: a cube turns; left what is true, right what was made",
    "probe_trail": "Probe: what is painted stays; left what is true, right what was made",
    "probe_trail_long": "Probe: the same in clips three times as long; left what is true, right what was made",
    "probe_eating": "Probe: what is eaten stays away; left what is true, right what was made",
    "probe_game": "Probe: a player follows actions; left what is true, right what was made",
    "probe_physics": "Probe: balls as training has them; left what is true, right what was made",
    "probe_physics_combined": "Probe: balls in new combinations; left what is true, right what was made",
    "probe_physics_outside": "Probe: balls faster than training has them; left what is true, right what was made",
    "worst_reconstructions": "Worst reconstructions: clip, reconstruction, fourfold difference",
    "worst_reconstructions_data": "Worst reconstructions of other clips: clip, reconstruction, fourfold difference",
}


def picture_stages(samples: Path, *, order: Sequence[str]) -> list[str]:
    """Stages that showed something, in the order of the run."""
    names = [path.name for path in entries(samples) if any(step.name.isdecimal() for step in entries(path))]
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))


def pictures(workdir: Path, stage: str) -> str:
    """A table: a row per prompt with the name of its files, a column per step."""
    folder = workdir / "samples" / stage
    steps = sorted((path for path in entries(folder) if path.name.isdecimal()), key=lambda path: int(path.name))
    columns = {f"step {int(step.name)}": pictures_in(step) for step in _spread(steps, _MOST_COLUMNS)}
    table = picture_table(columns, read_object(folder / "prompts.json"))
    return f"<h3>{escape(stage)}</h3>{table}" if table else ""


def pictures_in(folder: Path) -> dict[str, Path]:
    """The pictures in a folder by their names without endings."""
    return {path.stem: path for path in entries(folder) if path.suffix in _PICTURES}


def picture_table(columns: Mapping[str, Mapping[str, Path]], captions: Mapping[str, Any]) -> str:
    """A table of pictures: a row per name with its caption, a column per title; an empty string without pictures."""
    names = sorted({name for files in columns.values() for name in files})
    if not names:
        return ""
    rows = []
    for name in names[:_MOST_ROWS]:
        prompt = printable(str(captions.get(name, "its words are not recorded")))
        cells = "".join(
            f"<td>{_picture(files.get(name), alt=f'{prompt}, at {title}')}</td>" for title, files in columns.items()
        )
        rows.append(f'<tr><th scope="row">{escape(prompt)} <small>{escape(name)}</small></th>{cells}</tr>')
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in columns)
    more = f'<p class="note">and {len(names) - _MOST_ROWS} more rows</p>' if len(names) > _MOST_ROWS else ""
    table = f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="pictures">{table}</div>{more}'


def sheets(folder: Path) -> tuple[str, str]:
    """The sheets of what the generator was judged on, and the pictures of the worst that the autoencoder did.

    The pictures of verdicts are too large for a page: beside the sheets are their names.
    """
    found: dict[bool, list[str]] = {False: [], True: []}
    paths = [path for path in entries(folder) if path.suffix in _PICTURES]
    large = [path for path in paths if path.stem.endswith("_verdicts")]
    for path in paths:
        if path not in large:
            found[path.name.startswith("worst_")].append(_sheet(path))
    names = ", ".join(f"<code>samples/evaluation/{escape(path.name)}</code>" for path in large)
    note = f'<p class="note">Every sample, enlarged, with what was read from it: {names}</p>' if names else ""
    shown = [f'<div class="pictures">{"".join(found[kind])}</div>' if found[kind] else "" for kind in found]
    return note + shown[0], shown[1]


def _sheet(path: Path) -> str:
    """A picture under its title, with the prompts that lie in it row by row."""
    title = _TITLES.get(path.stem, path.stem.replace("_", " ").capitalize())
    prompts = _prompts(path)
    picture = _picture(path, room=_SHEET, alt=": ".join([title, *(["; ".join(prompts)] if prompts else [])]))
    if not picture:
        return ""
    said = f'<p class="note">{len(prompts)} clips, row by row from the top left</p>' if prompts else ""
    listed = f"<ol>{''.join(f'<li>{escape(prompt)}</li>' for prompt in prompts)}</ol>" if prompts else ""
    if len(prompts) > _MOST_PROMPTS:
        listed = f"<details><summary>the prompts</summary>{listed}</details>"
    return f"<figure><figcaption><b>{escape(title)}</b>{said}</figcaption>{picture}{listed}</figure>"


def _prompts(path: Path) -> list[str]:
    """What a sheet says of itself, see `sample_log.show_sheet`; none where it says nothing."""
    try:
        with Image.open(path) as image:
            said = json.loads(image.info.get("comment", b"{}"))
    except (OSError, ValueError):
        return []
    prompts = said.get("prompt") if isinstance(said, dict) else None
    return [printable(str(prompt)) for prompt in prompts] if isinstance(prompts, list) else []


def _picture(path: Path | None, *, alt: str, room: tuple[int, int] = _SHOWN) -> str:
    """An `<img>` with the file inside, `alt` in words; small pictures are enlarged, huge ones reduced to a still."""
    if path is None:
        return ""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            kind = Image.MIME.get(image.format or "", "")
            if len(content) > _LARGEST_BYTES:
                content, kind = _still(image), "image/png"
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
    except (OSError, ValueError):
        return ""
    factor = max(1, min(room[0] // width, room[1] // height))
    data = base64.b64encode(content).decode()
    size = f'width="{width * factor}" height="{height * factor}"'
    words = escape(alt if len(alt) <= _LONGEST_ALT else f"{alt[:_LONGEST_ALT]}...")
    small = "small" if factor > 1 else ""
    return f'<img class="{small}" {size} alt="{words}" title="{words}" src="data:{kind};base64,{data}">'


def _still(image: Image.Image) -> bytes:
    still = image.convert("RGB")
    still.thumbnail((480, 480))
    buffer = io.BytesIO()
    still.save(buffer, "PNG")
    return buffer.getvalue()


def _spread(items: list[Path], most: int) -> list[Path]:
    """At most `most` of the items, evenly, the first and the last among them."""
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, by name; nothing where there is none."""
    return sorted(folder.iterdir()) if folder.is_dir() else []


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is none, or it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
