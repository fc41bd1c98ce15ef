"""How large a picture may be."""

import struct
import zlib
from pathlib import Path

import pytest

from sora_jax.data.clips import BadClip
from sora_jax.data.media.pictures import MAX_PIXELS
from sora_jax.data.media.video_io import read_clip


def begun(path: Path, height: int, width: int) -> Path:
    """Writes the beginning of a PNG of a size, without its pixels."""
    data = b"\x89PNG\r\n\x1a\n"
    for kind, said in ((b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), (b"IDAT", b"")):
        data += struct.pack(">I", len(said)) + kind + said + struct.pack(">I", zlib.crc32(kind + said))
    path.write_bytes(data)
    return path


def test_what_a_clip_may_have_decides_and_not_what_pillow_allows(tmp_path):
    side = 19_000
    assert side**2 <= MAX_PIXELS
    with pytest.raises(BadClip, match=f"1 frames of {side}x{side} exceed max_pixels = 1000"):
        read_clip(begun(tmp_path / "large.png", side, side), max_pixels=1000)


def test_a_picture_that_is_too_large_is_refused_by_its_header_also_where_it_would_be_shrunk(tmp_path):
    with pytest.raises(BadClip, match=f"exceeds limit of {MAX_PIXELS} pixels"):
        read_clip(begun(tmp_path / "huge.png", 2**15, 2**15 + 1), short_side=8)
