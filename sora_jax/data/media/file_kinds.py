"""What a media file is: by its first bytes, and where these say nothing by its ending.

Both choose from one short list of containers and picture formats, none of which can name another file or an address.
"""

from pathlib import PurePosixPath

# Endings of videos, and the FFmpeg demuxer of each.
DEMUXERS = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".f4v": "mp4",
    ".3gp": "mp4",
    ".3g2": "mp4",
    ".mov": "mov",
    ".qt": "mov",
    ".mkv": "matroska",
    ".webm": "matroska",
    ".avi": "avi",
    ".mpg": "mpeg",
    ".mpeg": "mpeg",
    ".vob": "mpeg",
    ".ts": "mpegts",
    ".mts": "mpegts",
    ".m2ts": "mpegts",
    ".flv": "flv",
    ".wmv": "asf",
    ".asf": "asf",
    ".ogv": "ogg",
}
PICTURE_SUFFIXES = (".gif", ".webp", ".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".bmp", ".tif", ".tiff", ".avif")
MEDIA_SUFFIXES = frozenset((*DEMUXERS, *PICTURE_SUFFIXES))
HEIC_SUFFIXES = (".heic", ".heif", ".hif")
HEIC_REMEDY = "make JPEG of it, for example with: magick mogrify -format jpg *.heic"
HEAD_BYTES = 600  # that are looked at

PICTURE = "picture"
# Where a file begins with these bytes, at this offset, it is of that kind: a demuxer, or a picture for Pillow.
_BEGINNINGS = (
    (0, b"\x1a\x45\xdf\xa3", "matroska"),
    (8, b"AVI ", "avi"),
    (8, b"AVIX", "avi"),
    (8, b"WEBP", PICTURE),
    (0, b"\0\0\1\xba", "mpeg"),
    (0, b"\0\0\1\xb3", "mpegvideo"),
    (0, b"FLV\1", "flv"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (0, b"OggS", "ogg"),
    (0, b"GIF8", PICTURE),
    (0, b"\x89PNG\r\n\x1a\n", PICTURE),
    (0, b"\xff\xd8\xff", PICTURE),
    (0, b"II*\0", PICTURE),
    (0, b"MM\0*", PICTURE),
)
_BOXES = (b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"moof")
_AVIF, _HEIC = (b"avif", b"avis"), (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# What people take for media and nothing here reads.
_STRANGE = (
    (0, b"\x06\x0e\x2b\x34", "MXF video"),
    (0, b".RMF", "RealMedia video"),
    (0, b"%PDF", "PDF document"),
    (0, b"PK\3\4", "ZIP archive"),
    (0, b"\x1f\x8b", "gzip archive"),
    (0, b"<!DOCTYPE html", "web page"),
    (0, b"<html", "web page"),
    (0, b"<?xml", "XML text"),
    (0, b"8BPS", "Photoshop picture"),
    (0, b"\xff\x0a", "JPEG XL picture"),
    (4, b"JXL ", "JPEG XL picture"),
    (4, b"jP  ", "JPEG 2000 picture"),
    (0, b"fLaC", "FLAC sound"),
    (0, b"ID3", "MP3 sound"),
    (8, b"WAVE", "WAV sound"),
)


def suffix_of(name: str) -> str:
    """Returns the ending of a name, in small letters."""
    return PurePosixPath(name).suffix.lower()


def kind_of(head: bytes) -> str | None:
    """Returns the demuxer for a file with these `HEAD_BYTES` first bytes, or `PICTURE`; None where they do not say."""
    brands = _brands(head)
    if brands:
        return PICTURE if brands.intersection(_AVIF) else "mp4"
    if head[4:8] in _BOXES:
        return "mov"
    if any(_every(head, start, step) for start, step in ((0, 188), (4, 192))):
        return "mpegts"
    if head[:2] == b"BM" and head[6:10] == bytes(4):
        return PICTURE
    return next((kind for offset, mark, kind in _BEGINNINGS if head[offset:].startswith(mark)), None)


def strange_kind(head: bytes) -> str | None:
    """Returns in words what a file is that is not read, by its first bytes, and the remedy; None without a word."""
    brands = _brands(head)
    if brands.intersection(_HEIC) and not brands.intersection(_AVIF):
        return f"HEIC picture by its first bytes, which is not read: {HEIC_REMEDY}"
    found = next((words for offset, mark, words in _STRANGE if head[offset:].startswith(mark)), None)
    return found and f"{found} by its first bytes, which is not read: convert it"


def _brands(head: bytes) -> set[bytes]:
    """Returns what an MP4 or one of its relatives says that it is; none of another file."""
    if head[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return {head[8:12], *(head[at : at + 4] for at in range(16, end - 3, 4))}


def _every(head: bytes, start: int, step: int) -> bool:
    """Returns whether packets of a transport stream begin at `start` and every `step` bytes, three at least."""
    marks = head[start::step]
    return len(marks) >= 3 and not marks.strip(b"G")
