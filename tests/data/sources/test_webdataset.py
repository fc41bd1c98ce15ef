"""Tar files as a source of clips."""

import io
import json
import os
import pickle
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.data.clips import BadClip
from sora_jax.data.media.writer import write_clip
from sora_jax.data.sources.base import FolderSource, Source, fingerprint
from sora_jax.data.sources.tar_paths import find_tars
from sora_jax.data.sources.webdataset import TarSource


def drawn(frames: int, value: int) -> np.ndarray:
    pixels_THWC = np.full((frames, 16, 24, 3), value, np.uint8)
    pixels_THWC[np.arange(frames), 0, np.arange(frames)] = 255
    return pixels_THWC


def media(folder: Path, suffix: str, *, frames: int = 3, value: int = 50) -> bytes:
    path = folder / f"media-{frames}-{value}{suffix}"
    write_clip(path, drawn(frames, value), fps=10.0)
    data = path.read_bytes()
    path.unlink()
    return data


def write_tar(path: Path, files: list[tuple[str, bytes | str]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            data = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def tars(tmp_path) -> Path:
    folder = tmp_path / "tars"
    folder.mkdir()
    write_tar(
        folder / "clips-000000.tar",
        [
            ("dogs/a.mp4", media(tmp_path, ".mp4")),
            ("dogs/a.txt", "a  dog\nruns"),
            ("dogs/a.json", '{"caption": "not this one"}'),
            ("b.gif", media(tmp_path, ".gif")),
            ("c.png", media(tmp_path, ".png", frames=1)),
            ("c.json", '{"caption": null, "captions": ["one", "two"], "width": 24}'),
        ],
    )
    write_tar(
        folder / "clips-000001.tar",
        [("d.json", '{"text": "last"}'), ("e.txt", "nobody"), ("d.gif", media(tmp_path, ".gif", value=90))],
    )
    return folder


def test_samples_are_members_that_share_a_key(tars):
    source: Source = TarSource(tars)
    assert [source.source_id(i) for i in range(len(source))] == [
        "clips-000000.tar/dogs/a.mp4",
        "clips-000000.tar/c.png",
        "clips-000001.tar/d.gif",
    ]
    clips = [source[i] for i in range(3)]
    assert [clip.captions for clip in clips] == [("a dog runs",), ("one", "two"), ("last",)]
    assert [clip.source_id for clip in clips] == [source.source_id(i) for i in range(3)]
    assert clips[0].fps == pytest.approx(10)
    np.testing.assert_array_equal(clips[1].pixels_THWC, drawn(1, 50))
    np.testing.assert_array_equal(clips[2].pixels_THWC, drawn(3, 90))


def test_nothing_is_lost_in_silence(tars):
    source = TarSource(tars)
    assert source.uncaptioned == ["clips-000000.tar/b.gif"]
    assert source.missing == ["clips-000001.tar/e"]
    assert source.damaged == []


def test_clips_are_those_of_the_same_files_in_a_folder(tmp_path):
    folder = tmp_path / "open"
    for number, suffix in enumerate((".gif", ".mp4", ".webp", ".png")):
        write_clip(folder / f"{number}{suffix}", drawn(1 if suffix == ".png" else 4, 40 * number), fps=10.0)
        (folder / f"{number}.txt").write_text(f"number {number}")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(folder, arcname=".")
    plain, packed = FolderSource(folder), TarSource(tmp_path / "a.tar")
    packed_clips = {packed[i].source_id.removeprefix("a.tar/"): packed[i] for i in range(len(packed))}
    assert len(plain) == len(packed_clips) == 4
    for clip in (plain[i] for i in range(4)):
        other = packed_clips[clip.source_id]
        np.testing.assert_array_equal(other.pixels_THWC, clip.pixels_THWC)
        assert (other.fps, other.captions) == (clip.fps, clip.captions)


def test_heic_pictures_are_named(tmp_path):
    png = media(tmp_path, ".png", frames=1)
    files = [("a.heic", b"x"), ("a.txt", "one"), ("b.heic", b"x"), ("c.heic", b"x"), ("c.png", png), ("c.txt", "three")]
    source = TarSource(write_tar(tmp_path / "a.tar", files))
    assert [source[0].captions, len(source)] == [("three",), 1]
    assert source.heic == ["a.tar/a.heic", "a.tar/b.heic"]
    assert (source.unread, source.missing) == ([], [])


def test_any_order_of_access_gives_the_same_clips_also_after_pickling(tars):
    source = TarSource(tars)
    first = [source[i].pixels_THWC for i in range(3)]
    copy = pickle.loads(pickle.dumps(source))
    for index in (2, 0, 1, 2):
        np.testing.assert_array_equal(source[index].pixels_THWC, first[index])
        np.testing.assert_array_equal(copy[index].pixels_THWC, first[index])
    assert fingerprint(copy) == fingerprint(source)


def test_members_of_a_sample_need_not_be_neighbours_and_a_video_comes_before_its_thumbnail(tmp_path):
    gif, png = media(tmp_path, ".mp4"), media(tmp_path, ".png", frames=1)
    files = [("a.txt", "one"), ("b.0.txt", "two"), ("a.jpg", png), ("b.png", png), ("a.mp4", gif), ("b.1.txt", "three")]
    source = TarSource(write_tar(tmp_path / "a.tar", files))
    assert [source.source_id(i) for i in range(2)] == ["a.tar/a.mp4", "a.tar/b.png"]
    assert [source[i].captions for i in range(2)] == [("one",), ("two", "three")]


def test_names_are_only_names(tmp_path):
    outside = tmp_path / "outside.gif"
    write_clip(outside, drawn(2, 10), fps=10.0)
    gif = media(tmp_path, ".gif", value=70)
    names = ("../outside", str(outside.with_suffix("")))
    path = write_tar(tmp_path / "a.tar", [(n + e, d) for n in names for e, d in ((".gif", gif), (".txt", "text"))])
    with tarfile.open(path, "a") as tar:
        for kind, key in ((tarfile.SYMTYPE, "soft"), (tarfile.LNKTYPE, "hard")):
            link = tarfile.TarInfo(f"{key}.gif")
            link.type, link.linkname = kind, str(outside)
            tar.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    source = TarSource(path)
    assert len(source) == 2
    for index in range(2):
        np.testing.assert_array_equal(source[index].pixels_THWC, drawn(3, 70))
    assert source.missing == ["a.tar/soft", "a.tar/hard"]
    assert source.account == "6 files: 2 clips with a caption, 0 without, 2 links, 2 texts and tables"
    assert sorted(tmp_path.rglob("*")) == before, "nothing is extracted"


def test_what_lies_before_the_damage_is_used_and_the_damage_is_named(tmp_path):
    gif = media(tmp_path, ".gif")
    files = [(f"{n}.{e}", d) for n in range(4) for e, d in (("gif", gif), ("txt", f"number {n}"))]
    path = write_tar(tmp_path / "a.tar", files)
    with tarfile.open(path) as tar:
        third = tar.getmember("2.gif").offset
    os.truncate(path, third + 600)
    source = TarSource(path)
    assert [source[i].captions for i in range(len(source))] == [("number 0",), ("number 1",)]
    length = third + 600
    assert source.damaged == [f"a.tar: from byte {third} of {length} nothing is read: it is cut off within 2.gif"]


def test_a_broken_caption_or_clip_costs_one_sample(tmp_path):
    gif = media(tmp_path, ".gif")
    files = [("a.gif", gif), ("a.json", "{"), ("b.gif", gif), ("b.txt", b"\xff"), ("c.mp4", b"no"), ("c.txt", "text")]
    source = TarSource(write_tar(tmp_path / "a.tar", files))
    assert source.uncaptioned == ["a.tar/a.gif", "a.tar/b.gif"]
    assert len(source.damaged) == 2
    assert "a.json at byte" in source.damaged[0]
    with pytest.raises(BadClip, match="cannot be decoded") as caught:
        source[0]
    assert caught.value.source_id == "a.tar/c.mp4"


def test_a_name_that_comes_twice_is_told(tmp_path):
    files = [("a.gif", media(tmp_path, ".gif")), ("a.txt", "old"), ("a.txt", "new")]
    source = TarSource(write_tar(tmp_path / "a.tar", files))
    assert source[0].captions == ("new",)
    assert "a.txt is replaced by its namesake" in source.damaged[0]


def test_a_member_too_large_to_be_held_is_a_bad_clip(tmp_path):
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        for name, size in (("a.txt", 4), ("a.mp4", 200 * 2**30)):
            member = tarfile.TarInfo(name)
            member.size = size
            file.write(member.tobuf(tarfile.GNU_FORMAT))
            if size == 4:
                file.write(b"text".ljust(512, b"\0"))
        file.truncate(file.tell() + 200 * 2**30 + 1024)  # a hole: it takes no place on the disk
    with pytest.raises(BadClip, match="has 214748364800 bytes, over the 2147483648 of a file in an archive"):
        TarSource(path)[0]


def test_a_tar_that_changes_under_a_run_gives_a_bad_clip(tars):
    source = TarSource(tars)
    os.truncate(tars / "clips-000001.tar", 1024)
    with pytest.raises(BadClip, match="has changed since it was indexed"):
        source[2]
    (tars / "clips-000001.tar").unlink()
    with pytest.raises(BadClip, match="No such file"):
        source[2]


def test_limits_reach_the_decoder(tars):
    assert len(TarSource(tars, max_frames=2)[2].pixels_THWC) == 2
    with pytest.raises(BadClip, match="max_pixels"):
        TarSource(tars, max_pixels=100)[2]


def test_fingerprint_follows_content_but_not_places(tmp_path):
    gif = media(tmp_path, ".gif")
    path, seen = tmp_path / "a.tar", []
    for data, caption in ((gif, "text"), (gif, "test"), (gif + b"\0", "text")):
        seen.append(fingerprint(TarSource(write_tar(path, [("a.gif", data), ("a.txt", caption)]))))
    assert len(set(seen)) == 3
    assert fingerprint(TarSource(write_tar(path, [("a.txt", "text"), ("a.gif", gif)]))) == seen[0]


def test_tars_are_found_by_file_folder_and_pattern(tmp_path):
    names = [f"part-{number:03d}.tar" for number in range(8, 12)]
    for name in names:
        write_tar(tmp_path / name, [])
    (tmp_path / ".hidden").mkdir()
    write_tar(tmp_path / ".hidden" / "a.tar", [])

    def found(pattern: str) -> list[str]:
        return [tar.name for tar in find_tars(f"{tmp_path}/{pattern}").paths]

    assert (
        found("") == found("part-{008..011}.tar") == found("*.tar") == found("part-0{{08..09},{10..11}}.tar") == names
    )
    assert found(names[0]) == found("{part-008,part-00?}.ta[r]")[:1] == names[:1]


@pytest.mark.parametrize("folder", ["exp [a]", "a*", "a{1,2}/{3..4}", "?", "a\\b", "**"])
def test_a_folder_that_is_there_as_written_is_no_pattern(tmp_path, folder):
    (tmp_path / folder).mkdir(parents=True)
    other = tmp_path / "exp a"
    other.mkdir()
    for place in (tmp_path / folder, other):
        for number in range(3):
            write_tar(place / f"part-{number}.tar", [])
    wanted = [tmp_path / folder / f"part-{number}.tar" for number in (1, 2)]
    for pattern in ("part-{1..2}.tar", "part-[12].tar", "{part-1,part-2}.tar", "**/part-[12].tar"):
        assert find_tars(f"{tmp_path}/{folder}/{pattern}").paths == wanted
    with pytest.raises(UserError, match=r"1 of the 2 names .*part-3\.tar: restore"):
        find_tars(f"{tmp_path}/{folder}/part-{{2..3}}.tar")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("nothing-*.tar", "no tar file matches"),
        ("nothing.tar", "no tar file matches"),
        ("clips-{000000..000003}.tar", r"2 of the 4 names .* such as .*clips-000002\.tar"),
        ("{clips,clops}-*.tar", r"1 of the 2 names .* such as .*clops-\*\.tar"),
        ("empty", "holds no .tar file"),
        ("packed.tar", "is compressed"),
        ("bare.tar", r"1 media files have no caption, 1 keys no media file.*KEY\.mp4 and KEY\.txt"),
        ("*s*", "is not a file"),
    ],
)
def test_mistakes_are_one_sentence(tars, pattern, message):
    (tars / "empty").mkdir()
    (tars / "folders").mkdir()
    (tars / "packed.tar").write_bytes(b"\x1f\x8b\x08 and so on")
    write_tar(tars / "bare.tar", [("a.gif", b"GIF"), ("b.txt", "text")])
    with pytest.raises(UserError, match=message):
        TarSource(f"{tars}/{pattern}")


