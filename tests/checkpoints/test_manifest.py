import json
import os

import pytest
from etils import epath

from sora_jax.checkpoints import manifest


@pytest.fixture
def directory(tmp_path):
    path = epath.Path(tmp_path / "200")
    (path / "deep" / "empty").mkdir(parents=True)
    (path / "a").write_bytes(b"a" * 5_000_000)
    (path / "deep" / "b").write_bytes(b"")
    manifest.write_manifest(path, name="200")
    return path


def test_untouched_files_are_trusted_under_their_name_only(directory):
    assert manifest.distrust(directory) is None
    other = directory.rename(directory.parent / "300")
    assert manifest.distrust(other) == "its manifest belongs to 200"


def test_a_flip_in_any_block_is_named(directory):
    content = bytearray((directory / "a").read_bytes())
    content[-1] ^= 1
    (directory / "a").write_bytes(content)
    assert manifest.distrust(directory) == "a has changed since it was written"


def test_missing_and_added_files_are_named(directory):
    (directory / "deep" / "c").write_text("")
    assert manifest.distrust(directory) == "deep/c was not part of it"
    (directory / "a").unlink()
    assert manifest.distrust(directory) == "a is missing"


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_parts_find_together_what_is_wrong_and_each_file_is_read_by_one(directory, count, monkeypatch):
    for number in range(4):
        (directory / f"data{number}").write_bytes(bytes([number]))
    manifest.write_manifest(directory, name="200")
    read, digest = [], manifest._digest
    monkeypatch.setattr(manifest, "_digest", lambda path: read.append(path.name) or digest(path))
    assert [manifest.distrust(directory, part=(index, count)) for index in range(count)] == [None] * count
    assert sorted(read) == ["a", "b", "data0", "data1", "data2", "data3"]
    (directory / "a").unlink()
    (directory / "data3").write_bytes(b"?")
    (directory / "new").write_bytes(b"")
    found = [line for index in range(count) for line in manifest.faults(directory, part=(index, count))]
    assert sorted(found) == manifest.faults(directory)
    assert len(found) == 3


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("a", path), lambda path: os.symlink("/", path)])
def test_links_and_pipes_are_refused_before_they_are_read(directory, make):
    make(os.fspath(directory / "deep" / "odd"))
    assert "odd is a link or a special file" in (manifest.distrust(directory) or "")
    with pytest.raises(ValueError, match="odd is a link"):
        manifest.write_manifest(directory, name="200")


def test_a_directory_that_is_a_link_is_refused(directory):
    link = directory.parent / "linked" / "200"
    link.parent.mkdir()
    os.symlink(directory, link)
    assert "200 is a link" in (manifest.distrust(link) or "")


def test_each_process_digests_what_it_wrote_and_the_first_the_rest(tmp_path, monkeypatch):
    directory = epath.Path(tmp_path / "200")
    for name in ("state/ocdbt.process_0/d/a", "state/ocdbt.process_1/d/b", "state/manifest.ocdbt", "data/c"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(name)
    manifest.write_manifest(directory, name="200")
    alone = (directory / manifest.MANIFEST).read_text()
    (directory / manifest.MANIFEST).unlink()
    read, digest = [], manifest._digest
    monkeypatch.setattr(manifest, "_digest", lambda path: read.append(path.name) or digest(path))
    for process, own in enumerate(("a", "b")):
        manifest.write_part(directory, f"ocdbt.process_{process}")
        assert read == [own]
        read.clear()
    manifest.write_manifest(directory, name="200")
    assert sorted(read) == ["c", "manifest.ocdbt"]
    assert json.loads((directory / manifest.MANIFEST).read_text()) == json.loads(alone)
    assert {path.name for path in directory.iterdir()} == {"state", "data", manifest.MANIFEST}


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"name": "200"}', '{"name": "200", "sha256": 3}'])
def test_a_damaged_manifest_is_not_a_crash(directory, content):
    (directory / manifest.MANIFEST).write_text(content)
    assert "cannot be read" in (manifest.distrust(directory) or "")


def test_a_manifest_that_is_a_pipe_is_not_waited_for(directory):
    (directory / manifest.MANIFEST).unlink()
    os.mkfifo(os.fspath(directory / manifest.MANIFEST))
    assert "special file" in (manifest.distrust(directory) or "")


def test_no_manifest(directory):
    (directory / manifest.MANIFEST).unlink()
    assert "no manifest" in (manifest.distrust(directory) or "")
