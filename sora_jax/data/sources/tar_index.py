"""Where the members of a tar file lie, from its headers alone; nothing is extracted.

Formats: POSIX ustar and pax, GNU and old V7 tar ("tar" in the POSIX pax specification, "Basic Tar Format" in the GNU
tar manual). Names are only names: none is ever opened, so links, devices and `..` lead nowhere.
Unlike `tarfile`, which takes a damaged header for the end, damage is told.
"""

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from sora_jax.data.sources.remote import AnyPath, open_file, read_at

BLOCK = 512
_END = bytes(BLOCK)
# What follows the end mark is padding to a whole record; nobody writes records of more than this.
_MOST_PADDING = 2**20
_MOST_EXTENDED = 2**20  # bytes of an extended header
_LONGEST_NAME = 4096  # bytes, as of a path in Linux
_CHECKSUM = slice(148, 156)
_REGULAR = b"0\x007"
_WITHOUT_DATA = b"123456"
_SPARSE = b"S"
_SPARSE_KEY, _IS_SPARSE = b"GNU.sparse.", "sparse"


class Member(NamedTuple):
    """A file in a tar: the name as written, where its bytes begin and how many they are.

    `plain` is False for a link, a device, a pipe or a sparse file: their bytes are not those of a file.
    """

    name: str
    offset: int
    size: int
    plain: bool


class TarDamage(Exception):
    """A tar that cannot be read on from `offset`, and why."""

    def __init__(self, offset: int, reason: str):
        super().__init__(offset, reason)
        self.offset = offset
        self.reason = reason


def walk_tar(file: BinaryIO, length: int) -> Iterator[Member]:
    """Yields all members but folders of an open tar of `length` bytes, in order; raises `TarDamage` at damage."""
    offset = 0
    extended: dict[str, str] = {}
    common: dict[str, str] = {}
    while True:
        block = _read_block(file, offset)
        if block == _END:
            _check_end(file, offset, length=length)
            return
        _check_sum(block, offset)
        kind = block[156:157] if block[156:157] != b"\0" else b"0"
        size, data = _number(block[124:136], offset), offset + BLOCK
        if kind in b"xgLK":
            body = _extended_body(file, data, size)
            if kind in b"xg":
                (extended if kind == b"x" else common).update(_pax_records(body, offset))
            elif kind == b"L":
                extended["path"] = _text(body.split(b"\0", 1)[0])
            offset = data + _padded(size)
            continue
        fields = {**common, **extended}
        if "size" in fields:
            size = _pax_size(fields["size"], offset)
        name = fields.get("path") or _name(block)
        if len(name) > _LONGEST_NAME:
            raise TarDamage(offset, f"a name of {len(name)} characters is no name")
        data += _sparse_maps(file, data, block) if kind in _SPARSE else 0
        if kind in _WITHOUT_DATA:
            size = 0
        if data + size > length:
            raise TarDamage(offset, f"it is cut off within {name}")
        if kind != b"5" and not name.endswith("/"):
            plain = kind in _REGULAR and _IS_SPARSE not in fields
            yield Member(name.removeprefix("./"), data, size, plain)
        offset, extended = data + _padded(size), {}


def _read_block(file: BinaryIO, offset: int) -> bytes:
    block = read_at(file, offset, BLOCK)
    if not block:
        raise TarDamage(offset, "it ends without an end mark: it may be cut off")
    if len(block) < BLOCK:
        raise TarDamage(offset, "it is cut off within a header")
    return block


def _check_end(file: BinaryIO, offset: int, *, length: int) -> None:
    """Raises `TarDamage` when there is more than padding behind the end mark, as after a broken download."""
    rest = length - offset
    if rest > _MOST_PADDING or read_at(file, offset, _MOST_PADDING).strip(b"\0"):
        raise TarDamage(offset, f"{rest} bytes follow an empty header, which should be the end")


def _check_sum(block: bytes, offset: int) -> None:
    total = sum(block) - sum(block[_CHECKSUM]) + 8 * ord(" ")
    if _number(block[_CHECKSUM], offset) != total:
        raise TarDamage(offset, "a header is damaged: its checksum is wrong")


def _number(field: bytes, offset: int) -> int:
    """Returns a number >= 0 in octal digits, or in base 256 as GNU tar writes large ones."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip()
    if digits.strip(b"01234567"):
        raise TarDamage(offset, f"a header is damaged: {field!r} is not a number")
    return int(digits or b"0", 8)


def _name(block: bytes) -> str:
    name = _text(block[:100].split(b"\0", 1)[0])
    # GNU tar has times where POSIX has the beginning of a long name.
    prefix = _text(block[345:500].split(b"\0", 1)[0]) if block[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(written: bytes) -> str:
    return written.decode("utf-8", "backslashreplace")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _extended_body(file: BinaryIO, offset: int, size: int) -> bytes:
    """Returns what an extended header says about the member after it, or about all that follow."""
    if size > _MOST_EXTENDED:
        raise TarDamage(offset - BLOCK, f"a header of {size} bytes is no header")
    body = read_at(file, offset, size)
    if len(body) < size:
        raise TarDamage(offset - BLOCK, "it is cut off within a header")
    return body


def _pax_records(body: bytes, offset: int) -> dict[str, str]:
    """Returns the "LENGTH KEY=VALUE" lines of a pax header."""
    records, at = {}, 0
    while at < len(body):
        digits, space, _ = body[at : at + 20].partition(b" ")
        end = at + int(digits) if digits.isdigit() else at
        key, equals, value = body[at + len(digits) + 1 : end - 1].partition(b"=")
        if not space or not equals or body[end - 1 : end] != b"\n":
            raise TarDamage(offset, "a pax header is damaged")
        # Any other key, of which there may be gigabytes, is not kept.
        if key in (b"path", b"size"):
            records[_text(key)] = _text(value)
        elif key.startswith(_SPARSE_KEY):
            records[_IS_SPARSE] = ""
        at = end
    return records


def _pax_size(written: str, offset: int) -> int:
    if not (written.isascii() and written.isdigit() and len(written) < 20):
        raise TarDamage(offset, f"a pax header is damaged: {written[:20]!r} is no size")
    return int(written)


def _sparse_maps(file: BinaryIO, offset: int, block: bytes) -> int:
    """Returns the bytes of the maps of holes between the header of a GNU sparse file and its data."""
    length, more = 0, block[482]
    while more:
        more = _read_block(file, offset + length)[504]
        length += BLOCK
    return length


def read_section(path: AnyPath, *, offset: int, size: int, length: int) -> bytes:
    """Returns `size` bytes of a file from `offset` on.

    Raises `OSError` when the file is not there or no longer has `length` bytes: what lies where is then unknown.
    """
    with open_file(path) as (file, length_now):
        if length_now != length:
            raise OSError(f"{path} has changed since it was indexed: start again")
        return read_at(file, offset, size)
