"""Every kind of source of clips, opened as a config says."""

import collections
import contextlib
import io
import json
import logging
import os
import re
import shutil
import tarfile

import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.data.crops import CropStream
from sora_jax.data.fitting import FittedSource
from sora_jax.data.media.writer import encode_gif
from sora_jax.data.packing.pipeline import RowDataset
from sora_jax.data.shards.prepared import PreparedSet
from sora_jax.data.sources.records import Sample, write_records
from sora_jax.experiment.datasets import PackedBatches, PixelBatches, open_collections
from sora_jax.experiment.settings import read_settings

PIXELS_THWC = np.arange(5 * 16 * 16 * 3, dtype=np.uint8).reshape(5, 16, 16, 3) // 64 * 64
GIF = encode_gif(PIXELS_THWC + np.arange(5, dtype=np.uint8)[:, None, None, None], fps=10.0)


def opened(config, kind: str, path: object):
    config.data.source, config.data.path = kind, str(path)
    (collection,) = open_collections(read_settings(config))
    return collection.source


def test_drawn_clips_are_told_by_a_table_and_counted(toy_config, tmp_path, caplog):
    caplog.set_level("INFO")
    config = toy_config()
    config.shapes.seed = 3
    rows = [{"file": f"shapes-train-3-{number}", "caption": "told"} for number in (1, 2, 999)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config.data.captions = str(tmp_path / "t.jsonl")
    (collection,) = open_collections(read_settings(config))
    assert [collection.source[number].captions == ("told",) for number in range(4)] == [False, True, True, False]
    assert "t.jsonl has captions of 2 of 96 clips; the others keep theirs" in caplog.text
    assert "1 captions name no file: shapes-train-3-999" in caplog.text
    assert collection.heldout is not None
    assert collection.heldout[1].captions != ("told",)


def test_one_clip_in_a_folder_a_tar_and_records_is_one_clip(toy_config, tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "a.gif").write_bytes(GIF)
    (tmp_path / "open" / "a.txt").write_text("grey")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "open", arcname=".")
    write_records(tmp_path / "a.arrayrecord", [Sample("a.gif", GIF, ["grey"])])
    paths = {"folder": "open", "webdataset": "a.tar", "arrayrecord": "a.arrayrecord"}
    sources = [opened(toy_config(), kind, tmp_path / path) for kind, path in paths.items()]
    clips = [source[0] for source in sources]
    assert [clip.source_id for clip in clips] == ["a.gif", "a.tar/a.gif", "a.arrayrecord/a.gif"]
    assert [(clip.captions, clip.fps, len(source)) for clip, source in zip(clips, sources, strict=True)] == [
        (("grey",), pytest.approx(10), 1)
    ] * 3
    for clip in clips[1:]:
        np.testing.assert_array_equal(clip.pixels_THWC, clips[0].pixels_THWC)


@pytest.fixture(params=["folder", "webdataset", "arrayrecord"])
def uncaptioned(request, toy_config, tmp_path):
    """The config of a run on two clips of which one has a caption, and what takes that one's away."""
    config = toy_config()
    config.data.source = request.param

    def write(*captions: str) -> None:
        folder = tmp_path / "open"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in ("a.gif", "b.gif"):
            (folder / name).write_bytes(GIF)
        for text in captions:
            (folder / "a.txt").write_text(text)
        with tarfile.open(tmp_path / "heap.tar", "w") as tar:
            tar.add(folder, arcname=".")
        write_records(tmp_path / "heap.arrayrecord", [Sample("a.gif", GIF, captions), Sample("b.gif", GIF, [])])

    write("grey")
    name = {"folder": "open", "webdataset": "heap.tar", "arrayrecord": "heap.arrayrecord"}[request.param]
    config.data.path = str(tmp_path / name)
    return config, write


def found(config, **options):
    (collection,) = open_collections(read_settings(config), **options)
    return sorted(collection.source.source_id(index)[-5:] for index in range(len(collection.source)))


def test_an_autoencoder_alone_needs_no_captions(uncaptioned, caplog):
    config, write = uncaptioned
    assert found(config) == ["a.gif"]
    assert re.search(r"1 files without a caption are left out: (.*/)?b\.gif", caplog.text)
    caplog.clear()
    config.run = ("autoencoder",)
    assert found(config) == ["a.gif", "b.gif"]
    write()
    assert found(config) == ["a.gif", "b.gif"]
    assert caplog.messages == []


def test_a_look_at_clips_needs_no_captions_yet(uncaptioned, caplog):
    config, write = uncaptioned
    assert found(config, look=True) == ["a.gif"]
    assert re.search(r"1 files without a caption are left out: (.*/)?b\.gif", caplog.text)
    write()
    caplog.clear()
    assert found(config, look=True) == ["a.gif", "b.gif"]
    (said,) = caplog.messages
    assert said.endswith("no clip has a caption yet: they are needed when clips are prepared")
    with pytest.raises(UserError, match="caption"):
        found(config)


