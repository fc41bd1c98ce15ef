"""Captions in Parquet and weights in any table; the rest is tested with the folders that hold the tables."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from sora_jax.core.errors import UserError
from sora_jax.data.media.writer import write_clip
from sora_jax.data.sources.base import FolderSource, fingerprint
from sora_jax.data.sources.caption_tables import TABLE_SUFFIXES, read_table
from sora_jax.data.sources.folder_captions import read_captions


def write(path: Path, **columns: list) -> Path:
    parquet.write_table(pyarrow.table(columns), path)
    return path


def test_texts_and_lists_of_texts_are_read(tmp_path):
    path = write(
        tmp_path / "a.parquet", file=["./b.mp4", "a.mp4", "b.mp4"], caption=["one", "two", "three"], seen=[1, 2, 3]
    )
    assert read_table(path) == {"b.mp4": [("one", 1), ("three", 1)], "a.mp4": [("two", 1)]}
    path = write(tmp_path / "a.parquet", file=["a.mp4", "b.mp4"], caption=[["one", "uno"], []])
    assert read_table(path) == {"a.mp4": [("one", 1), ("uno", 1)], "b.mp4": []}


def test_weights_of_every_table_reach_the_clips_and_the_fingerprint(tmp_path):
    for name in ("a.png", "b.png"):
        write_clip(tmp_path / name, np.zeros((1, 16, 16, 3), np.uint8), fps=1.0)
    rows = [
        ("a.png", "one", 3.0),
        ("a.png", " ", 7.0),
        ("a.png", "two", None),
        ("b.png", "x", 2.0),
        ("b.png", "y", 2.0),
    ]
    files, captions, weights = (list(column) for column in zip(*rows, strict=True))
    keys = ("file", "caption", "weight")
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(dict(zip(keys, row, strict=True))) for row in rows))
    lines = [f"{file},{caption},{'' if weight is None else weight}" for file, caption, weight in rows]
    (tmp_path / "t.csv").write_text("\n".join(["file,caption,weight", *lines]))
    write(tmp_path / "t.parquet", file=files, caption=captions, weight=weights)
    sources = [FolderSource(tmp_path, captions=f"t{suffix}") for suffix in TABLE_SUFFIXES]
    for source in sources:
        assert (source[0].captions, source[0].weights) == (("one", "two"), (3.0, 1.0))
        assert (source[1].captions, source[1].weights) == (("x", "y"), None), "equal weights are no weights"
    assert len({fingerprint(source) for source in sources}) == 1
    (tmp_path / "t.csv").write_text("\n".join(["file,caption", *(line.rpartition(",")[0] for line in lines)]))
    assert fingerprint(FolderSource(tmp_path, captions="t.csv")) != fingerprint(sources[0])


def test_a_caption_may_be_longer_than_the_csv_module_takes(tmp_path):
    csv.field_size_limit(131_072)  # its own, which another table may have raised
    long = "word " * 40_000
    (tmp_path / "a.csv").write_text(f'file,caption\na.mp4,"{long}"\n')
    assert read_table(tmp_path / "a.csv") == {"a.mp4": [(long, 1)]}


@pytest.mark.parametrize("weight", [0, -1, "much", True, [1], float("inf"), float("nan")])
def test_a_weight_that_is_no_number_above_0_is_named(tmp_path, weight):
    (tmp_path / "a.jsonl").write_text(json.dumps({"file": "a", "caption": "b", "weight": weight}))
    with pytest.raises(UserError, match=r"line 1 of .*a\.jsonl has the weight .*: make it a number above 0"):
        read_table(tmp_path / "a.jsonl")


def test_one_line_may_weigh_each_of_its_captions(tmp_path):
    row = {"file": "a.mp4", "caption": ["one", "uno"], "weights": [3, None]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    write(tmp_path / "a.parquet", **{key: [value] for key, value in row.items()})
    for suffix in (".jsonl", ".parquet"):
        assert read_table(tmp_path / f"a{suffix}") == {"a.mp4": [("one", 3), ("uno", 1)]}


@pytest.mark.parametrize("weights", [[], [1], [1, 2, 3], 2, "ab", {"one": 1}])
def test_weights_must_be_one_for_each_caption(tmp_path, weights):
    (tmp_path / "a.jsonl").write_text(json.dumps({"file": "a", "caption": ["one", "uno"], "weights": weights}))
    with pytest.raises(UserError, match=r"line 1 of .*a\.jsonl has the weights .* for 2 captions: give a list"):
        read_table(tmp_path / "a.jsonl")


def test_a_folder_is_captioned_by_a_parquet_file_when_there_is_no_other_table(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"")
    (tmp_path / "a.txt").write_text("sidecar")
    write(tmp_path / "captions.parquet", file=["a.mp4", "gone.mp4"], caption=["a  dog", "x"])
    found = read_captions(tmp_path)
    assert (found.by_file, found.missing) == ({"a.mp4": ("a dog",)}, ("gone.mp4",))
    (tmp_path / "captions.csv").write_text("file,caption\na.mp4,table\n")
    assert read_captions(tmp_path).by_file == {"a.mp4": ("table",)}
    assert read_captions(tmp_path, "captions.parquet").by_file == {"a.mp4": ("a dog",)}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"file": ["a"], "words": ["b"]}, "must have the columns file and caption; found file, words"),
        (
            {"file": ["a"], "caption": pyarrow.array([b"\xff"]).view(pyarrow.string())},
            r"a\.parquet has a text that is not UTF-8",
        ),
        ({"file": ["a", None], "caption": ["b", "c"]}, r"row 2 of .*a\.parquet must have a file and a caption"),
        ({"file": ["a", "b"], "caption": ["b", None]}, "row 2"),
        ({"file": ["a"], "caption": [3]}, "row 1"),
    ],
)
def test_mistakes_are_named(tmp_path, columns, message):
    with pytest.raises(UserError, match=message):
        read_table(write(tmp_path / "a.parquet", **columns))


def test_what_is_no_parquet_is_one_sentence(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"file,caption" * 10)
    with pytest.raises(UserError, match=r"a\.parquet is not a Parquet file that can be read"):
        read_table(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "file,caption\na.mp4,a dog, running fast\nb.mp4,a cat\n",
            r"line 2 .* has 3 fields and the header 2: put double",
        ),
        (
            'file,caption\nz.mp4,"x\ny"\na.mp4,"a dog\nb.mp4,a cat\n',
            r"line 4 .* \(a quote opens that is never closed\)",
        ),
        ('file,caption\na.mp4,"a dog\nb.mp4,"a cat"\n', r"line 2 of .* is not CSV"),
        ('file,caption\na.mp4,"a dog\nb.mp4,a cat\nc.mp4,a "\n', r"line 2 .* is not closed before line 3, which names"),
        ("file,caption,caption\na.mp4,one,two\n", "has the column caption 2 times: keep one"),
        ("file,caption,weight,weight\na.mp4,one,1,2\n", "has the column weight 2 times"),
        ("file,caption,weight\na.mp4,one\n", "line 2 .* has 2 fields and the header 3"),
        ("file;caption\na.mp4;one\n", "must have the columns file and caption in its first line; found file;caption"),
        ("", "found none"),
    ],
)
def test_csv_is_read_strictly_and_the_line_is_named(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_table(tmp_path / "a.csv")


def test_what_csv_allows_is_read_whole(tmp_path):
    text = '\nfile, caption\n\na.mp4, "a ""big"" dog, running\nfast, b.mp4 "\nb.mp4,a 12" screen\nc.mp4,\n'
    (tmp_path / "a.csv").write_text(text)
    assert read_table(tmp_path / "a.csv") == {
        "a.mp4": [('a "big" dog, running\nfast, b.mp4 ', 1)],
        "b.mp4": [('a 12" screen', 1)],
        "c.mp4": [("", 1)],
    }


def test_a_name_that_comes_twice_in_one_place_is_a_mistake(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"file": "a.mp4", "caption": "one", "caption": "two"}')
    with pytest.raises(UserError, match=r"line 1 of .*a\.jsonl is not JSON \(the key 'caption' comes twice\)"):
        read_table(tmp_path / "a.jsonl")
    columns = [pyarrow.array([word]) for word in ("a.mp4", "one", "two")]
    parquet.write_table(pyarrow.table(columns, names=["file", "caption", "caption"]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet has the column caption 2 times"):
        read_table(tmp_path / "a.parquet")
