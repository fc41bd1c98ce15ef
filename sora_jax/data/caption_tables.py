"""Tables of captions: which text belongs to which file.

  captions.jsonl      a line each: {"file": "dogs/a.mp4", "caption": text or list of texts}; "captions" is the same
  captions.csv        header file,caption
  captions.parquet    columns file (string) and caption (string or list of strings)

A number above 0 under `weight` (key or column; 1 without) says how often a caption of that line is drawn next to the
others of its file; `weights`, a list of them, has one for each of the line's captions. Other keys and columns are
ignored; a file that comes several times has several captions.
"""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import pyarrow
from pyarrow import parquet

from sora_jax.core.errors import UserError
from sora_jax.data.remote import AnyPath, read_file

# In the order in which they are looked for.
TABLE_SUFFIXES = (".jsonl", ".csv", ".parquet")
# Of the JSON beside a clip; the first that holds a text or a list of texts counts.
CAPTION_KEYS = ("caption", "captions", "text")
MOST_CAPTION_BYTES = 2**20  # of a file that holds the captions of one clip


class Written(NamedTuple):
    """A caption as it is written, and how often it is drawn next to others of its file."""

    text: str
    weight: float = 1.0


def read_table(path: AnyPath) -> dict[str, list[Written]]:
    """Returns captions, not cleaned, by file name from a file that ends in one of `TABLE_SUFFIXES`.

    Raises `UserError` where it cannot be understood, with the line or row.
    """
    read = {".jsonl": _jsonl_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}
    table: dict[str, list[Written]] = {}
    for place, name, texts, row in read[path.suffix](path):
        try:
            table.setdefault(PurePosixPath(name).as_posix(), []).extend(weighted(texts, row))
        except ValueError as error:
            raise UserError(f"{place} of {path} {error}") from error
    return table


def read_beside(name: str, data: bytes) -> list[Written]:
    """Returns what the bytes of a file beside a clip say; raises `ValueError` where they cannot be understood.

    A .json holds a text, or a list of texts, under one of `CAPTION_KEYS`, with the weights beside it; another file is
    wholly one caption. Both are UTF-8.
    """
    text = data.decode("utf-8-sig")
    if PurePosixPath(name).suffix.lower() != ".json":
        return [Written(text)]
    row = parse_json(text)
    return weighted(texts_of(row, *CAPTION_KEYS) or [], row) if isinstance(row, dict) else []


def parse_json(text: str | bytes) -> Any:
    """Returns what JSON says; raises `ValueError` for what is none, or nested deeper than can be read."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def texts_of(row: Mapping[str, Any], *keys: str) -> list[str] | None:
    """Returns what is written under the first of `keys` that holds a text or a list of texts, None if none does."""
    for key in keys:
        texts = [row[key]] if isinstance(row.get(key), str) else row.get(key)
        if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
            return texts
    return None


def weighted(texts: list[str], row: Mapping[str, Any]) -> list[Written]:
    """Returns the texts with the weights of their row: `weights`, one for each, else `weight` for all, else 1.

    Raises `ValueError` that says what is wrong with them.
    """
    weights = row.get("weights")
    if weights is None:
        weights = [row.get("weight")] * len(texts)
    if not isinstance(weights, list) or len(weights) != len(texts):
        raise ValueError(f"has the weights {str(weights)[:60]} for {len(texts)} captions: give a list, one for each")
    return [Written(text, _weight(weight)) for text, weight in zip(texts, weights, strict=True)]


def _weight(written: object) -> float:
    if written is None or written == "":
        return 1.0
    try:
        weight = float(written) if isinstance(written, str | int | float) else math.nan
    except (ValueError, OverflowError):
        weight = math.nan
    if isinstance(written, bool) or not 0 < weight < math.inf:
        raise ValueError(f"has the weight {str(written)[:60]!r}: make it a number above 0, or leave it out")
    return weight


# Place for messages, file name, captions, and the row, which may have weights.
_Row = tuple[str, str, list[str], Mapping[str, Any]]


def _jsonl_rows(path: AnyPath) -> Iterator[_Row]:
    """Yields every line; raises `UserError` with the number of a broken one."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            row = parse_json(line)
        except ValueError as error:
            raise UserError(f"{place} of {path} is not JSON ({error}): {line[:60]!r}") from error
        if not isinstance(row, dict) or not isinstance(row.get("file"), str):
            raise UserError(f'{place} of {path} must be {{"file": ..., "caption": ...}}, found {line[:60]!r}')
        texts = texts_of(row, "caption", "captions")
        if texts is None:
            raise UserError(f'{place} of {path} must have a "caption" that is a text or a list of texts')
        yield place, row["file"], texts, row


def _csv_rows(path: AnyPath) -> Iterator[_Row]:
    """Yields every row; raises `UserError` with the number of a broken one."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    try:
        if not {"file", "caption"} <= set(reader.fieldnames or ()):
            raise UserError(f"{path} must begin with the header file,caption; found {reader.fieldnames}")
        for row in reader:
            if not row["file"] or row["caption"] is None:
                raise UserError(f"line {reader.line_num} of {path} lacks the file or the caption")
            yield f"line {reader.line_num}", row["file"], [row["caption"]], {"weight": row.get("weight")}
    except csv.Error as error:
        raise UserError(f"line {reader.line_num} of {path} is not CSV: {error}") from error


def _parquet_rows(path: AnyPath) -> Iterator[_Row]:
    """Yields every row; raises `UserError` with the number of a broken one."""
    columns = ["file", "caption"]
    try:
        with path.open("rb") as stream, parquet.ParquetFile(stream) as file:
            names = file.schema_arrow.names
            if not set(columns) <= set(names):
                raise UserError(f"{path} must have the columns file and caption; found {', '.join(names)}")
            columns += [name for name in ("weight", "weights") if name in names]
            batches = (batch.to_pylist() for batch in file.iter_batches(columns=columns))
            for number, row in enumerate((row for rows in batches for row in rows), start=1):
                texts = texts_of(row, "caption")
                if not isinstance(row["file"], str) or not row["file"] or texts is None:
                    raise UserError(f"row {number} of {path} must have a file and a caption, a text or a list of texts")
                yield f"row {number}", row["file"], texts, row
    except (pyarrow.ArrowException, OSError) as error:
        said = (str(error).splitlines() or ["damaged"])[0]
        raise UserError(f"{path} is not a Parquet file that can be read: {said}") from error


def read_text(path: AnyPath) -> str:
    """Returns a file's text with any line ends as they are; raises `UserError` where it is not UTF-8."""
    try:
        return read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
