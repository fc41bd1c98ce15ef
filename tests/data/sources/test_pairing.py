"""Which texts belong to which media files."""

import itertools
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_jax.data.sources.caption_tables import Written
from sora_jax.data.sources.pairing import FolderFiles, Paired, by_key, pair


def paired(*names: str, **texts: str) -> list[Paired]:
    """Returns the pairs of names; a text says its own name unless `texts` has another one for it."""
    return [pair(files, lambda name: [Written(texts.get(name, name))]) for files in by_key(names)]


@pytest.mark.parametrize(
    ("names", "captions"),
    [
        ("a.mp4 a.txt", {"a.mp4": "a.txt"}),
        ("a.mp4 b.txt", {}),
        ("a.MP4 a.TXT", {"a.MP4": "a.TXT"}),
        ("a.mp4 a.0.txt a.1.txt", {"a.mp4": "a.0.txt a.1.txt"}),
        ("a.mp4 a.json a.txt", {"a.mp4": "a.txt"}),
        ("a.video.mp4 a.txt", {"a.video.mp4": "a.txt"}),
        ("a.video.mp4 a.caption.txt", {"a.video.mp4": "a.caption.txt"}),
        ("a.video.mp4 a.jpg a.txt", {"a.video.mp4": "a.txt"}),
        ("a.jpg a.mp4 a.txt", {"a.mp4": "a.txt"}),
        ("a.mp4 a.poster.jpg a.poster.txt a.txt", {"a.mp4": "a.txt", "a.poster.jpg": "a.poster.txt"}),
        ("a.jpg a.gif a.txt", {"a.gif": "a.txt"}),
        ("a.right.mp4 a.left.mp4 a.txt", {"a.left.mp4": "a.txt"}),
        ("a.right.mp4 a.left.mp4 a.txt a.left.txt", {"a.left.mp4": "a.left.txt", "a.right.mp4": "a.txt"}),
        ("a.1.2.mp4 a.1.3.mp4 a.1.3.txt a.1.2.txt", {"a.1.2.mp4": "a.1.2.txt", "a.1.3.mp4": "a.1.3.txt"}),
        ("a.1.mp4 a.1.2.mp4 a.1.2.txt a.1.txt", {"a.1.mp4": "a.1.txt", "a.1.2.mp4": "a.1.2.txt"}),
        ("a.1.mp4 a.2.jpg a.1.txt a.2.txt", {"a.1.mp4": "a.1.txt", "a.2.jpg": "a.2.txt"}),
        ("a.1.mp4 a.2.txt", {}),
        ("caf\u00e9.mp4 cafe\u0301.txt", {"caf\u00e9.mp4": "cafe\u0301.txt"}),
        ("caf\u00e9.mp4 cafe\u0301.mp4 cafe\u0301.txt", {"cafe\u0301.mp4": "cafe\u0301.txt"}),
        ("x/a.mp4 y/a.txt", {}),
    ],
)
def test_a_text_belongs_to_the_name_that_it_begins_with(names, captions):
    found = {name: " ".join(texts) for one in paired(*names.split()) for name, (texts, _) in one.captions.items()}
    plain = {name: text.replace("cafe\u0301", "caf\u00e9") for name, text in captions.items()}
    assert found == plain


def test_dots_and_spaces_are_parts_of_names():
    (one,) = paired("Dr. No.mp4", "Dr. Who.txt", "Dr. Who.mkv", "Dr. Yes.txt", "Dr. Ox.mp4")
    assert one.captions == {"Dr. Who.mkv": (("Dr. Who.txt",), None)}
    assert one.uncaptioned == ("Dr. No.mp4", "Dr. Ox.mp4")
    assert one.unused == ("Dr. Yes.txt",)


def test_an_empty_text_leaves_the_next_kind_to_be_read():
    (one,) = paired("a.mp4", "a.txt", "a.json", **{"a.txt": " "})
    assert one.captions == {"a.mp4": (("a.json",), None)}


def written_names(endings: list[str]) -> st.SearchStrategy[list[str]]:
    beginnings, middles = ["a", "b", "a 1"], ["", ".1", ".2", ".1.2", ".left", ".x y"]
    one = st.builds("{}{}{}".format, *map(st.sampled_from, (beginnings, middles, endings)))
    return st.lists(one, unique=True, max_size=12)


@given(names=written_names([".mp4", ".txt"]))
def test_a_text_is_of_the_longest_name_that_it_begins_with(names):
    clips = {name[:-3] for name in names if name.endswith(".mp4")}
    owners = {name: [clip for clip in clips if name.startswith(clip)] for name in names if name.endswith(".txt")}
    wanted: dict[str, set[str]] = {}
    for text, found in owners.items():
        if found:
            wanted.setdefault(max(found, key=len) + "mp4", set()).add(text)
    captions = {name: set(texts) for one in paired(*names) for name, (texts, _) in one.captions.items()}
    assert {name: captions.get(name) for name in wanted} == wanted


def test_the_work_grows_as_the_names_do(monkeypatch):
    looked = []
    normal = unicodedata.normalize
    monkeypatch.setattr(unicodedata, "normalize", lambda form, name: looked.append(name) or normal(form, name))
    counts = []
    for number in (10, 40):
        looked.clear()
        endings = ("3.mp4", "3.jpg", "3.txt", "4.jpg", "4.txt", "5.mp4", "6.json", "7.npy", "7.txt")
        paired(*(f"2024.07_{index}{ending}" for index in range(number) for ending in endings))
        counts.append(len(looked))
    assert counts[1] <= 4 * counts[0]


@given(names=written_names([".mp4", ".avi", ".gif", ".jpg", ".txt", ".json", ".TXT"]))
def test_nothing_is_lost_and_no_caption_has_two_clips(names):
    texts = {name for name in names if name.lower().endswith((".txt", ".json"))}
    media, used, told = list[str](), list[str](), list[str]()
    for one in paired(*names):
        media += [*one.captions, *one.uncaptioned, *one.thumbnails, *one.sharing]
        used += itertools.chain.from_iterable(captions for captions, _ in one.captions.values())
        told += one.unused
    assert sorted(media) == sorted(set(names) - texts)
    assert len(set(used)) == len(used), "a caption is of one clip"
    assert set(used) <= texts
    assert set(told) <= texts - set(used)


def test_hidden_files_and_those_without_an_ending_have_no_key():
    hidden = [".a.mp4", "x/.a.txt", ".trash/a.png", "./x/.trash/more/a.png", "...x/a.png"]
    assert by_key([*hidden, "README", "x/b.gif", "x/b.npy", "./../c.gif"]) == [
        FolderFiles(key="x/b", media=("x/b.gif",), texts=(), others=("x/b.npy",)),
        FolderFiles(key="./../c", media=("./../c.gif",), texts=(), others=()),
    ]


def test_a_captioned_file_of_an_ending_that_is_not_read_is_no_missing_one():
    (one,) = paired("a.1.heic", "a.1.txt", "a.2.mp4", "a.2.npy", "a.2.txt", "a.3.txt", "a.4.json")
    assert one.captions == {"a.2.mp4": (("a.2.txt",), None)}
    assert (one.unread, one.unused) == (("a.1.heic",), ("a.3.txt",))