def test_hidden_members_are_no_members(tmp_path):
    gif = media(tmp_path, ".gif")
    files = [
        (f"{name}{end}", data) for name in ("./a", "./.x/b", ".c") for end, data in ((".gif", gif), (".txt", name))
    ]
    source = TarSource(write_tar(tmp_path / "a.tar", files))
    assert [source.source_id(index) for index in range(len(source))] == ["a.tar/a.gif"]
    assert source.account == "2 files: 1 clips with a caption, 0 without, 1 texts and tables"


def test_a_name_that_begins_like_a_compressed_file_is_a_name(tmp_path):
    source = TarSource(write_tar(tmp_path / "a.tar", [("BZh9.gif", media(tmp_path, ".gif")), ("BZh9.txt", "text")]))
    assert source.source_id(0) == "a.tar/BZh9.gif"


def test_json_captions_of_other_shapes_are_no_captions(tmp_path):
    gif = media(tmp_path, ".gif")
    deep = "[" * 10_000
    shapes = ([1], {"caption": 3}, {"captions": [1]}, {"caption": " "}, {"caption": "good"})
    files = [(f"{n}.{e}", d) for n, row in enumerate(shapes) for e, d in (("gif", gif), ("json", json.dumps(row)))]
    source = TarSource(write_tar(tmp_path / "a.tar", files))
    assert [source[i].captions for i in range(len(source))] == [("good",)]
    assert len(source.uncaptioned) == 4
    source = TarSource(write_tar(tmp_path / "b.tar", [*files, ("z.gif", gif), ("z.json", deep)]))
    assert "z.json at byte" in source.damaged[0]


