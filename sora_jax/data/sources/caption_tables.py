"""Tables of captions: which text belongs to which file.

  captions.jsonl      a line each: {"file": "dogs/a.mp4", "caption": text or list of texts}; "captions" is the same
  captions.csv        header file,caption; a caption with commas, quotes or line breaks is in double quotes
  captions.parquet    columns file (string) and caption (string or list of strings)
  videos.txt          a file name a line, and beside it prompt.txt (or prompts.txt, captions.txt): a caption a line

Tables may also be called metadata, and keys and columns as in `FILE_KEYS` and `CAPTION_KEYS`, the first that is there.
A number above 0 under `weight` (key or column; 1 without) says how often a caption of that line is drawn next to the
others of its file; `weights`, a list of them, has one for each of the line's captions. `control_depth` and its like
name a file that lies beside (`sources.beside`). Other keys and columns are ignored; a file that comes several times has
several captions.
"""

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import pyarrow
from pyarrow import parquet

from sora_jax.core.errors import UserError
from sora_jax.data.media.file_kinds import MEDIA_SUFFIXES, suffix_of
from sora_jax.data.sources.remote import AnyPath, read_whole

TABLE_SUFFIXES = (".jsonl", ".csv", ".parquet")
# In the order in which they are looked for.
TABLE_NAMES = tuple(f"{stem}{suffix}" for stem in ("captions", "metadata") for suffix in TABLE_SUFFIXES)
NAMES_FILE, TEXTS_FILES = "videos.txt", ("prompt.txt", "prompts.txt", "captions.txt")
FILE_KEYS = ("file", "file_name", "video", "path")
CAPTION_KEYS = ("caption", "captions", "text", "prompt")
_CONTROL = "control_"
_UNCLOSED = "unexpected end of data"  # in the words of the csv module
_SPACED_QUOTE = re.compile('(^|,) +"', re.MULTILINE)
MOST_CAPTION_BYTES = 2**20  # of a file that holds the captions of one clip


class Written(NamedTuple):
    """A caption as it is written, and how often it is drawn next to others of its file."""

    text: str
    weight: float = 1.0


def read_table(path: AnyPath) -> dict[str, list[Written]]:
    """Returns captions, not cleaned, by file name from a file that ends in one of `TABLE_SUFFIXES`.

    Raises `UserError` where it cannot be understood, with the line or row.
    """
    table: dict[str, list[Written]] = {}
    for place, name, texts, row in _rows(path):
        try:
            table.setdefault(PurePosixPath(name).as_posix(), []).extend(weighted(texts, row))
        except ValueError as error:
            raise UserError(f"{place} of {path} {error}") from error
    return table


def read_files_beside(path: AnyPath, kinds: Sequence[str]) -> dict[str, dict[str, str]]:
    """Returns by file name the names of files that such a table has under control_KIND, by those of `kinds`.

    Of several lines of a file the first that names one counts. Raises `UserError` where it cannot be understood.
    """
    table: dict[str, dict[str, str]] = {}
    for place, name, _, row in _rows(path):
        for kind in kinds:
            file = row.get(f"{_CONTROL}{kind}")
            if file is None or file == "":
                continue
            if not isinstance(file, str):
                said = f"has the {_CONTROL}{kind} {str(file)[:60]!r}: give the name of a file, or leave it out"
                raise UserError(f"{place} of {path} {said}")
            table.setdefault(PurePosixPath(name).as_posix(), {}).setdefault(kind, file)
    return table


def read_lines(names: AnyPath, texts: AnyPath) -> dict[str, list[Written]]:
    """Returns captions, not cleaned, by file name: line by line the names in one file and the captions in the other.

    Raises `UserError` where the files have not as many lines, or a caption has no name beside it.
    """
    columns = [_lines_of(path) for path in (names, texts)]
    if len(columns[0]) != len(columns[1]):
        raise UserError(
            f"{names} has {len(columns[0])} lines and {texts} {len(columns[1])}: write a line for a line, each "
            "with the caption of one file"
        )
    table: dict[str, list[Written]] = {}
    for number, (name, text) in enumerate(zip(*columns, strict=True), start=1):
        if name.strip():
            table.setdefault(PurePosixPath(name).as_posix(), []).append(Written(text))
        elif text.strip():
            raise UserError(f"line {number} of {names} is empty, and that of {texts} is not: give each caption a file")
    return table


def _lines_of(path: AnyPath) -> list[str]:
    """Returns the lines of a file without the empty ones at its end; spaces may be parts of names."""
    lines = [line.removesuffix("\r") for line in read_text(path).split("\n")]
    return lines[: max((number for number, line in enumerate(lines, start=1) if line.strip()), default=0)]


def read_beside(name: str, data: bytes) -> list[Written]:
    """Returns what the bytes of a file beside a clip say; raises `ValueError` where they cannot be understood.

    A .json holds a text, or a list of texts, under one of `CAPTION_KEYS`, with the weights beside it; another file is
    wholly one caption. Both are UTF-8.
    """
    text = data.decode("utf-8-sig")
    if suffix_of(name) != ".json":
        return [Written(text)]
    row = parse_json(text)
    return weighted(captions_under(row, *CAPTION_KEYS) or [], row) if isinstance(row, dict) else []


def parse_json(text: str | bytes) -> Any:
    """Returns what JSON says; raises `ValueError` for what is none, is nested too deeply, or names a key twice."""
    try:
        return json.loads(text, object_pairs_hook=_each_key_once)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) < len(pairs):
        twice = next(key for key in keys if sum(key == other for other, _ in pairs) > 1)
        raise ValueError(f"the key {twice!r} comes twice")
    return keys


