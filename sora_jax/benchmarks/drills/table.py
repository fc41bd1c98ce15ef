"""From drills to rows, from rows to the table in a file and in the documentation."""

import datetime
import json
import platform
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sora_jax.benchmarks.drills import cost, crashes, data, inputs, numerics, peers, security, storage
from sora_jax.benchmarks.drills.bench import Bench
from sora_jax.benchmarks.drills.registry import DRILLS, Drill
from sora_jax.core.errors import UserError
from sora_jax.core.files import write_atomically
from sora_jax.core.versions import versions
from sora_jax.experiment.machine import available_cores

# Whose drills there are, in the order of the table.
SUBJECTS = (crashes, storage, numerics, data, peers, inputs, cost, security)
ORDERED = {name: one for subject in SUBJECTS for name, one in DRILLS.items() if one.run.__module__ == subject.__name__}
PAGE = Path("docs/reliability.md")
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"
_COLUMNS = ("drill", "passed", "target", "figure", "seconds", "date")


def chosen(names: Sequence[str]) -> list[Drill]:
    """Returns the drills of these names, all where there are none; UserError for a name that is none of theirs."""
    unknown = [name for name in names if name not in ORDERED]
    if unknown:
        raise UserError(f"there is no drill {', '.join(unknown)}; there are {', '.join(ORDERED)}")
    return [ORDERED[name] for name in names] or list(ORDERED.values())


def counts_of(drills: Sequence[Drill], overrides: Sequence[str], *, quick: bool) -> dict[str, int]:
    """Returns the trials of each drill; UserError for an override that is not NAME=TRIALS of one of them."""
    counts = {one.name: one.quick if quick else one.full for one in drills}
    for text in overrides:
        name, _, number = text.partition("=")
        if name not in counts or not number.isdecimal() or int(number) < 1:
            raise UserError(f"--counts={text} is not NAME=TRIALS of one of {', '.join(counts)}")
        counts[name] = int(number)
    return counts


def row_of(one: Drill, bench: Bench, count: int) -> dict[str, Any]:
    """Returns the row of a drill; an error in it is the row's figure, and stops no other drill."""
    began = time.monotonic()
    row = {"drill": one.name, "passed": 0, "tried": count, "target": one.target, "good": False}
    try:
        result = one.run(bench, count)
        row |= {"passed": result.passed, "tried": result.tried, "figure": result.figure, "good": result.good}
    except Exception as error:
        row["figure"] = f"not tried to the end: {type(error).__name__}: {' '.join(str(error).split())[-600:]}"
    finally:
        bench.end_all()
    return row | {"seconds": round(time.monotonic() - began, 1), "date": datetime.date.today().isoformat()}


def line_of(row: Mapping[str, Any]) -> str:
    """Returns a row as one line of text."""
    mark = "ok  " if row["good"] else "FAIL"
    return (
        f"{mark} {row['drill']:<16} {row['passed']:>3} of {row['tried']:<3} {row['seconds']:>7.1f} s  {row['target']}: "
        f"{row['figure']}"
    )


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], *, seed: int) -> None:
    """Writes the rows as JSON, with when, where and with what they were measured."""
    table = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "versions": versions(),
        "machine": machine(),
        "rows": [*rows],
    }
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(table, indent=2) + "\n")


def machine() -> str:
    """Returns in words where this runs."""
    cores = available_cores()
    return f"{cores} cores, {platform.machine()}, {platform.system()}"


def renewed(page: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the page with these rows in its table; others stay as they were, with their dates.

    Raises UserError where the page has no place for a table.
    """
    found = re.search(f"{re.escape(BEGIN)}\n(.*?){re.escape(END)}", page, re.DOTALL)
    if not found:
        raise UserError(f"{PAGE} has no lines {BEGIN} and {END}, between which the table goes")
    known = {}
    for line in found[1].splitlines()[2:]:
        known[line.split("|")[1].strip().strip("`")] = line
    known |= {row["drill"]: _table_line(row) for row in rows}
    order = [*(name for name in ORDERED if name in known), *(name for name in known if name not in ORDERED)]
    head = [f"| {' | '.join(_COLUMNS)} |", f"|{'---|' * len(_COLUMNS)}"]
    table = "\n".join([*head, *(known[name] for name in order)])
    return f"{page[: found.start()]}{BEGIN}\n{table}\n{END}{page[found.end() :]}"


def _table_line(row: Mapping[str, Any]) -> str:
    passed = f"{row['passed']} of {row['tried']}"
    cells = {
        **row,
        "drill": f"`{row['drill']}`",
        "passed": passed if row["good"] else f"**{passed}, missed**",
        "seconds": f"{row['seconds']:.0f}",
    }
    return f"| {' | '.join(str(cells[name]).replace('|', '/') for name in _COLUMNS)} |"
