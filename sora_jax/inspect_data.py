"""What training will do to a heap of clips, before any of it is done: as text, and as one page with pictures.

  python -m sora_jax.inspect_data --config=configs/folder.py --config.data.path=DIR --output=inspection.html

Clips are decoded, cut and counted exactly as for training; nothing is encoded.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from sora_jax.core.commands import Flags, run_command
from sora_jax.core.errors import UserError
from sora_jax.core.paths import check_writable
from sora_jax.core.printable import printable
from sora_jax.data.curation.source import CuratedSource
from sora_jax.data.fitting import Collection
from sora_jax.data.sources.caption_lookup import Names, look_up, read_named
from sora_jax.data.sources.caption_tables import Written
from sora_jax.data.survey import Look, Survey, measures, packing_of, reasons, survey
from sora_jax.experiment.datasets import curate, open_collections
from sora_jax.experiment.settings import Settings, read_settings
from sora_jax.preparation.export import export_windows
from sora_jax.reports.data_page import habits, write_page
from sora_jax.train.progress import Progress
from sora_jax.train.workdir import MAIN

_FLAGS = Flags()
_CONFIG = _FLAGS.config("config", "configs/folder.py", "The experiment, as for sora_jax.main.")
_CAPTIONS = _FLAGS.path("captions", None, "Other captions of the clips (.jsonl, .csv, .parquet), shown beside theirs.")
_CLIPS = _FLAGS.integer("clips", 500, "Clips to look at, spread evenly over the source; 0: all.", least=0)
_EXPORT = _FLAGS.path("export", None, "Folder for the windows that curation keeps, a video or picture each.")
_OUTPUT = _FLAGS.path("output", "inspection.html", "The page.")
_PERCENTILES = (0, 5, 50, 95, 100)
_OPENINGS, _SIDE_BY_SIDE = 5, 5  # openings, and clips with captions before and after, that are printed


def main(_: Sequence[str]) -> None:
    """Looks, prints and writes the page."""
    output = Path(_OUTPUT.value)
    if output.suffix != ".html":
        raise UserError(f"--output={output} must end in .html, not {output.suffix!r}")
    check_writable(output)
    if _EXPORT.value is not None:
        check_writable(Path(_EXPORT.value) / "window.mp4")
    settings = read_settings(_CONFIG.value)
    found, names = Survey(kept=[], dropped=[]), set[str]()
    table = None if _CAPTIONS.value is None else read_named(_CAPTIONS.value)
    for collection in open_collections(settings, look=True):
        part = look_through(
            collection, settings, output.with_suffix(".curation"), count=_CLIPS.value, windows=_EXPORT.value
        )
        found.kept.extend(part.kept)
        found.dropped.extend(part.dropped)
        if table is not None:
            names.update(map(collection.source.source_id, range(len(collection.source))))
    # Windows that curation cuts have names of their own.
    after = None if table is None else named_captions(table, names.union(one.source_id for one in found.kept))
    packing = {}
    if found.kept:
        packing = packing_of(found.kept, settings.packing, max_text_tokens=settings.text.max_tokens, seed=settings.seed)
        print_measures(measures(found.kept))
        print(", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in packing.items()))
        print_captions(found.kept, after)
    title = f"{settings.data.source} {settings.data.path or ''}".strip()
    write_page(output, found, packing, title=title, after=after)
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


def named_captions(table: Mapping[str, list[Written]], names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Returns the captions of a table by the names of clips; prints how many of its names are of none."""
    told = look_up(table, Names(names))
    if told.missing:
        print(f"names in --captions that are of no clip: {len(told.missing)}, such as {printable(told.missing[0])}")
    return {name: captions for name, (captions, _) in told.captions.items()}


def print_captions(looks: Sequence[Look], after: Mapping[str, Sequence[str]] | None) -> None:
    """Prints of what kind the captions of clips are, and with other ones those of some clips beside theirs."""
    found = habits(looks, after)
    if not any(one.lengths for one in found.values()):
        return
    facts = [one.facts() for one in found.values()]
    print(f"  {'captions':<40}" + "".join(f"{name:>24}" for name in found))
    for name in facts[0]:
        print(f"  {name:<40}" + "".join(f"{one[name]:>24}" for one in facts))
    for name, one in found.items():
        begin = (f"{words!r} {count / len(one.lengths):.0%}" for words, count in one.openings[:_OPENINGS])
        print(f"  {name} begin: {', '.join(begin) or '-'}")
    if after is not None:
        for one in looks[:: -(-len(looks) // _SIDE_BY_SIDE)]:
            print(f"  {printable(one.source_id)}")
            for name, captions in (("before", one.captions), ("after", after.get(one.source_id, ()))):
                print("\n".join(f"    {name:<7} {printable(text)}" for text in captions or ("-",)))


def print_measures(values: dict[str, list[float]]) -> None:
    """Prints a line for each measure: smallest, 5 %, median, 95 %, largest."""
    print(f"  {'':<34}" + "".join(f"{f'{p} %':>9}" for p in _PERCENTILES))
    for name, numbers in values.items():
        if numbers:
            print(f"  {name:<34}" + "".join(f"{value:>9.4g}" for value in np.percentile(numbers, _PERCENTILES)))


if __name__ == "__main__":
    run_command(main, _FLAGS)