def test_weights_lie_beside_the_captions_and_count_in_the_fingerprint(tmp_path):
    gif = media(tmp_path, ".gif")
    rows = [
        {"captions": ["one", " ", "two"], "weights": [3, 5, 1]},
        {"caption": ["one", "two"], "weight": 2},
        {"caption": ["one", "two"]},
        {"caption": ["one", "two"], "weights": [3, 0]},
        {"caption": ["one", "two"], "weights": [3]},
    ]

    def packed(rows: list[dict]) -> TarSource:
        files = [(f"{n}.{e}", d) for n, row in enumerate(rows) for e, d in (("gif", gif), ("json", json.dumps(row)))]
        return TarSource(write_tar(tmp_path / "a.tar", files))

    source = packed(rows)
    clips = [source[index] for index in range(len(source))]
    assert [clip.captions for clip in clips] == [("one", "two")] * 3
    assert [clip.weights for clip in clips] == [(3.0, 1.0), None, None]
    assert source.window(0, 0, 1).weights == (3.0, 1.0)
    assert source.uncaptioned == ["a.tar/3.gif", "a.tar/4.gif"]
    assert len(source.damaged) == 2
    assert re.search(r"a\.tar: 3\.json at byte .* has the weight '0': make it a number above 0", source.damaged[0])
    assert re.search(r"a\.tar: 4\.json at byte .* has the weights \[3\] for 2 captions", source.damaged[1])
    seen = {fingerprint(packed([{"caption": ["one", "two"], "weights": weights}])) for weights in ([1, 2], [2, 1])}
    assert len(seen | {fingerprint(packed(rows[2:3]))}) == 3


