"""The caption files of folders, as people write them."""

import json
from pathlib import Path

import pytest

from sora_jax.core.errors import UserError
from sora_jax.data.sources.folder_captions import read_captions


def folder(root: Path, *names: str, **texts: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"media")
    for name, text in texts.items():
        (root / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return root


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_jsonl_with_texts_lists_and_several_lines(tmp_path):
    text = lines(
        {"file": "b.mp4", "caption": "two  cats"},
        {"file": "./sub/a.PNG", "captions": ["one", "uno"]},
        {"file": "b.mp4", "caption": ["deux chats", " "]},
        {"file": "gone.mp4", "caption": "nobody"},
        {"file": "blank.gif", "caption": "  "},
    )
    folder(
        tmp_path,
        "b.mp4",
        "sub/a.PNG",
        "lone.webm",
        "blank.gif",
        ".hidden/c.mp4",
        "notes.md",
        captions__jsonl=text,
    )
    found = read_captions(tmp_path)
    assert found.by_file == {"b.mp4": ("two cats", "deux chats"), "sub/a.PNG": ("one", "uno")}
    assert list(found.by_file) == sorted(found.by_file)
    assert found.uncaptioned == ("blank.gif", "lone.webm")
    assert found.missing == ("gone.mp4",)


def test_csv_with_quotes_and_extra_columns(tmp_path):
    text = '\ufefflicence,file,caption\r\nfree,a.mp4,"a ""big"", red\nball"\r\n'
    assert read_captions(folder(tmp_path, "a.mp4", captions__csv=text)).by_file == {"a.mp4": ('a "big", red ball',)}


def test_sidecars(tmp_path):
    folder(tmp_path, "a.mp4", "b.c.mp4", "d.gif", a__txt="a cat\non a mat\n", b__c__txt="a dog", orphan__txt="x")
    found = read_captions(tmp_path)
    assert found.by_file == {"a.mp4": ("a cat on a mat",), "b.c.mp4": ("a dog",)}
    assert (found.uncaptioned, found.missing) == (("d.gif",), ("orphan.txt",))


def test_order_of_preference(tmp_path):
    folder(tmp_path, "a.mp4", a__txt="sidecar")
    assert read_captions(tmp_path).by_file["a.mp4"] == ("sidecar",)
    folder(tmp_path, captions__csv="file,caption\na.mp4,table\n")
    assert read_captions(tmp_path).by_file["a.mp4"] == ("table",)
    folder(tmp_path, captions__jsonl=lines({"file": "a.mp4", "caption": "lines"}))
    assert read_captions(tmp_path).by_file["a.mp4"] == ("lines",)
    folder(tmp_path, other__csv="file,caption\na.mp4,given\n")
    assert read_captions(tmp_path, tmp_path / "other.csv").by_file["a.mp4"] == ("given",)
    assert read_captions(tmp_path, "other.csv").by_file["a.mp4"] == ("given",)


def test_captions_may_be_absent_where_they_are_not_required(tmp_path):
    found = read_captions(folder(tmp_path, "a.mp4"), required=False)
    assert (found.by_file, found.uncaptioned) == ({}, ("a.mp4",))


@pytest.mark.parametrize(
    ("names", "texts", "words"),
    [
        ([], {"notes__md": "x"}, "holds 1 files but no video or image"),
        (
            ["a.mp4"],
            {},
            r"none of the 1 media files .* looked for captions.jsonl, captions.csv, captions.parquet, metadata.jsonl,",
        ),
        (
            ["a.mp4"],
            {"captions__jsonl": lines({"file": "A.mp4", "caption": "x"})},
            "name 1 other files such as A.mp4",
        ),
        (["a.mp4"], {"captions__jsonl": "\n{broken\n"}, r"line 2 of .*captions.jsonl is not JSON"),
        (["a.mp4"], {"captions__jsonl": '["a.mp4", "x"]\n'}, r"line 1 of .*must be \{\"file\""),
        (["a.mp4"], {"captions__jsonl": '{"file": "a.mp4"}\n'}, r"line 1 of .*must have a \"caption\""),
        (
            ["a.mp4"],
            {"captions__csv": "name,text\na.mp4,x\n"},
            "must have the columns file and caption in its first line; found name",
        ),
        (
            ["a.mp4"],
            {"captions__csv": "file,caption\na.mp4,x\nb.mp4\n"},
            r"line 3 of .*has 1 fields and the header 2",
        ),
        (["a.mp4"], {"captions__csv": "file,caption\n,x\n"}, r"line 2 of .*lacks the file"),
    ],
)
def test_mistakes_are_named(tmp_path, names, texts, words):
    with pytest.raises(UserError, match=words):
        read_captions(folder(tmp_path, *names, **texts))


def test_missing_folder_missing_file_and_foreign_encoding(tmp_path):
    with pytest.raises(UserError, match=r"nowhere does not exist: pass --config.data.path=DIR"):
        read_captions(tmp_path / "nowhere")
    folder(tmp_path, "a.mp4")
    with pytest.raises(UserError, match=r"caption file c.jsonl does not exist"):
        read_captions(tmp_path, "c.jsonl")
    with pytest.raises(UserError, match=r"must end in .jsonl or .csv or .parquet"):
        read_captions(tmp_path, "a.mp4")
    (tmp_path / "captions.csv").write_bytes("file,caption\na.mp4,café\n".encode("latin-1"))
    with pytest.raises(UserError, match="is not UTF-8 text"):
        read_captions(tmp_path)


def test_what_is_far_too_large_or_deep_for_a_caption_is_named(tmp_path):
    folder(tmp_path, "a.mp4", a__txt="x" * (2**20 + 1))
    with pytest.raises(UserError, match=r"a\.txt has 1048577 bytes, over the 1048576 of a caption"):
        read_captions(tmp_path)
    folder(tmp_path, captions__jsonl='{"file": "a.mp4", "caption": ' + "[" * 100_000)
    with pytest.raises(UserError, match=r"line 1 of .*captions\.jsonl is not JSON"):
        read_captions(tmp_path)


def test_a_caption_is_of_one_clip(tmp_path):
    names = ("x.mp4", "x.avi", "a.jpg", "a.mp4", "b.jpg", "b.gif", "lone.jpg", "lone.mp4")
    found = read_captions(folder(tmp_path, *names, x__txt="two files", a__txt="a clip", b__txt="moves"))
    assert found.by_file == {"a.mp4": ("a clip",), "b.gif": ("moves",), "x.avi": ("two files",)}
    assert found.sharing == ("b.jpg", "x.mp4")
    assert found.previews == ("a.jpg", "lone.jpg")
    assert (found.uncaptioned, found.missing) == (("lone.mp4",), ())
    table = lines({"file": "x.mp4", "caption": "one"}, {"file": "a.jpg", "caption": "two"})
    found = read_captions(folder(tmp_path, captions__jsonl=table))
    assert found.by_file == {"a.jpg": ("two",), "x.mp4": ("one",)}, "what a table names is no question"
    assert (found.sharing, found.previews) == ((), ())


def test_endings_may_be_in_capitals(tmp_path):
    folder(tmp_path, "a.MP4", a__TXT="beside")
    assert read_captions(tmp_path).by_file == {"a.MP4": ("beside",)}
    folder(tmp_path, CAPTIONS__CSV="file,caption\na.MP4,table\n")
    assert read_captions(tmp_path).by_file == {"a.MP4": ("table",)}
    folder(tmp_path, Captions__JsonL=lines({"file": "a.MP4", "caption": "lines"}))
    assert read_captions(tmp_path).by_file == {"a.MP4": ("lines",)}
    assert read_captions(tmp_path, "CAPTIONS.CSV").by_file == {"a.MP4": ("table",)}


def test_a_letter_in_two_forms_is_one_letter(tmp_path):
    composed, apart = "caf\u00e9", "cafe\u0301"
    folder(tmp_path, f"{apart}.mp4", f"dir {composed}/a.mp4")
    (tmp_path / f"{composed}.txt").write_text("beside")
    assert read_captions(tmp_path).by_file == {f"{apart}.mp4": ("beside",)}
    table = lines(*({"file": name, "caption": name[-5]} for name in (f"{composed}.mp4", f"dir {apart}/a.mp4")))
    folder(tmp_path, captions__jsonl=table)
    found = read_captions(tmp_path)
    assert found.by_file == {f"{apart}.mp4": ("\u00e9",), f"dir {composed}/a.mp4": ("a",)}
    assert found.missing == ()
    folder(tmp_path, f"{composed}.mp4")
    found = read_captions(tmp_path)
    assert found.by_file == {f"{composed}.mp4": ("\u00e9",), f"dir {composed}/a.mp4": ("a",)}, "the very name counts"
    assert found.uncaptioned == (f"{apart}.mp4",)


def test_folders_behind_links_are_named(tmp_path, tmp_path_factory):
    elsewhere = folder(tmp_path_factory.mktemp("elsewhere"), "b.mp4", b__txt="far")
    root = folder(tmp_path / "root", "a.mp4", a__txt="near")
    (root / "more").symlink_to(elsewhere)
    (root / ".hidden").symlink_to(elsewhere)
    found = read_captions(root)
    assert (list(found.by_file), found.linked) == (["a.mp4"], ("more",))
    (root / "a.mp4").unlink()
    with pytest.raises(UserError, match=r"no video or image .* \(1 folders behind links are passed over, such as more"):
        read_captions(root)


def test_one_line_accounts_for_every_file(tmp_path):
    names = ("x.mp4", "x.avi", "a.jpg", "a.mp4", "lone.gif", "b.HEIC", "c.heic", "read.me", "LICENSE", "d.bin")
    folder(tmp_path, *names, x__txt="two files", a__txt="a clip", b__txt="a picture")
    (tmp_path / "more").symlink_to(tmp_path)
    found = read_captions(tmp_path)
    assert found.account == (
        "13 files: 2 clips with a caption, 1 without, 1 thumbnails of videos, 1 beside a clip that has their caption, "
        "3 texts and tables, 5 of endings that are not read (.heic 2, none 1, .bin 1, .me 1); "
        "1 folders behind links are passed over"
    )
    assert (found.unread, found.heic) == ((), ("b.HEIC", "c.heic"))


def test_heic_pictures_are_named_with_the_remedy_unless_they_were_converted(tmp_path):
    folder(tmp_path, "a.heic", "b.HEIF", "b.jpg", b__txt="a picture")
    found = read_captions(tmp_path)
    assert (list(found.by_file), found.heic) == (["b.jpg"], ("a.heic",))
    (tmp_path / "b.jpg").unlink()
    with pytest.raises(UserError, match=r"no video or image .*; 2 are HEIC pictures such as a\.heic: make JPEG of it"):
        read_captions(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.jsonl", lines({"file_name": "a.mp4", "text": "a dog"}, {"file_name": "b.mp4", "text": "a cat"})),
        ("metadata.csv", "file_name,text\na.mp4,a dog\nb.mp4,a cat\n"),
        ("captions.csv", "id,prompt,video\n1,a dog,a.mp4\n2,a cat,b.mp4\n"),
        ("captions.jsonl", lines({"path": "a.mp4", "prompt": "a dog"}, {"video": "b.mp4", "captions": ["a cat"]})),
        ("prompt.txt", "a dog\r\na cat\r\n\r\n"),
        ("Prompts.txt", "a dog\na cat"),
    ],
)
def test_the_tables_of_other_tools_are_read(tmp_path, name, text):
    folder(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "videos.txt").write_text("a.mp4\n./b.mp4\n")
    (tmp_path / name).write_text(text)
    found = read_captions(tmp_path)
    assert found.by_file == {"a.mp4": ("a dog",), "b.mp4": ("a cat",)}
    assert found.missing == ()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("captions.csv", "file,caption\n a.mp4,one\na.mp4,two\nb.mp4 ,three\n"),
        ("captions.csv", 'caption, file\n"one", " a.mp4"\n"two", a.mp4\n"three", b.mp4\n'),
        ("prompt.txt", "one\r\ntwo\r\nthree\r\n"),
    ],
)
def test_spaces_may_be_parts_of_names(tmp_path, name, text):
    folder(tmp_path, " a.mp4", "a.mp4", "b.mp4")
    (tmp_path / "videos.txt").write_text(" a.mp4\r\na.mp4\r\nb.mp4 \r\n \r\n")
    (tmp_path / name).write_text(text)
    assert read_captions(tmp_path).by_file == {" a.mp4": ("one",), "a.mp4": ("two",), "b.mp4": ("three",)}


