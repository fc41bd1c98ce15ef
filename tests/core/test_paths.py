"""A ~ is a home, wherever a path is written."""

import pytest

from sora_jax.core import paths
from sora_jax.core.errors import StorageError, UserError


@pytest.fixture(autouse=True)
def home(monkeypatch):
    monkeypatch.setenv("HOME", "/homes/me")


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("~/runs/a", "/homes/me/runs/a"),
        ("~", "/homes/me"),
        ("./~/a", "./~/a"),
        ("a~b", "a~b"),
        ("runs/~", "runs/~"),
        ("gs://bucket/~a", "gs://bucket/~a"),
        ("", ""),
    ],
)
def test_a_tilde_at_the_beginning_is_a_home(written, path):
    assert paths.expanded(written) == path


def test_a_home_that_is_not_there_is_told():
    with pytest.raises(UserError, match=r"~nobody-here/a names no home of this machine: .*, or \./~nobody-here/a for"):
        paths.expanded("~nobody-here/a")


@pytest.mark.parametrize("name", ["a.html", "deep/er/a.html", "b" * 255])
def test_what_can_be_written_leaves_nothing(tmp_path, name):
    paths.check_writable(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("file/a.html", "Not a directory"),
        ("file/deep/a.html", "Not a directory"),
        ("folder", "Is a directory"),
        ("b" * 256, "File name too long"),
        ("c" * 256 + "/a", "File name too long"),
        ("nowhere/a", "No such file or directory"),
    ],
)
def test_what_cannot_be_written_is_told_beforehand(tmp_path, name, said):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    with pytest.raises(StorageError, match=rf"cannot write {tmp_path}/.*: {said}"):
        paths.check_writable(tmp_path / name)


def test_a_file_system_that_is_read_only_is_told(tmp_path, monkeypatch):
    def read_only(**_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(paths.tempfile, "TemporaryFile", read_only)
    with pytest.raises(StorageError, match=r"cannot write .*: Read-only file system"):
        paths.check_writable(tmp_path / "a.html")


@pytest.mark.parametrize("name", ["a", "é" * 127, "b" * 251, "b" * 252, "b" * 255])
def test_what_is_not_whole_lies_beside_under_a_name_that_fits(tmp_path, name):
    path = paths.beside(tmp_path / name, ".tmp")
    path.touch()
    assert path.parent == tmp_path
    assert path.name.startswith(name) == (len(name.encode()) <= 251)
    assert path != paths.beside(tmp_path / f"c{name[1:]}", ".tmp")
