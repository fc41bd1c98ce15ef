"""Data sets in buckets, played by a folder: a file system of fsspec, and a server for what array_record reads."""

import errno
import io
import json
import os
import pickle
import re
import tarfile
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
import tensorflow_datasets as tfds
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from sora_jax.core.errors import UserError
from sora_jax.data.clips import BadClip, Clip
from sora_jax.data.media.writer import encode_png, write_clip
from sora_jax.data.sources.base import FolderSource, fingerprint
from sora_jax.data.sources.decoded import DecodedSource
from sora_jax.data.sources.records import RecordSource, Sample, write_records
from sora_jax.data.sources.remote import list_files, place
from sora_jax.data.sources.tfds import TfdsSource
from sora_jax.data.sources.webdataset import TarSource


class Refused(Exception):
    """As libraries of buckets raise: no `OSError`."""


class Bucket(AbstractFileSystem):
    """Files of `root` under gs://; counts the bytes that are fetched, and refuses all where it is told to."""

    protocol = ("gs", "gcs")
    root: ClassVar[Path] = Path()
    fetched: ClassVar[list[int]] = []
    refuses: ClassVar[bool] = False

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        if self.refuses:
            raise Refused("401, sign in\nand more")
        path = self._strip_protocol(path)
        here = self.root / path
        if not here.exists():
            raise FileNotFoundError(path)
        found = sorted(here.iterdir()) if here.is_dir() else [here]
        entries = [
            {
                "name": file.relative_to(self.root).as_posix(),
                "size": file.stat().st_size,
                "type": "directory" if file.is_dir() else "file",
            }
            for file in found
        ]
        return entries if detail else [entry["name"] for entry in entries]

    def _open(self, path: str, mode: str = "rb", **options: Any) -> AbstractBufferedFile:
        if self.refuses:
            raise Refused("401, sign in\nand more")
        return Piece(self, path, mode, options["block_size"], cache_type=options.get("cache_type", "readahead"))


class Piece(AbstractBufferedFile):
    def _fetch_range(self, start: int, end: int) -> bytes:
        with (Bucket.root / self.path).open("rb") as file:
            file.seek(start)
            data = file.read(end - start)
        Bucket.fetched.append(len(data))
        return data


@pytest.fixture
def bucket(tmp_path, monkeypatch) -> Path:
    """Returns the folder that gs:// stands for."""
    for name in Bucket.protocol:
        fsspec.register_implementation(name, Bucket, clobber=True)
    monkeypatch.setattr(Bucket, "root", tmp_path)
    monkeypatch.setattr(Bucket, "fetched", [])
    return tmp_path


def drawn(frames: int, value: int) -> np.ndarray:
    pixels_THWC = np.full((frames, 16, 24, 3), value, np.uint8)
    pixels_THWC[np.arange(frames), 0, np.arange(frames)] = 255
    return pixels_THWC


@pytest.fixture
def folder(bucket) -> Path:
    folder = bucket / "clips" / "open"
    for number, name in enumerate(("a.gif", "deep/b.webp", "deep/c.png")):
        write_clip(folder / name, drawn(1 if name.endswith("png") else 4, 40 * number), fps=10.0)
        (folder / name).with_suffix(".txt").write_text(f"number  {number}")
    (folder / "d.mp4").write_bytes(b"not a video")
    (folder / "d.txt").write_text("damaged")
    (folder / ".hidden").mkdir()
    write_clip(folder / ".hidden" / "e.png", drawn(1, 5), fps=1.0)
    return folder


def read(source: DecodedSource, index: int) -> Clip | BadClip:
    try:
        return source[index]
    except BadClip as bad:
        return bad


def check_same(mine: DecodedSource, other: DecodedSource) -> None:
    """Compares a source in a bucket with the same one on this machine."""
    assert len(mine) == len(other) > 0
    copy = pickle.loads(pickle.dumps(mine))
    assert fingerprint(copy) == fingerprint(mine) == fingerprint(other)
    for index in range(len(mine)):
        assert mine.source_id(index) == other.source_id(index)
        assert mine.size(index) == other.size(index)
        expected = read(other, index)
        for clip in (read(mine, index), read(copy, index)):
            if isinstance(expected, BadClip):
                assert str(clip) == str(expected)
                continue
            np.testing.assert_array_equal(clip.pixels_THWC, expected.pixels_THWC)
            assert (clip.fps, clip.captions, clip.weights) == (expected.fps, expected.captions, expected.weights)
            np.testing.assert_array_equal(mine.window(index, 0, 0).pixels_THWC, expected.pixels_THWC[:1])


