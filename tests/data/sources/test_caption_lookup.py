"""What tables say about clips and windows of them, whatever the source."""

import json
from pathlib import Path

import pytest

from sora_jax.core.errors import UserError
from sora_jax.data.clips import BadClip
from sora_jax.data.sources.base import FolderSource, fingerprint
from sora_jax.data.sources.caption_lookup import Names, Told, look_up, read_named, window_named
from sora_jax.data.sources.caption_tables import Written
from sora_jax.data.sources.decoded import DecodedSource
from sora_jax.data.sources.records import RecordSource, Sample, write_records
from sora_jax.data.sources.webdataset import TarSource
from tests.data.sources.test_webdataset import media, write_tar

PREFIXES = {"folder": "", "webdataset": "heap.tar/", "arrayrecord": "heap.arrayrecord/"}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.mp4#0-16", ("a.mp4", (0, 16))),
        ("x/a#1-2.mp4#3-4", ("x/a#1-2.mp4", (3, 4))),
        ("a\n.mp4#07-8", ("a\n.mp4", (7, 8))),
        ("a.mp4#-3", None),
        ("a.mp4#1234567890-2", None),
        ("#0-1", None),
    ],
)
def test_windows_are_told_by_their_names(name, found):
    assert window_named(name) == found


def test_names_are_found_as_others_write_them():
    names = Names(["caf\u00e9.mp4", "cafe\u0301.gif", "x/a.mp4", "x\\b.mp4", "a.mp4#0-1"])
    assert names.find("cafe\u0301.mp4") == "caf\u00e9.mp4"
    assert names.find("caf\u00e9.gif") == "cafe\u0301.gif"
    assert (names.find("x\\a.mp4"), names.find("x\\b.mp4")) == ("x/a.mp4", "x\\b.mp4")
    assert names.find("b.mp4") is None
    table = {name: [Written(name)] for name in ("a.mp4#0-1", "x\\a.mp4#0-1", "x/a.mp4#00-1", "b.mp4#0-1")}
    assert look_up(table, names) == Told(
        captions={"a.mp4#0-1": (("a.mp4#0-1",), None)},
        windows={"x/a.mp4": {(0, 1): (("x\\a.mp4#0-1", "x/a.mp4#00-1"), None)}},
        missing=["b.mp4#0-1"],
    )


def test_names_are_found_whatever_says_nothing_in_them():
    names = Names(["t/./a.mp4", "t//b.mp4", "c.MP4", "./d.gif", "e.mp4", "e.MP4", "1.0#T/7", "x/../f.gif"])
    written = {"t/a.mp4": "t/./a.mp4", "t/b.MP4": "t//b.mp4", "c.mp4": "c.MP4", "d.gif": "./d.gif", "e.Mp4": "e.mp4"}
    assert {name: names.find(name) for name in written} == written
    assert [names.find(name) for name in ("e.MP4", "C.mp4", "1.0#t/7", "f.gif")] == ["e.MP4", None, None, None]
    assert (names.find(" b.mp4", "t"), names.find("..\\e.mp4 ", "t")) == ("t//b.mp4", "e.mp4")


def test_a_table_names_members_of_tars_as_the_log_does(tmp_path):
    gif = media(tmp_path, ".gif", frames=4)
    heap, table = write_tar(tmp_path / "heap.tar", [("dogs//a.gif", gif), ("./b.gif", gif)]), tmp_path / "table.jsonl"
    rows = {"heap.tar/dogs//a.gif": "a dog", "heap.tar/./b.gif": "b", "heap.tar/b.gif#0-1": "begins"}
    table.write_text("\n".join(json.dumps({"file": name, "caption": text}) for name, text in rows.items()))
    source = TarSource(heap, captions=table)
    assert [source[index].captions for index in range(2)] == [("a dog",), ("b",)]
    assert (source.window(1, 0, 1).captions, source.missing) == (("begins",), [])


def test_a_table_must_be_there(tmp_path):
    with pytest.raises(UserError, match=r"the caption file c\.csv does not exist, neither here nor in "):
        read_named("c.csv", tmp_path)
    (tmp_path / "c.txt").write_text("")
    with pytest.raises(UserError, match=r"c\.txt must end in \.jsonl or \.csv or \.parquet"):
        read_named(tmp_path / "c.txt")


def opened(kind: str, folder: Path, **options) -> DecodedSource:
    """Returns the files of a folder, with the texts beside them, as a source of one kind."""
    if kind == "folder":
        return FolderSource(folder, **options)
    files = sorted(folder.iterdir())
    if kind == "webdataset":
        return TarSource(write_tar(folder.parent / "heap.tar", [(f.name, f.read_bytes()) for f in files]), **options)
    texts = {file.stem: [file.read_text()] for file in files if file.suffix == ".txt"}
    clips = [Sample(f.name, f.read_bytes(), texts.get(f.stem, [])) for f in files if f.suffix == ".gif"]
    write_records(folder.parent / "heap.arrayrecord", clips)
    return RecordSource(folder.parent / "heap.arrayrecord", **options)


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "open").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "open" / f"{name}.gif").write_bytes(media(tmp_path, ".gif", frames=4))
    (tmp_path / "open" / "a.txt").write_text("whole")
    return tmp_path / "open"


