"""Captions in Parquet; the other tables are tested with the folders that hold them."""

from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from sora_jax.core.errors import UserError
from sora_jax.data.caption_tables import read_table
from sora_jax.data.captions import read_captions


def write(path: Path, **columns: list) -> Path:
    parquet.write_table(pyarrow.table(columns), path)
    return path


def test_texts_and_lists_of_texts_are_read(tmp_path):
    path = write(
        tmp_path / "a.parquet", file=["./b.mp4", "a.mp4", "b.mp4"], caption=["one", "two", "three"], seen=[1, 2, 3]
    )
    assert read_table(path) == {"b.mp4": ["one", "three"], "a.mp4": ["two"]}
    path = write(tmp_path / "a.parquet", file=["a.mp4", "b.mp4"], caption=[["one", "uno"], []])
    assert read_table(path) == {"a.mp4": ["one", "uno"], "b.mp4": []}


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
        ({"file": ["a"], "text": ["b"]}, "must have the columns file and caption; found file, text"),
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