def captions_under(row: Mapping[str, Any], *keys: str) -> list[str] | None:
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


# Place for messages, file name, captions, and the row, which may have weights and files beside.
_Row = tuple[str, str, list[str], Mapping[str, Any]]


def _rows(path: AnyPath) -> Iterator[_Row]:
    read = {".jsonl": _jsonl_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}
    return read[path.suffix.lower()](path)


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
        name = next((row[key] for key in FILE_KEYS if key in row), None) if isinstance(row, dict) else None
        if not isinstance(name, str):
            raise UserError(f'{place} of {path} must be {{"file": ..., "caption": ...}}, found {line[:60]!r}')
        texts = captions_under(row, *CAPTION_KEYS)
        if texts is None:
            raise UserError(f'{place} of {path} must have a "caption" that is a text or a list of texts')
        yield place, name, texts, row


def _csv_rows(path: AnyPath) -> Iterator[_Row]:
    """Yields every row; raises `UserError` with the number of the line in which a broken one begins."""
    # A space after a comma would make a quote part of the text; elsewhere it may be one of a name.
    text = read_text(path)
    # The module's limit is of the whole process; captions are cut later, as those of other tables.
    csv.field_size_limit(max(len(text), csv.field_size_limit()))
    spaced = _SPACED_QUOTE.search(text) is not None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=spaced)
    rows = _csv_lines(reader, path)
    columns, _ = next(rows, ([], 1))
    columns = [column.strip() for column in columns]
    file, caption, *_ = _columns_of(columns, path)
    for fields, line in rows:
        if len(fields) != len(columns):
            raise UserError(
                f"line {line} of {path} has {len(fields)} fields and the header {len(columns)}: put double quotes "
                f'around a caption with commas in it, "like, this"; it begins {",".join(fields)[:60]!r}'
            )
        row = dict(zip(columns, fields, strict=True))
        if not row[file]:
            raise UserError(f"line {line} of {path} lacks the file")
        others = {name: text for name, text in row.items() if name == "weight" or name.startswith(_CONTROL)}
        yield f"line {line}", row[file], [row[caption]], others


def _csv_lines(reader: Any, path: AnyPath) -> Iterator[tuple[list[str], int]]:
    """Yields the rows that are not empty, each with the number of its first line."""
    line = 1
    try:
        for fields in reader:
            swallowed = next((number for field in fields for number in _swallowed(field)), None)
            if swallowed is not None:
                raise csv.Error(f"a quote opens that is not closed before line {line + swallowed}, which names a file")
            if fields:
                yield fields, line
            line = reader.line_num + 1
    except csv.Error as error:
        said = "a quote opens that is never closed" if str(error) == _UNCLOSED else str(error)
        raise UserError(
            f"line {line} of {path} is not CSV ({said}): put double quotes around a whole caption, and write those in "
            "it twice"
        ) from error


def _swallowed(field: str) -> Iterator[int]:
    """Yields the lines of a field, counted from its first, that look like rows of their own."""
    for number, text in enumerate(field.split("\n")):
        name, comma, _ = text.partition(",")
        if number and comma and suffix_of(name) in MEDIA_SUFFIXES:
            yield number


def _columns_of(columns: Sequence[str], path: AnyPath) -> tuple[str, ...]:
    """Returns the columns that are read; raises `UserError` where one of the first two lacks, or one is there twice."""
    file = next((key for key in FILE_KEYS if key in columns), None)
    caption = next((key for key in CAPTION_KEYS if key in columns), None)
    if file is None or caption is None:
        first = " in its first line" if path.suffix.lower() == ".csv" else ""
        raise UserError(f"{path} must have the columns file and caption{first}; found {', '.join(columns) or 'none'}")
    others = (name for name in columns if name in ("weight", "weights") or name.startswith(_CONTROL))
    read = (file, caption, *dict.fromkeys(others))
    for name in read:
        if columns.count(name) > 1:
            raise UserError(f"{path} has the column {name} {columns.count(name)} times: keep one")
    return read


def _parquet_rows(path: AnyPath) -> Iterator[_Row]:
    """Yields every row; raises `UserError` with the number of a broken one."""
    try:
        with path.open("rb") as stream, parquet.ParquetFile(stream) as file:
            names = file.schema_arrow.names
            columns = _columns_of(names, path)
            batches = (batch.to_pylist() for batch in file.iter_batches(columns=list(columns)))
            for number, row in enumerate((row for rows in batches for row in rows), start=1):
                name, texts = row[columns[0]], captions_under(row, columns[1])
                if not isinstance(name, str) or not name or texts is None:
                    raise UserError(f"row {number} of {path} must have a file and a caption, a text or a list of texts")
                yield f"row {number}", name, texts, row
    except UnicodeDecodeError as error:  # which pyarrow leaves to whoever looks
        raise UserError(f"{path} has a text that is not UTF-8: save it as UTF-8") from error
    except (pyarrow.ArrowException, OSError) as error:
        said = (str(error).splitlines() or ["damaged"])[0]
        raise UserError(f"{path} is not a Parquet file that can be read: {said}") from error


def read_text(path: AnyPath) -> str:
    """Returns a file's text with any line ends as they are; raises `UserError` where it is not UTF-8."""
    try:
        return read_whole(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