@pytest.mark.parametrize("kind", PREFIXES)
def test_a_table_has_captions_of_clips_and_windows_of_every_source(folder, kind):
    prefix, table = PREFIXES[kind], folder.parent / "table.jsonl"
    before = opened(kind, folder)
    assert [before.source_id(i) for i in range(len(before))] == [f"{prefix}a.gif"]
    rows = {"a.gif#0-1": "begins", "b.gif#2-3": "ends", "c.gif": "all of c", "far.gif#0-1": "nobody"}
    table.write_text("\n".join(json.dumps({"file": prefix + name, "caption": text}) for name, text in rows.items()))
    source = opened(kind, folder, captions=table)
    assert [source.source_id(i) for i in range(len(source))] == [f"{prefix}{name}.gif" for name in "abc"]
    assert [source.window(0, *window).captions for window in ((0, 1), (2, 3))] == [("begins",), ("whole",)]
    assert (source[0].captions, source[2].captions) == (("whole",), ("all of c",))
    assert (source.window(1, 2, 3).captions, source.lacks_caption(1, 2, 3)) == (("ends",), False)
    assert (source.lacks_caption(1, 0, 1), source.lacks_caption(0, 2, 3)) == (True, False)
    assert [source.captioned_windows(i) for i in range(3)] == [{(0, 1)}, {(2, 3)}, set()]
    with pytest.raises(BadClip, match="has captions of windows only"):
        source[1]
    assert (source.missing, source.retold, before.retold) == ([f"{prefix}far.gif#0-1"], 3, 0)
    assert source.origin(0) != before.origin(0)
    assert opened(kind, folder, captions=table, captions_required=False)[1].captions == ()
    known = fingerprint(source)
    table.write_text(table.read_text().replace("ends", "ended"))
    assert fingerprint(opened(kind, folder, captions=table)) != known


@pytest.mark.parametrize("kind", ["folder", "webdataset"])
def test_a_text_beside_a_clip_is_of_its_window_and_not_of_all_of_it(folder, kind):
    for name in (
        "a.gif#0-1.txt",
        "b.gif#2-3.txt",
        "b.gif#2-3.json",
        "c.gif#0-1.gif",
        "c.gif#0-1.txt",
        "far.gif#0-1.txt",
    ):
        (folder / name).write_text(name)
    (folder / "c.gif#0-1.gif").write_bytes((folder / "c.gif").read_bytes())
    source, prefix = opened(kind, folder), PREFIXES[kind]
    names = [source.source_id(i).removeprefix(prefix) for i in range(len(source))]
    assert sorted(names) == ["a.gif", "b.gif", "c.gif#0-1.gif"]
    a, b, c = (names.index(name) for name in ("a.gif", "b.gif", "c.gif#0-1.gif"))
    assert (source[a].captions, source[c].captions) == (("whole",), ("c.gif#0-1.txt",))
    assert source.window(a, 0, 1).captions == ("a.gif#0-1.txt",)
    assert source.window(b, 2, 3).captions == ("b.gif#2-3.txt",)
    assert source.lacks_caption(b, 0, 1)
    assert (source.missing, source.uncaptioned) == ([f"{prefix}far.gif#0-1.txt"], [f"{prefix}c.gif"])


@pytest.mark.parametrize("kind", PREFIXES)
def test_where_captions_are_not_needed_no_clip_is_left_out(folder, kind):
    assert len(opened(kind, folder)) == 1
    assert [opened(kind, folder, captions_required=need).captions_required for need in (None, True)] == [True, True]
    (folder / "a.txt").unlink()
    with pytest.raises(UserError, match="caption"):
        opened(kind, folder)
    for need in (None, False):
        source = opened(kind, folder, captions_required=need)
        assert (len(source), source.captions_required, source[0].captions) == (3, False, ())


def test_a_text_of_a_window_belongs_to_a_clip_of_its_own_tar(tmp_path):
    gif = media(tmp_path, ".gif")
    write_tar(tmp_path / "0.tar", [("a.gif", gif), ("a.txt", "a")])
    write_tar(tmp_path / "1.tar", [("a.gif#0-1.txt", "part"), ("b.gif", gif), ("b.txt", "b")])
    source = TarSource(tmp_path)
    assert source.missing == ["1.tar/a.gif#0-1.txt"]
    assert len(source) == 2
