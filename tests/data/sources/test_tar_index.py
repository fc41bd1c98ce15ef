"""The members of tar files, against the standard library's reader."""

import io
import os
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_jax.data.sources.tar_index import BLOCK, Member, TarDamage, read_section, walk_tar

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=60)
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def tar_of(path: Path, files: dict[str, bytes], *, form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def walk(path: Path) -> tuple[list[Member], TarDamage | None]:
    members = []
    with path.open("rb") as file:
        try:
            for member in walk_tar(file, path.stat().st_size):
                members.append(member)
        except TarDamage as damage:
            return members, damage
    return members, None


@given(
    parts=st.lists(st.lists(NAMES, min_size=1, max_size=6).map("/".join), max_size=5, unique=True),
    form=st.sampled_from(FORMATS[1:]),
    data=st.data(),
)
def test_members_lie_where_the_standard_library_finds_them(parts, form, data, tmp_path_factory):
    files = {name: data.draw(st.binary(max_size=1200)) for name in parts}
    path = tar_of(tmp_path_factory.mktemp("tar") / "a.tar", files, form=form)
    members, damage = walk(path)
    with tarfile.open(path) as tar:
        expected = [(info.name.removeprefix("./"), info.offset_data, info.size) for info in tar]
    assert [member[:3] for member in members] == expected
    assert damage is None
    assert all(member.plain for member in members)


@pytest.mark.parametrize("form", FORMATS)
def test_long_names_of_every_format(tmp_path, form):
    name = "/".join(["directory" * 5] * 4) + "/" + "clip" * 10 + ".mp4"
    members, damage = walk(tar_of(tmp_path / "a.tar", {name: b"x" * 700}, form=form))
    assert (damage, [(member.name, member.size) for member in members]) == (None, [(name, 700)])


def test_what_is_no_plain_file_is_told_apart_and_has_no_bytes(tmp_path):
    kinds = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, kind in enumerate(kinds):
            info = tarfile.TarInfo(f"{number}.mp4")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("last.txt")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"end"))
    members, damage = walk(tmp_path / "a.tar")
    assert damage is None
    assert [(m.name, m.size, m.plain) for m in members] == [
        *((f"{number}.mp4", 0, False) for number in (0, 1, 2, 3, 5)),
        ("last.txt", 3, True),
    ]


def test_sparse_files_of_gnu_tar_do_not_hide_what_follows(tmp_path):
    header = tarfile.TarInfo("holes.mp4")
    header.type, header.size = b"S", 512
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    block[482] = 1
    block[148:156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 8 * ord(" "))
    rest = tar_of(tmp_path / "rest.tar", {"a.txt": b"abc"}).read_bytes()
    (tmp_path / "a.tar").write_bytes(bytes(block) + bytes(512) + b"d" * 512 + rest)
    members, damage = walk(tmp_path / "a.tar")
    assert damage is None
    assert [(m.name, m.offset, m.plain) for m in members] == [("holes.mp4", 1024, False), ("a.txt", 2048, True)]


def test_a_size_in_base_256_is_read(tmp_path):
    data = bytearray(tar_of(tmp_path / "a.tar", {"a.mp4": b"abcd"}).read_bytes())
    data[124:136] = b"\x80" + (4).to_bytes(11, "big")
    data[148:156] = b"%06o\0 " % (sum(data[:512]) - sum(data[148:156]) + 8 * ord(" "))
    (tmp_path / "a.tar").write_bytes(data)
    assert walk(tmp_path / "a.tar") == ([Member("a.mp4", 512, 4, True)], None)


FILES = {"a.mp4": b"a" * 600, "b.mp4": b"b" * 512, "c.mp4": b"c"}  # headers at 0, 1536, 2560; end at 3584


