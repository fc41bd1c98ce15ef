"""Whatever files are called, nothing is lost or mixed up: each clip has its own pixels and its own caption."""

import contextlib
import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from pyarrow import parquet

from sora_jax.core.errors import CommandError, UserError
from sora_jax.data.media.guarded import ReaderPool
from sora_jax.data.media.video_io import read_clip
from sora_jax.data.media.writer import encode_png
from sora_jax.data.sources import decoded
from sora_jax.data.sources.base import FolderSource
from sora_jax.data.sources.decoded import DecodedSource
from sora_jax.data.sources.webdataset import TarSource
from sora_jax.generate.outputs import Book
from sora_jax.generate.request import read_requests
from sora_jax.train.workdir import Workdir
from tests.names import NAMES, TOGETHER, fits

PICTURES = [encode_png(np.full((4, 4, 3), 40 * number, np.uint8)) for number in range(6)]
fuzzed = settings(suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(autouse=True, scope="module")
def _one_decoder():
    """Has all sources share what decodes, which takes a while to start."""
    with pytest.MonkeyPatch.context() as patch:
        readers = ReaderPool()
        patch.setattr(decoded, "ReaderPool", lambda: readers)
        yield


def files(names: list[str], *, texts: bool = True) -> dict[str, bytes]:
    """Returns by name a picture for each of the names, and one text with its number and one for its only window."""
    found = {f"{name}.png": PICTURES[number] for number, name in enumerate(names)}
    for number, name in enumerate(names) if texts else ():
        found[f"{name}.txt"] = str(number).encode()
        if f"{name}.png#0-0" not in names and fits(f"{name}.png#0-0"):
            found[f"{name}.png#0-0.txt"] = f"window {number}".encode()
    return found


def write(folder: Path, contents: dict[str, bytes]) -> Path:
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def numbers(source: DecodedSource) -> dict[str, int]:
    """Returns the number of each clip by its name; its pixels and all its captions must say the same."""
    found = {}
    for index in range(len(source)):
        clip = source[index]
        (caption,) = clip.captions
        assert (clip.pixels_THWC == 40 * int(caption)).all()
        assert [source.window(index, *w).captions for w in source.captioned_windows(index)] in (
            [],
            [(f"window {caption}",)],
        )
        found[clip.source_id] = int(caption)
    return found


def windows(source: DecodedSource) -> int:
    """Returns how many windows have a caption of their own."""
    return sum(len(source.captioned_windows(index)) for index in range(len(source)))


@given(names=TOGETHER)
@fuzzed
def test_clips_of_any_name_in_a_folder_have_their_own_texts(names, tmp_path_factory):
    contents = files(names)
    source = FolderSource(write(tmp_path_factory.mktemp("open"), contents))
    assert numbers(source) == {f"{name}.png": number for number, name in enumerate(names)}
    assert windows(source) == len(contents) - 2 * len(names)
    assert (source.missing, source.uncaptioned, source.sharing, source.previews) == ([], [], [], [])


def write_table(folder: Path, form: str, names: list[str]) -> None:
    """Writes a table of the names and their numbers, in a form that other tools write."""
    files = [f"{name}.png" for name in names]
    if form == "jsonl":
        rows = [{"file_name": file, "text": str(number)} for number, file in enumerate(files)]
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    elif form == "csv":
        with (folder / "metadata.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("file_name", "text"), *((name, number) for number, name in enumerate(files))])
    elif form == "parquet":
        columns = {"file_name": files, "text": list(map(str, range(len(files))))}
        with (folder / "metadata.parquet").open("wb") as file:
            parquet.write_table(pyarrow.table(columns), file)
    else:
        (folder / "videos.txt").write_text("\n".join(files))
        (folder / "prompt.txt").write_text("\n".join(map(str, range(len(files)))))


# What cannot be written in these forms; and a CSV in which a line within a name looks like a row is refused.
UNFIT = {"jsonl": "", "csv": "\udcff\n", "parquet": "\udcff", "lists": "\udcff\r\n"}


@given(names=TOGETHER, folder=st.just("") | NAMES.map("{}/".format), form=st.sampled_from(list(UNFIT)))
@fuzzed
def test_clips_of_any_name_are_found_in_a_table(names, folder, form, tmp_path_factory):
    root, names = tmp_path_factory.mktemp("open"), [name for name in names if not set(name) & set(UNFIT[form])]
    if names:
        write_table(write(root / folder, files(names, texts=False)), form, names)
        source = FolderSource(root)
        assert numbers(source) == {f"{folder}{name}.png": number for number, name in enumerate(names)}
        assert (source.missing, source.uncaptioned) == ([], [])


# Bytes that are no UTF-8 are written out in the names of members.
@given(
    names=TOGETHER.map(lambda names: [name.replace("\udcff", "u") for name in names]).filter(
        lambda n: len(n) == len(set(n))
    ),
    heap=NAMES,
)
@fuzzed
def test_members_of_any_name_in_tars_of_any_name_have_their_own_texts(names, heap, tmp_path_factory):
    path, contents = tmp_path_factory.mktemp("packed") / f"{heap}.tar", files(names)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    source = TarSource(path)
    assert numbers(source) == {f"{path.name}/{name}.png": number for number, name in enumerate(names)}
    assert windows(source) == len(contents) - 2 * len(names)
    assert (source.missing, source.uncaptioned, source.sharing, source.previews) == ([], [], [], [])
    assert source.damaged == []


@given(names=TOGETHER, folder=NAMES)
@fuzzed
def test_requests_of_any_name_find_the_files_that_they_name(names, folder, tmp_path_factory):
    root = write(tmp_path_factory.mktemp("asked") / folder, files(names, texts=False))
    lines = [{"task": "animate", "prompt": name, "image": f"{name}.png"} for name in names]
    path = root / f"{Path(names[0]).name}.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    if any(name.startswith("~") for name in names):
        with contextlib.suppress(UserError):  # names of homes, written as such
            read_requests(path)
        return
    requests = read_requests(path)
    book = root / "done" / "done.jsonl"
    for number, (name, request) in enumerate(zip(names, requests, strict=True)):
        assert (request.prompt, request.line) == ((name,), number + 1)
        assert request.image is not None
        assert (read_clip(request.image)[0] == 40 * number).all()
        Book(book, path, {}).add(request, book.with_name(f"{number}.mp4"))
        book.with_name(f"{number}.mp4").write_text("")
    again = Book(book, path, {})
    assert [again.find(request) for request in requests] == [book.with_name(f"{n}.mp4") for n in range(len(names))]


@given(names=TOGETHER)
@fuzzed
def test_workdirs_of_any_name_are_refused_or_keep_what_is_theirs(names, tmp_path_factory):
    root, kept, refused = tmp_path_factory.mktemp("runs"), dict[str, int](), dict[str, CommandError]()
    for number, name in enumerate(names):
        try:
            with Workdir(root / name) as workdir:
                workdir.claim(ConfigDict({"seed": number}), clips=lambda n=number: {"main": str(n)})
                workdir.write_json("run.json", {"stages": {str(number): {}}})
            kept[name] = number
        except CommandError as error:
            refused[name] = error
    assert all(str(error).startswith("checkpoints cannot be kept under ") for error in refused.values())
    assert not any((root / name / "config.json").exists() for name in refused)
    for name, number in kept.items():
        workdir = Workdir(root / name)
        assert workdir.config()["seed"] == number
        assert workdir.read_json("clips.json") == {"main": str(number)}
        assert workdir.facts()["stages"] == {str(number): {}}
