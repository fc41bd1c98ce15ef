"""Captions: text to byte tokens, and the caption files of a folder of clips.

Shapes: `K` text tokens, `Q` bytes of a text token.

A text token is a patch of bytes, as a latent token is a patch of pixels: no vocabulary, no file to download,
and nothing that a caption can contain is unknown. Tokens begin where words begin, so that a word has the same
bytes in the same slots wherever it stands (compare Xue et al., "ByT5", arXiv 2105.13626, section 3: one token
per byte, several times as many).
"""

import dataclasses
import os
import unicodedata
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

import numpy as np

from sora_jax.core.errors import UserError
from sora_jax.data.caption_tables import MOST_CAPTION_BYTES, TABLE_SUFFIXES, Written, read_table, read_text
from sora_jax.data.remote import AnyPath, is_folder, is_there, list_files, place, reaching
from sora_jax.data.video_io import MEDIA_SUFFIXES

BYTES_PER_TOKEN = 8
# Name and version of the tokens, as prepared shards record them; raise it when a caption would give others.
TOKENIZER = "byte patches of 8, version 2"
MOST_CHARACTERS = 2**16  # of a caption; what lies beyond is not read

# They cannot be seen, but change how letters of some scripts, and emoji, look.
_JOINERS = "\u200c\u200d"
# What stands for a character, by its category: control, lone surrogate, format.
_REPLACED = {"Cc": " ", "Cs": " ", "Cf": ""}
# Files in buckets and on network disks take a round trip each.
_THREADS = 8

# Cleaned captions of a clip, and how often each is drawn next to the others; None: all alike.
Captions = tuple[tuple[str, ...], tuple[float, ...] | None]


def clean_caption(caption: str) -> str:
    """Returns the caption in Unicode NFC, words apart by one space, without what cannot be seen.

    Control characters and halves of surrogate pairs are as spaces; format characters (byte order marks, zero-width
    spaces, soft hyphens, directions) are left out but for joiners, which must join something.
    """
    seen = "".join(c if c in _JOINERS else _REPLACED.get(unicodedata.category(c), c) for c in caption)
    return " ".join(word for word in unicodedata.normalize("NFC", seen).split() if word.strip(_JOINERS))


def clean_captions(written: Iterable[Written]) -> Captions:
    """Returns what is written about a clip: of each caption `MOST_CHARACTERS`, cleaned, where something is left."""
    cleaned = ((clean_caption(text[:MOST_CHARACTERS]), weight) for text, weight in written)
    kept = [(caption, weight) for caption, weight in cleaned if caption]
    weights = tuple(weight for _, weight in kept)
    return tuple(caption for caption, _ in kept), weights if len(set(weights)) > 1 else None


def tokenize(caption: str, *, max_tokens: int) -> np.ndarray:
    """Returns the cleaned caption's tokens, int32 (k, Q) with 1 <= k <= `max_tokens`, Q = `BYTES_PER_TOKEN`.

    The first token is START, all zeros; the empty caption is START alone, which is also what caption dropout
    leaves. Then each word gives its UTF-8 bytes, `BYTES_PER_TOKEN` to a token, stored as byte + 1 (values
    1...256) with zeros after the last. What exceeds `max_tokens` is cut off: `count_tokens` tells beforehand.
    """
    assert max_tokens > 0, max_tokens
    pieces = _pieces(caption)[: max_tokens - 1]
    tokens_KQ = np.zeros((1 + len(pieces), BYTES_PER_TOKEN), np.int32)
    for row_Q, piece in zip(tokens_KQ[1:], pieces, strict=True):
        row_Q[: len(piece)] = np.frombuffer(piece, np.uint8).astype(np.int32) + 1
    return tokens_KQ


def count_tokens(caption: str) -> int:
    """Returns the number of tokens of the whole caption, START included."""
    return 1 + len(_pieces(caption))