def test_a_folder_in_a_bucket_is_that_folder(folder):
    check_same(FolderSource("gs://clips/open"), FolderSource(folder))
    for suffix, text in ((".csv", "file,caption,weight\na.gif,one,2\na.gif,two,1\n"), (".jsonl", "")):
        rows = [json.dumps({"file": name, "caption": ["x", "y"]}) for name in ("d.mp4", "deep/b.webp")]
        (folder / f"captions{suffix}").write_text(text or "\n".join(rows))
        check_same(FolderSource("gs://clips/open"), FolderSource(folder))
    (folder.parent / "other.csv").write_text("file,caption\ndeep/c.png,other\n")
    for captions in ("gs://clips/other.csv", folder.parent / "other.csv"):
        source = FolderSource("gs://clips/open", captions=captions)
        names = [source.source_id(index) for index in range(len(source))]
        assert source[names.index("deep/c.png")].captions == ("other",)
        assert source[names.index("deep/b.webp")].captions == ("x", "y"), "of the folder's own table"
    assert FolderSource("gs://clips/open/", captions="captions.csv")[0].weights == (2.0, 1.0)


def test_only_names_of_a_listing_are_read(folder):
    (folder / "captions.jsonl").write_text(json.dumps({"file": "gs://other/a.gif", "caption": "x"}) + "\n")
    with pytest.raises(UserError, match="the captions name 1 other files such as"):
        FolderSource("gs://clips/open")


def write_tar(path: Path, folder: Path) -> None:
    with tarfile.open(path, "w") as tar:
        filler = tarfile.TarInfo("0.bin")
        filler.size = 2**22
        tar.addfile(filler, io.BytesIO(bytes(filler.size)))
        tar.add(folder, arcname=".")


@pytest.mark.parametrize("path", ["tars", "tars/a-{0,1}.tar", "tars/*-[01].tar", "tars/a-0.tar"])
def test_tars_in_a_bucket_are_those_tars(bucket, folder, path):
    (bucket / "tars").mkdir()
    for number in range(2):
        write_tar(bucket / "tars" / f"a-{number}.tar", folder)
    check_same(TarSource(f"gs://{path}"), TarSource(f"{bucket}/{path}"))


def test_a_tar_is_read_in_pieces(bucket, folder):
    write_tar(bucket / "a.tar", folder)
    source = TarSource("gs://a.tar")
    assert 0 < sum(Bucket.fetched) < 2**21 < (bucket / "a.tar").stat().st_size
    Bucket.fetched.clear()
    source.window(0, 1, 2)
    assert sum(Bucket.fetched) == source.size(0)


def test_what_changes_or_fails_during_a_run_is_a_bad_clip(bucket, folder, monkeypatch):
    write_tar(bucket / "a.tar", folder)
    tars, plain = TarSource("gs://a.tar"), FolderSource("gs://clips/open")
    with (bucket / "a.tar").open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(BadClip, match="has changed since it was indexed"):
        tars[0]
    monkeypatch.setattr(Bucket, "refuses", True)
    with pytest.raises(UserError, match=r"gs://clips/other\.csv cannot be read \(Refused: 401, sign in\)"):
        FolderSource(folder, captions="gs://clips/other.csv")
    for source in (tars, plain):
        with pytest.raises(BadClip, match=r"cannot be read: Refused: 401, sign in$"):
            source[0]


@pytest.mark.parametrize("kind", [FolderSource, TarSource, RecordSource, TfdsSource])
def test_mistakes_are_one_sentence(bucket, monkeypatch, kind):
    (bucket / "empty").mkdir()
    with pytest.raises(
        UserError, match=r"(gs://nowhere/at/all does not exist|no tar file matches gs://nowhere/at/all)"
    ):
        kind("gs://nowhere/at/all")
    with pytest.raises(UserError, match=r"gs://empty holds (no|0)"):
        kind("gs://empty")
    with pytest.raises(UserError, match=r"http://a/b cannot be read: this source reads from this machine and gs://"):
        kind("http://a/b")
    monkeypatch.setattr(Bucket, "refuses", True)
    with pytest.raises(UserError, match=r"gs://nowhere cannot be read \(Refused: 401, sign in\): check the address"):
        kind("gs://nowhere")