def test_dots_in_names_are_parts_of_names(tmp_path):
    path = write_tar(
        tmp_path / "a.tar",
        [
            *((f"take 1.{n}.mp4", media(tmp_path, ".mp4", value=40 * n)) for n in (2, 3)),
            *((f"take 1.{n}.txt", f"number {n}") for n in (3, 2, 4)),
        ],
    )
    source = TarSource(path)
    assert [(source[i].source_id, source[i].captions) for i in range(len(source))] == [
        ("a.tar/take 1.2.mp4", ("number 2",)),
        ("a.tar/take 1.3.mp4", ("number 3",)),
    ]
    assert [round(float(source[i].pixels_THWC[0, 8:].mean())) for i in range(2)] == pytest.approx([80, 120], abs=6)
    assert source.missing == ["a.tar/take 1.4.txt"]


def test_two_videos_of_a_key_are_never_silent(tmp_path):
    gif, png = media(tmp_path, ".mp4"), media(tmp_path, ".png", frames=1)
    files = [
        ("a.right.mp4", gif),
        ("a.left.mp4", gif),
        ("a.txt", "one"),
        ("a.jpg", png),
        ("b.avi", gif),
        ("b.mp4", gif),
    ]
    source = TarSource(write_tar(tmp_path / "a.tar", [*files, ("b.txt", "two"), ("c.mp4", gif)]))
    assert [source.source_id(i) for i in range(len(source))] == ["a.tar/a.left.mp4", "a.tar/b.avi"]
    assert source.sharing == ["a.tar/a.right.mp4", "a.tar/b.mp4"]
    assert (source.previews, source.uncaptioned) == (["a.tar/a.jpg"], ["a.tar/c.mp4"])