def test_every_source_resamples_to_the_rate_of_the_config(toy_config, tmp_path):
    (tmp_path / "a.gif").write_bytes(GIF)
    (tmp_path / "a.txt").write_text("grey")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "a.gif", arcname="a.gif")
        tar.add(tmp_path / "a.txt", arcname="a.txt")
    write_records(tmp_path / "a.arrayrecord", [Sample("a.gif", GIF, ["grey"])])
    for kind, path in (("folder", tmp_path), ("webdataset", "a.tar"), ("arrayrecord", "a.arrayrecord")):
        config = toy_config()
        config.data.fps = 5.0
        clip = opened(config, kind, tmp_path / path)[0]
        assert (len(clip.pixels_THWC), clip.fps) == (3, 5.0)


def test_a_phrase_begins_the_captions_of_every_source(toy_config, tmp_path):
    (tmp_path / "a.gif").write_bytes(GIF)
    (tmp_path / "a.txt").write_text("grey")
    config = toy_config()
    config.data.prefix = "sks"
    assert opened(config, "folder", tmp_path)[0].captions == ("sks grey",)
    config.data.prefix = "word " * 99
    with pytest.raises(UserError, match=r"data\.prefix 'word word .*' has 100 text tokens"):
        opened(config, "folder", tmp_path)


def test_a_tar_says_what_it_leaves_out(toy_config, tmp_path, caplog):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in (("a.gif", GIF), ("a.txt", b"x"), ("b.gif", GIF), ("c.txt", b"y"), ("d.gif", GIF)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with tarfile.open(path) as tar:
        cut = tar.getmember("d.gif").offset
    os.truncate(path, cut + 100)
    with caplog.at_level(logging.INFO):
        assert len(opened(toy_config(), "webdataset", path)) == 1
    assert f"{path}: 4 files: 1 clips with a caption, 1 without, 2 texts and tables" in caplog.text
    assert "1 files without a caption are left out: a.tar/b.gif" in caplog.text
    assert "1 captions name no file: a.tar/c" in caplog.text
    assert f"1 places cannot be read: a.tar: from byte {cut}" in caplog.text


def test_each_process_reads_its_part_of_a_batch_and_no_more(toy_config, toy_workdir, monkeypatch):
    settings = read_settings(toy_config())
    prepared, stage = PreparedSet(toy_workdir / "prepared"), settings.stages["videos"]
    kept, read, row = [], collections.defaultdict(set), RowDataset.__getitem__
    monkeypatch.setattr(RowDataset, "__getitem__", lambda self, i: read[id(self)].add(i % 8) or row(self, i))

    def batch(part):
        stream = PackedBatches(prepared, settings, mix=stage.mix, part=part)
        kept.append(stream)  # or another would have its id
        with contextlib.closing(stream.batches(3)) as batches:
            found = next(batches)
        return found, sorted(read[id(stream.rows)])

    (whole, _), *halves = (batch(part) for part in ((0, 1), (0, 2), (1, 2)))
    assert [slots for _, slots in halves] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    for name, array in whole.items():
        np.testing.assert_array_equal(np.concatenate([half[name] for half, _ in halves]), array, err_msg=name)
    streams = [PackedBatches(prepared, settings, mix=stage.mix, part=(index, 2)) for index in range(2)]
    possible = [stream.tokens(half)[1] for stream, (half, _) in zip(streams, halves, strict=True)]
    assert possible == [whole["segment_BL"].size] * 2, "tokens are those of all processes"


def test_each_process_cuts_its_part_of_a_batch_and_no_more(toy_config, monkeypatch):
    settings = read_settings(toy_config())
    (collection,) = open_collections(settings)
    stage = settings.stages["autoencoder"]
    kept, cut, window = [], collections.defaultdict(set), CropStream._window
    monkeypatch.setattr(
        CropStream, "_window", lambda self, i, slot, size: cut[id(self)].add(slot) or window(self, i, slot, size)
    )

    def batch(part):
        stream = PixelBatches(FittedSource([collection]), stage.crops, seed=0, part=part)
        kept.append(stream)  # or another would have its id
        with contextlib.closing(stream.batches(2)) as batches:
            found = next(batches)
        return found["clip_BTHWC"], sorted(cut[id(stream._crops)])

    (whole, _), *halves = (batch(part) for part in ((0, 1), (0, 2), (1, 2)))
    assert [slots for _, slots in halves] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    np.testing.assert_array_equal(np.concatenate([half for half, _ in halves]), whole)


def test_a_path_of_another_kind_is_refused(toy_config, tmp_path):
    for kind, message in (
        ("folder", "holds 0 files"),
        ("webdataset", "holds no .tar file"),
        ("arrayrecord", "holds no .arrayrecord file"),
        ("tfds", "holds no data set"),
    ):
        with pytest.raises(UserError, match=message):
            opened(toy_config(), kind, tmp_path)