@pytest.mark.parametrize("kind", [RecordSource, TfdsSource])
def test_array_record_reads_no_other_buckets(kind):
    with pytest.raises(UserError, match=r"s3://a cannot be read: this source reads from this machine and gs://: copy"):
        kind("s3://a")


def test_a_package_that_is_missing_is_named(monkeypatch):
    def absent(name: str) -> None:
        raise ImportError(f"no {name}")

    monkeypatch.setattr(fsspec, "filesystem", absent)
    with pytest.raises(UserError, match=r"gs://a/b needs gcsfs \(no gs\): pip install gcsfs, or copy the data here"):
        place("gs://a/b")


def test_listings_here_and_there_are_alike(folder):
    assert list_files(place("gs://clips/open")) == list_files(folder)
    assert list_files(place("gs://clips/open/")) == list_files(folder)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    (tmp_path / "open" / "shut").mkdir(parents=True)
    (tmp_path / "open" / "a.gif").write_bytes(b"GIF")
    scan = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("shut"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"open/shut cannot be read \(Permission denied\): make it readable"):
        list_files(tmp_path / "open")


@pytest.fixture
def server(bucket, monkeypatch) -> Iterator[None]:
    """Serves the bucket as Google Cloud Storage does, to array_record's own client."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            found = re.search(r"/b/([^/]+)/o/([^?]+)", self.path) or re.match(r"/([^/]+)/([^?]+)", self.path)
            assert found, self.path
            path = bucket / found.group(1) / urllib.parse.unquote(found.group(2))
            data = path.read_bytes() if path.is_file() else b""
            first, last = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "bytes=0-")).groups()
            start = int(first) if first else max(0, len(data) - int(last))
            end = min(len(data), int(last) + 1) if first and last else len(data)
            self.send_response(206 if data else 404)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
            self.send_header("Content-Length", str(end - start))
            self.end_headers()
            self.wfile.write(data[start:end])

        def log_message(self, format: str, *_: Any) -> None:
            del format

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", f"http://127.0.0.1:{running.server_address[1]}")
        yield
        running.shutdown()


def test_records_in_a_bucket_are_those_records(bucket, folder, server):
    files = [folder / name for name in list_files(folder) if not name.endswith(".txt")]
    for name in ("b", "c/a"):
        samples = [Sample(file.name, file.read_bytes(), ["one", "two"], [1, 2]) for file in files]
        write_records(bucket / "records" / f"{name}.arrayrecord", samples)
    check_same(RecordSource("gs://records"), RecordSource(bucket / "records"))
    check_same(RecordSource("gs://records/b.arrayrecord"), RecordSource(bucket / "records" / "b.arrayrecord"))
    written = (bucket / "records" / "b.arrayrecord").read_bytes()
    (bucket / "records" / "cut.arrayrecord").write_bytes(written[: len(written) // 2])
    source = RecordSource("gs://records")
    assert len(source) == 8
    assert len(source.damaged) == 1
    assert source.damaged == ["cut.arrayrecord holds no record: it is empty, or cut off"]


class RemoteClips(tfds.core.GeneratorBasedBuilder):
    """Two pictures of one colour each."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict({"image": text, "caption": text})
        )

    def _split_generators(self, dl_manager: object) -> dict[str, Any]:
        rows = [(value, {"image": encode_png(drawn(1, value)[0]), "caption": f"grey {value}"}) for value in (20, 90)]
        return {"train": iter(rows)}

    def _generate_examples(self) -> None:
        raise AssertionError("splits are generators already")


def test_a_data_set_in_a_bucket_is_that_data_set(bucket, server):
    RemoteClips(data_dir=bucket / "sets", file_format="array_record").download_and_prepare()
    path = "sets/remote_clips/1.0.0"
    check_same(TfdsSource(f"gs://{path}"), TfdsSource(bucket / path))
    check_same(TfdsSource(f"gs://{path}#train[1:]"), TfdsSource(f"{bucket / path}#train[1:]"))
    with pytest.raises(
        UserError, match=r"gs://sets/remote_clips holds no data set.*: pass gs://sets/remote_clips/1\.0\.0$"
    ):
        TfdsSource("gs://sets/remote_clips")