def test_a_json_or_a_caption_file_may_lie_beside_a_clip(tmp_path):
    folder(tmp_path, "a.mp4", "b.mp4", "c.mp4", a__caption="a dog", b__json='{"prompt": "a cat"}', c__json="{}")
    folder(tmp_path, d__json="no json, and of no clip")
    found = read_captions(tmp_path)
    assert found.by_file == {"a.mp4": ("a dog",), "b.mp4": ("a cat",)}
    assert (found.uncaptioned, found.missing) == (("c.mp4",), ())
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(UserError, match=r"c\.json cannot be read as captions \(.*\): mend or remove it"):
        read_captions(tmp_path)


def test_lists_of_unlike_length_are_no_table(tmp_path):
    folder(tmp_path, "a.mp4", "b.mp4", videos__txt="a.mp4\nb.mp4\n", prompt__txt="a dog\n")
    with pytest.raises(UserError, match=r"videos\.txt has 2 lines and .*prompt\.txt 1: write a line for a line"):
        read_captions(tmp_path)
    folder(tmp_path, videos__txt="\nb.mp4\n", prompt__txt="a dog\na cat\n")
    with pytest.raises(UserError, match=r"line 1 of .*videos\.txt is empty"):
        read_captions(tmp_path)


def test_one_of_several_tables_is_read_and_the_others_are_named(tmp_path, caplog):
    folder(tmp_path, "a.mp4", metadata__csv="file_name,text\na.mp4,one\n", captions__csv="file,caption\na.mp4,two\n")
    assert read_captions(tmp_path).by_file == {"a.mp4": ("two",)}
    assert "captions.csv is read and metadata.csv passed over" in caplog.text


