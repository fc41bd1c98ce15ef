"""How a benchmark tells what it measured: a table on the screen, an object in a file."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from sora_jax.core.files import write_atomically


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured number.

    Attributes:
      name: Key in the file.
      value: What was measured.
      target: In words, as "at least 0.995"; None for a number that only explains another.
      meaning: What it is, with its unit.
    """

    name: str
    value: float
    target: str | None
    meaning: str


def publish(figures: Sequence[Figure], path: str | None) -> None:
    """Prints the figures as a table, and writes `{name: value}` to the file `path`, if one is given."""
    rows = [(figure.name, f"{figure.value:,.4g}", figure.target or "", figure.meaning) for figure in figures]
    rows.insert(0, ("figure", "measured", "target", "what it is"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[3], sep="  ")
    if path is not None:
        Path(path).absolute().parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(path), json.dumps({figure.name: figure.value for figure in figures}, indent=2) + "\n")