@pytest.mark.parametrize(
    ("length", "names", "offset", "reason"),
    [
        (0, [], 0, "without an end mark"),
        (100, [], 0, "cut off within a header"),
        (1100, [], 0, "cut off within a.mp4"),
        (1112, ["a.mp4"], 1536, "without an end mark"),
        (1600, ["a.mp4"], 1536, "cut off within a header"),
        (2559, ["a.mp4"], 1536, "cut off within b.mp4"),
        (3584, ["a.mp4", "b.mp4", "c.mp4"], 3584, "without an end mark"),
    ],
)
def test_a_tar_that_is_cut_off_keeps_its_whole_members_and_says_where(tmp_path, length, names, offset, reason):
    path = tar_of(tmp_path / "a.tar", FILES)
    os.truncate(path, length)
    members, damage = walk(path)
    assert [member.name for member in members] == names
    assert damage is not None
    assert (damage.offset, reason in damage.reason) == (offset, True)


@pytest.mark.parametrize(
    ("place", "written", "reason"),
    [
        (1536, b"?", "checksum"),
        (1536 + 124, b"zz", "checksum"),
        (1536 + 148, b"9", "not a number"),
        (1536, bytes(BLOCK), "bytes follow an empty header"),
    ],
)
def test_a_damaged_header_is_not_taken_for_the_end(tmp_path, place, written, reason):
    path = tar_of(tmp_path / "a.tar", FILES)
    with path.open("r+b") as file:
        file.seek(place)
        file.write(written)
    members, damage = walk(path)
    assert [member.name for member in members] == ["a.mp4"]
    assert damage is not None
    assert damage.offset == 1536
    assert reason in damage.reason


@pytest.mark.parametrize(
    "body",
    [
        b"12 path=\xff",
        b"999 path=x\n",
        b"x",
        b"-5 path=x\n",
        b"11 size=-1\n",
        b"508 size=" + b"9" * 498 + b"\n",
        b"9999999 a=b\n",
    ],
)
def test_a_broken_pax_header_is_damage(tmp_path, body):
    header = tarfile.TarInfo("pax")
    header.type, header.size = b"x", len(body)
    rest = tar_of(tmp_path / "rest.tar", {"a.txt": b"abc"}).read_bytes()
    block = header.tobuf(tarfile.USTAR_FORMAT) + body.ljust(512, b"\0")
    (tmp_path / "a.tar").write_bytes(block + rest)
    members, damage = walk(tmp_path / "a.tar")
    assert members == []
    assert damage is not None
    assert "pax header is damaged" in damage.reason


@given(place=st.integers(0, 5000), written=st.binary(min_size=1, max_size=20))
def test_whatever_is_damaged_ends_in_members_or_damage(place, written, tmp_path_factory):
    path = tar_of(tmp_path_factory.mktemp("tar") / "a.tar", FILES, form=tarfile.GNU_FORMAT)
    with path.open("r+b") as file:
        file.seek(place)
        file.write(written)
    members, _ = walk(path)
    assert all(member.offset + member.size <= path.stat().st_size for member in members)


def test_headers_take_no_memory_that_they_do_not_need(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.pax_headers = {}
        for number in range(40):
            member = tarfile.TarInfo(f"pax{number}")
            record = f"500000 comment{number}=".encode()
            body = record.ljust(499_999, b"x") + b"\n"
            member.type, member.size = tarfile.XGLTYPE, len(body)
            tar.addfile(member, io.BytesIO(body))
    tracemalloc.start()
    assert walk(tmp_path / "a.tar") == ([], None)
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()
    damage = walk(tar_of(tmp_path / "b.tar", {"n" * 5000: b""}))[1]
    assert damage is not None
    assert damage.reason == "a name of 5000 characters is no name"


def test_a_section_is_read_where_it_lies(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(bytes(range(100)))
    assert read_section(path, offset=10, size=20, length=100) == bytes(range(10, 30))
    with pytest.raises(OSError, match="has changed since it was indexed"):
        read_section(path, offset=0, size=2, length=4)
    with pytest.raises(FileNotFoundError):
        read_section(tmp_path / "b", offset=0, size=2, length=4)
