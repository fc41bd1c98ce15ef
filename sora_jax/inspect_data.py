"""What training will do to a heap of clips, before any of it is done: as text, and as one page with pictures.

  python -m sora_jax.inspect_data --config=configs/folder.py --config.data.path=DIR --output=inspection.html

Clips are decoded, cut and counted exactly as for training; nothing is encoded.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sora_jax.core.commands import Flags, run_command
from sora_jax.core.errors import UserError
from sora_jax.core.paths import check_writable
from sora_jax.data.curation.source import CuratedSource
from sora_jax.data.fitting import Collection
from sora_jax.data.survey import Survey, measures, packing_of, reasons, survey
from sora_jax.experiment.datasets import curate, open_collections
from sora_jax.experiment.settings import Settings, read_settings
from sora_jax.preparation.export import export_windows
from sora_jax.reports.data_page import write_page
from sora_jax.train.progress import Progress
from sora_jax.train.workdir import MAIN

_FLAGS = Flags()
_CONFIG = _FLAGS.config("config", "configs/folder.py", "The experiment, as for sora_jax.main.")
_CLIPS = _FLAGS.integer("clips", 500, "Clips to look at, spread evenly over the source; 0: all.", least=0)
_EXPORT = _FLAGS.path("export", None, "Folder for the windows that curation keeps, a video or picture each.")
_OUTPUT = _FLAGS.path("output", "inspection.html", "The page.")
_PERCENTILES = (0, 5, 50, 95, 100)


def main(_: Sequence[str]) -> None:
    """Looks, prints and writes the page."""
    output = Path(_OUTPUT.value)
    if output.suffix != ".html":
        raise UserError(f"--output={output} must end in .html, not {output.suffix!r}")
    check_writable(output)
    if _EXPORT.value is not None:
        check_writable(Path(_EXPORT.value) / "window.mp4")
    settings = read_settings(_CONFIG.value)
    found = Survey(kept=[], dropped=[])
    for collection in open_collections(settings, look=True):
        part = look_through(
            collection, settings, output.with_suffix(".curation"), count=_CLIPS.value, windows=_EXPORT.value
        )
        found.kept.extend(part.kept)
        found.dropped.extend(part.dropped)
    packing = {}
    if found.kept:
        packing = packing_of(found.kept, settings.packing, max_text_tokens=settings.text.max_tokens, seed=settings.seed)
        print_measures(measures(found.kept))
        print(", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in packing.items()))
    write_page(output, found, packing, title=f"{settings.data.source} {settings.data.path or ''}".strip())
    print(f"page: {output}")


def look_through(
    collection: Collection, settings: Settings, curation: Path, *, count: int, windows: str | None
) -> Survey:
    """Returns what will happen to a collection's clips, after printing it.

    `curation` is the folder of its measures, `count` how many clips to look at (0: all), `windows` the folder that the
    windows which curation keeps are written to, if any.
    """
    data = settings.collections[collection.name]
    folder = curation / ("" if collection.name == MAIN else collection.name)
    source = curate(collection, data, folder).source
    if windows is not None and not isinstance(source, CuratedSource):
        raise UserError("--export writes what curation cuts, and data.curation is off: set its keys, see docs/data.md")
    count = min(count or len(source), len(source))
    with contextlib.closing(Progress("inspect", total=count, unit="clips")) as progress:
        found = survey(source, collection.limits, count=count, readers=collection.readers, progress=progress.update)
    if isinstance(source, CuratedSource):
        found.dropped.extend(source.dropped.items())
        if windows is not None:
            written = export_windows(source, Path(windows) / ("" if collection.name == MAIN else collection.name))
            print(f"  {written} windows written to {windows}")
    named = "" if collection.name == MAIN else f"{collection.name}: "
    print(f"{named}{len(source)} clips, {count} looked at: {len(found.kept)} kept, {len(found.dropped)} left out")
    for reason, number in reasons(found.dropped):
        print(f"  {number} left out: {reason}")
    return found


def print_measures(values: dict[str, list[float]]) -> None:
    """Prints a line for each measure: smallest, 5 %, median, 95 %, largest."""
    print(f"  {'':<34}" + "".join(f"{f'{p} %':>9}" for p in _PERCENTILES))
    for name, numbers in values.items():
        if numbers:
            print(f"  {name:<34}" + "".join(f"{value:>9.4g}" for value in np.percentile(numbers, _PERCENTILES)))


if __name__ == "__main__":
    run_command(main, _FLAGS)
