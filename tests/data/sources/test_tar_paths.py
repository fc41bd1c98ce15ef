"""Which tars a path stands for, and what they are called."""

import errno
import os
from pathlib import Path

import pytest

from sora_jax.core.errors import UserError
from sora_jax.data.sources import remote, tar_paths
from sora_jax.data.sources.tar_paths import find_tars
from sora_jax.data.sources.webdataset import TarSource


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("", "2023/a-0.tar"),
        ("2023", "a-0.tar"),
        ("2023/a-0.tar", "a-0.tar"),
        ("2023/../2023/a-0.tar", "a-0.tar"),
        ("2023/a-*.tar", "a-0.tar"),
        ("202?/*.tar", "2023/a-0.tar"),
        ("**/*.tar", "2023/a-0.tar"),
        ("{2023,2023}/a-{0..0}.tar", "2023/a-0.tar"),
    ],
)
def test_a_tar_is_called_the_same_when_others_are_added(tmp_path, monkeypatch, path, label):
    put(tmp_path, "2023/a-0.tar")
    monkeypatch.chdir(tmp_path)
    for written in (f"{tmp_path}/{path}", path or "."):
        before = find_tars(written).labels
        assert label in before
        put(tmp_path, "2024/a-0.tar", "2023/more/a-0.tar", "a-1.tar", "2023/a-1.tar")
        after = find_tars(written)
        assert set(before) <= set(after.labels)
        assert len(set(after.labels)) == len(after.paths)
        for name in ("2024/a-0.tar", "2023/more/a-0.tar", "a-1.tar", "2023/a-1.tar"):
            (tmp_path / name).unlink()


def test_choices_of_whole_paths_have_names_of_their_own(tmp_path):
    put(tmp_path, "one/a.tar", "two/a.tar", "two/deep/b.tar")
    pattern = f"{{{tmp_path}/one,{tmp_path}/two}}"
    assert find_tars(f"{pattern}/*.tar").labels == ["one/a.tar", "two/a.tar"]
    assert find_tars(f"{pattern}/**/*.tar").labels == ["one/a.tar", "two/a.tar", "two/deep/b.tar"]


def test_a_tar_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    put(tmp_path, "a.tar", "b.tar")

    def refuse(path: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(remote, "open_file", refuse)
    with pytest.raises(UserError, match=r"a\.tar cannot be read \(Permission denied\): make it readable"):
        TarSource(tmp_path)


@pytest.mark.parametrize(
    ("pattern", "labels"),
    [
        ("gs://heap/2023/a-*.tar", ["a-0.tar"]),
        ("gs://heap/{2023,2024}/a-0.tar", ["2023/a-0.tar", "2024/a-0.tar"]),
        ("gs://heap/20*/a-[0].tar", ["2023/a-0.tar", "2024/a-0.tar"]),
        ("gs://{heap,heap}/2023/a-0.tar", ["heap/2023/a-0.tar"]),
    ],
)
def test_names_in_a_bucket_begin_where_the_pattern_does(monkeypatch, pattern, labels):
    there = [f"gs://heap/{year}/a-0.tar" for year in (2023, 2024)]
    monkeypatch.setattr(remote, "place", lambda path: remote.epath.Path(os.fspath(path)))
    monkeypatch.setattr(remote, "is_folder", lambda path: False)
    monkeypatch.setattr(remote, "is_there", lambda path: False)
    monkeypatch.setattr(
        remote, "find_matches", lambda name: [remote.epath.Path(one) for one in there if Path(one).match(name)]
    )
    monkeypatch.setattr(tar_paths, "_check_tar", lambda tar: None)
    assert find_tars(pattern).labels == labels