def test_a_table_in_a_subfolder_counts_for_what_lies_there(tmp_path, caplog):
    for name in ("dogs/a.mp4", "dogs/more/b.mp4", "cats/c.mp4", "cats/c.txt", "birds/d.mp4", "lone.mp4", "lone.txt"):
        folder(tmp_path, name)
        (tmp_path / name).write_text(name)
    rows = ("a.mp4", "more/b.mp4", "../cats/c.mp4", "more/b.mp4#0-8", "gone.mp4", "../notes.md")
    (tmp_path / "notes.md").write_text("no media")
    (tmp_path / "dogs" / "metadata.jsonl").write_text(lines(*({"file_name": name, "text": name} for name in rows)))
    (tmp_path / "dogs" / "more" / "METADATA.csv").write_text("file_name,text\nb.mp4,from further inside\n")
    (tmp_path / "birds" / "videos.txt").write_text("d.mp4\n")
    (tmp_path / "birds" / "prompt.txt").write_text("a bird\n")
    found = read_captions(tmp_path)
    assert found.by_file == {
        "birds/d.mp4": ("a bird",),
        "cats/c.mp4": ("cats/c.txt",),
        "dogs/a.mp4": ("a.mp4",),
        "dogs/more/b.mp4": ("more/b.mp4",),
        "lone.mp4": ("lone.txt",),
    }
    assert found.windows == {"dogs/more/b.mp4": {(0, 8): (("more/b.mp4#0-8",), None)}}
    assert (found.missing, found.unread) == (("dogs/gone.mp4",), ("notes.md",))
    for place, name in (("dogs", "cats/c.mp4"), ("dogs/more", "dogs/more/b.mp4")):
        assert f"1 files in the table in {place} are passed over, since they have others: {name}" in caplog.text
    given = tmp_path / "given.jsonl"
    given.write_text(lines({"file": "dogs/a.mp4", "caption": "given"}))
    assert read_captions(tmp_path, given).by_file == {**found.by_file, "dogs/a.mp4": ("given",)}
    (tmp_path / "dogs" / "metadata.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"line 1 of .*dogs/metadata\.jsonl is not JSON"):
        read_captions(tmp_path)


def test_names_in_a_subfolder_are_read_as_those_in_the_root(tmp_path):
    folder(tmp_path, "dogs/a.MP4", "dogs/b.mp4", "cats/c.mp4", "d.mp4")
    rows = ("a dog, a.mp4", "two, b.mp4#0-8 ", "a cat, ..\\cats\\c.mp4", "nobody, gone.mp4")
    (tmp_path / "dogs" / "captions.csv").write_text("\n".join(("caption,file", *rows)))
    (tmp_path / "d.txt").write_text("beside")
    found = read_captions(tmp_path)
    assert found.by_file == {"cats/c.mp4": ("a cat",), "d.mp4": ("beside",), "dogs/a.MP4": ("a dog",)}
    assert found.windows == {"dogs/b.mp4": {(0, 8): (("two",), None)}}
    assert found.missing == ("dogs/ gone.mp4",)


def test_what_the_given_table_names_is_not_read_beside_the_clips(tmp_path):
    names = ("a.mp4", "b.mp4", "c.left.mp4", "c.right.mp4", "d.mp4", "d.gif")
    folder(tmp_path, *names, b__txt="beside", d__txt="two files")
    for broken in ("a.txt", "c.txt", "b.mp4#0-8.txt"):
        (tmp_path / broken).write_bytes(b"\xff\xfe")
    told = ("a.mp4", "c.left.mp4", "b.mp4#0-8", "d.mp4")
    folder(tmp_path, told__jsonl=lines(*({"file": name, "caption": name} for name in told)))
    found = read_captions(tmp_path, "told.jsonl")
    assert found.by_file == {name: (name,) for name in told if "#" not in name} | {"b.mp4": ("beside",)}
    assert found.windows == {"b.mp4": {(0, 8): (("b.mp4#0-8",), None)}}
    assert (found.sharing, found.previews) == (("c.right.mp4",), ("d.gif",))
    folder(tmp_path, told__jsonl=lines({"file": "c.left.mp4", "caption": "told"}))
    with pytest.raises(UserError, match=r"\.txt is not UTF-8 text"):
        read_captions(tmp_path, "told.jsonl")


def test_a_missing_name_counts_once(tmp_path):
    table = lines({"file": "a.mp4", "caption": "one"}, {"file": "gone.mp4", "caption": "two"})
    folder(tmp_path, "a.mp4", "b.mp4", captions__jsonl=table)
    assert read_captions(tmp_path, "captions.jsonl").missing == ("gone.mp4",)


def test_a_table_may_name_windows_of_files(tmp_path):
    rows = [("a.mp4#0-16", "one"), ("a.mp4#17-33", " "), ("b.mp4", "whole"), ("b.mp4#3-4", "part"), ("c.mp4#0-1", "x")]
    table = lines(*({"file": name, "caption": text} for name, text in rows))
    found = read_captions(folder(tmp_path, "a.mp4", "b.mp4", "b.mp4#5-6.gif", captions__jsonl=table))
    assert found.windows == {"a.mp4": {(0, 16): (("one",), None)}, "b.mp4": {(3, 4): (("part",), None)}}
    assert found.by_file == {"b.mp4": ("whole",)}
    assert (found.missing, found.uncaptioned) == (("c.mp4#0-1",), ("b.mp4#5-6.gif",))


def test_a_text_beside_a_clip_may_be_of_a_window(tmp_path):
    names = ("a.mp4", "a.mp4#17-33.mp4", "gone.mp4#0-1.mp4")
    for name in ("a.txt", "a.mp4#0-16.txt", "a.mp4#17-33.txt", "gone.mp4#0-1.txt", "far.mp4#0-1.txt"):
        (tmp_path / name).write_text(name)
    found = read_captions(folder(tmp_path, *names))
    assert found.windows == {"a.mp4": {(0, 16): (("a.mp4#0-16.txt",), None)}}
    own = ("a.mp4#17-33", "gone.mp4#0-1")
    assert found.by_file == {"a.mp4": ("a.txt",)} | {f"{name}.mp4": (f"{name}.txt",) for name in own}
    assert found.missing == ("far.mp4#0-1.txt",)