def test_a_folder_and_a_tar_of_it_are_the_same_clips(tmp_path):
    folder = tmp_path / "open"
    (folder / "sub").mkdir(parents=True)
    data = {suffix: media(tmp_path, suffix, frames=1 + (suffix != ".png")) for suffix in (".mp4", ".gif", ".png")}
    names = ("x.mp4", "x.gif", "x.TXT", "a.png", "a.mp4", "a.0.txt", "a.1.txt", "v 1.2.mp4", "v 1.3.mp4", "v 1.3.txt")
    for name in (*names, "sub/c.gif", "sub/c.json", "e.left.mp4", "e.right.mp4", "e.txt", "f.txt", "d.gif"):
        text = f'{{"text": "{name}"}}' if name.endswith("json") else name
        (folder / name).write_bytes(data.get(Path(name).suffix, text.encode()))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(folder, arcname=".")
    plain, packed = FolderSource(folder), TarSource(tmp_path / "a.tar")
    captions = {plain.source_id(i): plain[i].captions for i in range(len(plain))}
    assert captions == {
        "a.mp4": ("a.0.txt", "a.1.txt"),
        "e.left.mp4": ("e.txt",),
        "sub/c.gif": ("sub/c.json",),
        "v 1.3.mp4": ("v 1.3.txt",),
        "x.mp4": ("x.TXT",),
    }
    assert {packed.source_id(i).removeprefix("a.tar/"): packed[i].captions for i in range(len(packed))} == captions
    for name in ("uncaptioned", "previews", "sharing"):
        found = getattr(plain, name)
        assert found
        assert sorted(getattr(packed, name)) == sorted(f"a.tar/{one}" for one in found), name
    assert (plain.missing, packed.missing) == (["f.txt"], ["a.tar/f"])


def test_tars_behind_links_are_named_and_those_in_capitals_are_read(tars, tmp_path):
    (tars / "clips-000001.tar").rename(tars / "CLIPS.TAR")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tars / "more").symlink_to(elsewhere)
    source = TarSource(tars)
    assert (len(source), source.linked) == (3, ["more"])
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "more").symlink_to(tars)
    with pytest.raises(
        UserError, match=r"holds no \.tar file \(1 folders behind links are passed over, such as more\)"
    ):
        TarSource(empty)