def cut_caption(caption: str, max_tokens: int) -> str:
    """Returns the cleaned caption, whole words off its end until it has at most `max_tokens` tokens.

    Of a first word that is longer, as in scripts without spaces, what fits is kept.
    """
    words = clean_caption(caption).split()
    used = 1
    for number, word in enumerate(words):
        used += -(-len(word.encode()) // BYTES_PER_TOKEN)
        if used > max_tokens:
            fitting = word.encode()[: (max_tokens - 1) * BYTES_PER_TOKEN].decode(errors="ignore")
            return " ".join(words[:number]) or fitting
    return " ".join(words)


def check_prompt(text: str, max_tokens: int) -> str:
    """Returns the cleaned prompt; raises `UserError` when it is empty or longer than `max_tokens` tokens."""
    prompt = clean_caption(text)
    if not prompt:
        raise UserError(f"the prompt {text!r} is empty: describe the video in a few words")
    tokens = count_tokens(prompt)
    if tokens > max_tokens:
        raise UserError(
            f"the prompt has {tokens} tokens and this model takes {max_tokens}: shorten it "
            f"(a word costs one token for every {BYTES_PER_TOKEN} bytes); it begins {prompt[:40]!r}"
        )
    return prompt


def _pieces(caption: str) -> list[bytes]:
    """Returns the words' bytes in order, each word in pieces of at most `BYTES_PER_TOKEN`."""
    words = [word.encode() for word in clean_caption(caption).split()]
    return [word[i : i + BYTES_PER_TOKEN] for word in words for i in range(0, len(word), BYTES_PER_TOKEN)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderCaptions:
    """The media files of a folder and what is written about them; names are relative, with forward slashes.

    `by_file` maps each captioned file to its cleaned captions, in sorted order of names. `uncaptioned` are
    media files about which nothing is written; `missing` are names with captions but no media file.
    `weights` has those files whose captions are not drawn alike: a number above 0 for each caption. `sizes` has the
    bytes of each media file, None for a link that leads nowhere, or out of the folder.
    """

    by_file: dict[str, tuple[str, ...]]
    weights: dict[str, tuple[float, ...]]
    uncaptioned: tuple[str, ...]
    missing: tuple[str, ...]
    sizes: dict[str, int | None]


def read_captions(
    folder: str | os.PathLike, captions: str | os.PathLike | None = None, *, required: bool = True
) -> FolderCaptions:
    """Returns the captions of every media file under `folder`, and the names without a partner.

    Read from the first that exists: the file `captions`, `captions.jsonl`, `captions.csv` or `captions.parquet` in the
    folder (see `caption_tables`), or a text file beside each media file (`a.mp4`, `a.txt`), wholly one caption. A file
    on several lines has several captions. Hidden files and folders are left out.

    Raises `UserError` when the folder does not exist or holds no media, a caption file cannot be understood
    (with its line number) or, where captions are `required`, no media file has one.
    """
    root = place(folder)
    if not is_folder(root):
        raise UserError(f"the folder {root} does not exist: pass --config.data.path=DIR with your clips")
    sizes = list_files(root)
    media = [name for name in sizes if PurePosixPath(name).suffix.lower() in MEDIA_SUFFIXES]
    if not media:
        endings = ", ".join(sorted(MEDIA_SUFFIXES))
        raise UserError(f"the folder {root} holds {len(sizes)} files but no video or image ({endings})")
    written = _read_written(root, captions, media=media, sizes=sizes)
    cleaned = {name: clean_captions(written[name]) for name in media if name in written}
    by_file = {name: texts for name, (texts, _) in cleaned.items() if texts}
    if required and not by_file:
        raise UserError(_nothing_found(root, captions, media=media, written=list(written)))
    return FolderCaptions(
        by_file=by_file,
        weights={name: weights for name, (_, weights) in cleaned.items() if weights},
        uncaptioned=tuple(name for name in media if name not in by_file),
        missing=tuple(sorted(written.keys() - set(media))),
        sizes={name: sizes[name] for name in media},
    )


def _read_written(
    root: AnyPath, captions: str | os.PathLike | None, *, media: list[str], sizes: dict[str, int | None]
) -> dict[str, list[Written]]:
    """Returns uncleaned captions by normalised file name, from the source of captions that comes first."""
    if captions is not None:
        with reaching(captions):
            path = place(captions) if is_there(place(captions)) else root / os.fspath(captions)
            if not path.is_file():
                raise UserError(f"the caption file {captions} does not exist, neither here nor in {root}")
            if path.suffix not in TABLE_SUFFIXES:
                raise UserError(f"the caption file {path} must end in {' or '.join(TABLE_SUFFIXES)}")
            return read_table(path)
    for table in (f"captions{suffix}" for suffix in TABLE_SUFFIXES):
        if table in sizes:
            if sizes[table] is None:
                raise UserError(f"{root / table} is a link that leads nowhere, or out of the folder: put a copy there")
            return read_table(root / table)
    return _read_sidecars(root, media=media, sizes=sizes)


def _read_sidecars(root: AnyPath, *, media: list[str], sizes: dict[str, int | None]) -> dict[str, list[Written]]:
    """Returns captions by media file from the .txt of the same name; a .txt without one stands for itself."""
    # What a link out of the folder leads to, such as a key or the environment, is no caption.
    texts = {name.removesuffix(".txt"): name for name in sizes if name.endswith(".txt") and sizes[name] is not None}
    stems = {name: PurePosixPath(name).with_suffix("").as_posix() for name in media}
    paired = {name: texts[stem] for name, stem in stems.items() if stem in texts}
    for name in paired.values():
        if (sizes[name] or 0) > MOST_CAPTION_BYTES:
            size = f"{sizes[name]} bytes, over the {MOST_CAPTION_BYTES} of a caption"
            raise UserError(f"{root / name} has {size}: shorten or rename it")
    with ThreadPoolExecutor(_THREADS) as pool:
        read = pool.map(read_text, (root / name for name in paired.values()))
        captions = {name: [Written(text)] for name, text in zip(paired, read, strict=True)}
    orphans = texts.keys() - set(stems.values())
    return captions | {texts[stem]: [] for stem in orphans}


def _nothing_found(root: AnyPath, captions: str | os.PathLike | None, *, media: list[str], written: list[str]) -> str:
    """Returns the sentence for a folder in which no media file has a caption."""
    looked = (
        f"the caption file {captions}"
        if captions is not None
        else f"{', '.join(f'captions{suffix}' for suffix in TABLE_SUFFIXES)} and a .txt file beside each clip"
    )
    named = f"; the captions name {len(written)} other files such as {written[0]}" if written else ""
    return (
        f"none of the {len(media)} media files in {root} has a caption{named}; looked for {looked}: "
        f'write captions.jsonl with lines like {{"file": "{media[0]}", "caption": "..."}}'
    )
