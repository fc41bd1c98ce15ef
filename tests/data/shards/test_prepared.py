import dataclasses
import inspect
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import zlib

import ml_dtypes
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from sora_jax.core.errors import DataError, UserError
from sora_jax.data.shards import records
from sora_jax.data.shards.prepared import Prepared, PreparedSet, ShardWriter
from sora_jax.data.shards.skipped import read_skipped
from sora_jax.data.tokens import BYTE_TOKENIZER

HEADER = {
    "autoencoder": "a1",
    "text_encoder": "bytes-1",
    "latent_mean": [0.5, -1.0, 0.0],
    "latent_scale": [2.0, 0.5, 1.0],
    "strides": [4, 8],
    "channels": 3,
}


def make_sample(number):
    generator = np.random.default_rng(number)
    shape = (1 + number % 3, 2 + number % 2, 4, 3)
    return Prepared(
        latent_THWC=generator.normal(size=shape).astype(np.float32),
        fps=8.0 + number,
        captions=tuple(f"caption {i} of clip {number}" for i in range(number % 3)),
        source_id=f"clip {number}",
        pixel_shape=(1 + 4 * (shape[0] - 1), 8 * shape[1], 32),
        trimmed_frames=number % 4,
        origin="first",
    )


def write(directory, numbers, **kwargs):
    with ShardWriter(directory, header=HEADER, tokenizer=BYTE_TOKENIZER, **kwargs) as writer:
        for number in numbers:
            writer.add(make_sample(number))


def test_weights_of_captions_are_kept_and_are_one_without(tmp_path):
    weighted = dataclasses.replace(make_sample(2), weights=(0.5, 3.0))
    with ShardWriter(tmp_path, header=HEADER, tokenizer=BYTE_TOKENIZER, records_per_shard=2) as writer:
        for sample in (weighted, make_sample(4), make_sample(3)):
            writer.add(sample)
    prepared = PreparedSet(tmp_path)
    assert prepared.weights_M.tolist() == [0.5, 3.0, 1.0, 1.0]
    assert [prepared[i].weights for i in range(3)] == [(0.5, 3.0), None, None]


def test_a_fingerprint_is_of_what_the_records_hold_not_of_their_lengths_alone(tmp_path):
    sample = make_sample(1)
    samples = {"one": sample, "same": sample, "other": dataclasses.replace(sample, latent_THWC=-sample.latent_THWC)}
    for name, held in samples.items():
        with ShardWriter(tmp_path / name, header=HEADER, tokenizer=BYTE_TOKENIZER) as writer:
            writer.add(held)
    one, same, other = (PreparedSet(tmp_path / name).fingerprint() for name in samples)
    assert one == same != other


def test_a_set_returns_normalised_samples_and_their_lengths(tmp_path):
    write(tmp_path, range(10), records_per_shard=4)
    prepared = PreparedSet(tmp_path)
    assert len(prepared) == 10
    assert len(list(tmp_path.glob("*.arrayrecord"))) == 3
    mean_C, scale_C = np.array(HEADER["latent_mean"]), np.array(HEADER["latent_scale"])
    for number in range(10):
        expected, sample = make_sample(number), prepared[number]
        raw_THWC = expected.latent_THWC.astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_allclose(sample.latent_THWC, (raw_THWC - mean_C) / scale_C, rtol=1e-5)
        assert sample.latent_THWC.dtype == np.float32
        assert sample.source_id == expected.source_id
        assert sample.captions == (expected.captions or ("",))
        assert tuple(prepared.grid_N3[number]) == expected.latent_THWC.shape[:3]
        assert prepared.text_lengths[number] == [BYTE_TOKENIZER.count(caption) for caption in sample.captions]
        assert prepared.fps_N[number] == expected.fps
        assert prepared.trimmed_frames_N[number] == expected.trimmed_frames
    assert prepared.header == HEADER


def test_reading_from_many_threads_gives_the_same_samples(tmp_path):
    write(tmp_path, range(12), records_per_shard=5)
    prepared = PreparedSet(tmp_path)
    found: dict[int, list[str]] = {thread: [] for thread in range(4)}

    def read(thread):
        found[thread] = [prepared[number].source_id for number in range(12)]

    threads = [threading.Thread(target=read, args=(thread,)) for thread in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(found.values()) == [[f"clip {number}" for number in range(12)]] * 4


def test_an_interrupted_writer_continues(tmp_path):
    writer = ShardWriter(tmp_path, header=HEADER, tokenizer=BYTE_TOKENIZER, records_per_shard=3)
    writer.skip(("clip 0", "first"), "too dark")
    for number in range(1, 6):
        writer.add(make_sample(number))
    # The writer vanishes: its second shard holds two records and was never committed.
    assert PreparedSet(tmp_path).text_lengths == [[6], [6, 6], [1]]
    again = ShardWriter(tmp_path, header=HEADER, tokenizer=BYTE_TOKENIZER, records_per_shard=3)
    assert again.done == {(f"clip {number}", "first") for number in range(4)}
    assert not list(tmp_path.glob("*.tmp"))
    with again:
        for number in range(8):
            if (f"clip {number}", "first") not in again.done:
                again.add(make_sample(number))
    prepared = PreparedSet(tmp_path)
    assert [prepared[i].source_id for i in range(len(prepared))] == [f"clip {n}" for n in range(1, 8)]


def test_a_killed_writer_leaves_only_whole_shards(tmp_path):
    program = f"""
import os, signal
import numpy as np
from sora_jax.data.shards.prepared import Prepared, ShardWriter
from sora_jax.data.tokens import BYTE_TOKENIZER
{inspect.getsource(make_sample)}
writer = ShardWriter({str(tmp_path)!r}, header={HEADER!r}, tokenizer=BYTE_TOKENIZER, records_per_shard=2)
for number in range(5):
    writer.add(make_sample(number))
writer.skip(("clip 9", "first"), "not a video")
os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=os.getcwd(), check=False)
    assert ended.returncode == -signal.SIGKILL
    assert ShardWriter(tmp_path, header=HEADER, tokenizer=BYTE_TOKENIZER).done == {
        (f"clip {number}", "first") for number in (0, 1, 2, 3, 9)
    }
    assert len(PreparedSet(tmp_path)) == 4


def test_a_shard_without_its_index_does_not_exist_and_is_written_over(tmp_path):
    write(tmp_path, range(4), records_per_shard=2)
    (tmp_path / "data-000001.index.npz").unlink()
    assert len(PreparedSet(tmp_path)) == 2
    write(tmp_path, [7], records_per_shard=2)
    prepared = PreparedSet(tmp_path)
    assert [prepared[i].source_id for i in range(3)] == ["clip 0", "clip 1", "clip 7"]


def test_processes_write_side_by_side_and_leave_each_others_files_alone(tmp_path):
    first = ShardWriter(tmp_path, header=HEADER, tokenizer=BYTE_TOKENIZER, name="data")
    first.add(make_sample(1))
    with ShardWriter(tmp_path, header=HEADER, tokenizer=BYTE_TOKENIZER, name="data-1") as second:
        second.add(make_sample(2))
    first.close()
    prepared = PreparedSet(tmp_path)
    assert {prepared[i].source_id for i in range(2)} == {"clip 1", "clip 2"}


def test_records_added_before_an_exception_are_kept(tmp_path):
    def stop_after_one():
        with ShardWriter(tmp_path, header=HEADER, tokenizer=BYTE_TOKENIZER) as writer:
            writer.add(make_sample(1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_after_one()
    assert len(PreparedSet(tmp_path)) == 1


def test_a_line_torn_by_a_kill_swallows_no_other_skipped_clip(tmp_path):
    ShardWriter(tmp_path, header=HEADER, tokenizer=BYTE_TOKENIZER).skip(("a", "first"), "no video stream")
    path = tmp_path / "data.skipped.jsonl"
    with path.open("a") as file:
        file.write('{"source_id": "b", "rea')
    ShardWriter(tmp_path, header=HEADER, tokenizer=BYTE_TOKENIZER).skip(("c", "first"), "too short")
    assert read_skipped(tmp_path) == {("a", "first"): "no video stream", ("c", "first"): "too short"}
    line = path.read_text().splitlines()[0]
    assert json.loads(line) == {"source_id": "a", "origin": "first", "reason": "no video stream"}


def flip(path, offset, mask=1):
    contents = bytearray(path.read_bytes())
    contents[offset] ^= mask
    path.write_bytes(contents)


def test_a_damaged_record_is_named_and_the_others_are_read(tmp_path):
    write(tmp_path, range(4), records_per_shard=4)
    path = tmp_path / "data-000000.arrayrecord"
    offset = path.read_bytes().index(b"caption 0 of clip 2")
    flip(path, offset)
    prepared = PreparedSet(tmp_path)
    with pytest.raises(DataError, match=r"record 2 of shard .*data-000000\.arrayrecord is damaged"):
        prepared[2]
    assert [prepared[number].source_id for number in (0, 1, 3)] == ["clip 0", "clip 1", "clip 3"]


@pytest.mark.parametrize(
    "header", [b"{", b"[]", b"{}", b'{"latent_shape": [9999999999, 9999999999]}', b'{"latent_shape": "a"}', b"[" * 9999]
)
def test_a_record_that_somebody_else_wrote_is_damaged_though_its_checksum_is_right(tmp_path, monkeypatch, header):
    body = struct.pack("<I", len(header)) + header + bytes(8)
    monkeypatch.setattr(records, "encode_record", lambda _: struct.pack("<I", zlib.crc32(body)) + body)
    write(tmp_path, range(1))
    with pytest.raises(DataError, match=r"record 0 of shard .* is damaged"):
        PreparedSet(tmp_path)[0]


def test_a_record_that_changed_before_it_was_written_is_damaged(tmp_path, monkeypatch):
    """Of which the file's own checksums know nothing: ours is of what the record was made of."""
    encode = records.encode_record

    def changed(sample):
        record = encode(sample)
        return record[:-1] + bytes([record[-1] ^ 1])

    monkeypatch.setattr(records, "encode_record", changed)
    write(tmp_path, range(1))
    with pytest.raises(DataError, match=r"record 0 of shard .* is damaged \(its checksum does not match"):
        PreparedSet(tmp_path)[0]


def test_a_shard_in_the_place_of_another_is_noticed(tmp_path):
    write(tmp_path, range(4), records_per_shard=2)
    os.replace(tmp_path / "data-000001.arrayrecord", tmp_path / "data-000000.arrayrecord")
    prepared = PreparedSet(tmp_path)
    with pytest.raises(DataError, match="not the record that the index was written for"):
        prepared[0]
    with pytest.raises(DataError, match=r"record 1 of shard .*data-000001"):
        prepared[3]


@pytest.mark.parametrize(
    ("key", "words"),
    [("autoencoder", "autoencoder"), ("text_encoder", "text encoder")],
)
def test_a_mismatch_is_refused_by_name_with_old_and_new(tmp_path, key, words):
    write(tmp_path, range(2))
    expect = {"autoencoder": "a1", "text_encoder": "bytes-1"}
    assert len(PreparedSet.open([tmp_path], expect)) == 2
    message = f"the {words} changed from {HEADER[key]} to other"
    with pytest.raises(UserError, match=message) as refusal:
        PreparedSet.open([tmp_path], {**expect, key: "other"})
    for other in {"autoencoder", "text encoder"} - {words}:
        assert f"the {other} changed" not in str(refusal.value)
    with pytest.raises(UserError, match=message):
        ShardWriter(tmp_path, header={**HEADER, key: "other"}, tokenizer=BYTE_TOKENIZER)


def write_version_2(directory, numbers):
    """Writes a shard as format 2 was written, every byte by hand."""
    samples, crcs = [make_sample(number) for number in numbers], []
    (directory / "header.json").write_text(json.dumps({"format": 2, **HEADER}, indent=2) + "\n")
    writer = ArrayRecordWriter(str(directory / "data-000000.arrayrecord"), "group_size:1,uncompressed")
    for one in samples:
        known = {"fps": one.fps, "captions": one.captions or ("",), "source_id": one.source_id}
        known |= {"pixel_shape": one.pixel_shape, "trimmed_frames": one.trimmed_frames, "origin": one.origin}
        text = json.dumps({**known, "latent_shape": one.latent_THWC.shape}).encode()
        body = struct.pack("<I", len(text)) + text + one.latent_THWC.astype(ml_dtypes.bfloat16).tobytes()
        crcs.append(zlib.crc32(body))
        writer.write(struct.pack("<I", crcs[-1]) + body)
    writer.close()
    lengths = [BYTE_TOKENIZER.count(caption) for one in samples for caption in one.captions or ("",)]
    np.savez(
        directory / "data-000000.index.npz",
        grid_N3=np.array([one.latent_THWC.shape[:3] for one in samples], np.int32),
        fps_N=np.array([one.fps for one in samples], np.float32),
        captions_N=np.array([max(1, len(one.captions)) for one in samples], np.int32),
        text_tokens_M=np.array(lengths, np.int32),
        weights_M=np.ones(len(lengths)),
        trimmed_frames_N=np.array([one.trimmed_frames for one in samples], np.int32),
        crc_N=np.array(crcs, np.uint32),
        made_from=np.frombuffer(json.dumps([[one.source_id, one.origin] for one in samples]).encode(), np.uint8),
    )


def test_format_2_is_read_and_written_on(tmp_path):
    (tmp_path / "old").mkdir()
    write_version_2(tmp_path / "old", range(4))
    write(tmp_path / "new", range(4))
    old, new = PreparedSet(tmp_path / "old"), PreparedSet(tmp_path / "new")
    assert json.loads((tmp_path / "new/header.json").read_text())["format"] == 3
    assert old.fingerprint() == new.fingerprint(), "a run that was begun on the one goes on"
    assert old.text_lengths == new.text_lengths
    for number in range(4):
        np.testing.assert_array_equal(old[number].latent_THWC, new[number].latent_THWC)
        assert old[number].captions == new[number].captions
        assert old[number].texts is None
    write(tmp_path / "old", range(4, 6))
    assert [PreparedSet(tmp_path / "old")[number].source_id for number in range(6)] == [f"clip {n}" for n in range(6)]


def test_a_tokenizer_that_was_not_there_is_a_change(tmp_path):
    write(tmp_path, range(2))
    with pytest.raises(UserError, match="the tokenizer changed from none to words-1: prepare into a new directory"):
        PreparedSet.open([tmp_path], {"text_encoder": "bytes-1", "tokenizer": "words-1"})


def test_the_fingerprint_follows_contents_and_not_the_moment_of_writing(tmp_path):
    write(tmp_path / "a", range(4))
    write(tmp_path / "b", range(4))
    write(tmp_path / "c", [0, 1, 2, 5])
    fingerprints = [PreparedSet(tmp_path / name).fingerprint() for name in "abc"]
    assert fingerprints[0] == fingerprints[1]
    assert fingerprints[0] != fingerprints[2]


def test_a_latent_that_is_not_finite_is_refused(tmp_path):
    sample = make_sample(1)
    sample.latent_THWC[0, 0, 0, 0] = np.nan
    with (
        ShardWriter(tmp_path, header=HEADER, tokenizer=BYTE_TOKENIZER) as writer,
        pytest.raises(DataError, match="clip 1 is not finite"),
    ):
        writer.add(sample)


def test_an_empty_set_is_refused_with_the_number_of_skipped_clips(tmp_path):
    with ShardWriter(tmp_path, header=HEADER, tokenizer=BYTE_TOKENIZER) as writer:
        writer.skip(("a", "first"), "too short")
    with pytest.raises(UserError, match="no prepared samples and 1 skipped"):
        PreparedSet(tmp_path)


def test_directories_are_read_as_one_set(tmp_path):
    write(tmp_path / "a", range(3), records_per_shard=2)
    write(tmp_path / "b", range(5, 9), records_per_shard=3)
    both = PreparedSet(tmp_path / "a", tmp_path / "b")
    assert [both[i].source_id for i in range(len(both))] == [f"clip {n}" for n in (0, 1, 2, 5, 6, 7, 8)]
    assert both.directory_N.tolist() == [0, 0, 0, 1, 1, 1, 1]
    for name in ("grid_N3", "fps_N", "text_tokens_M"):
        parts = [getattr(PreparedSet(tmp_path / part), name) for part in "ab"]
        np.testing.assert_array_equal(getattr(both, name), np.concatenate(parts))
    with ShardWriter(tmp_path / "c", header={**HEADER, "autoencoder": "a2"}, tokenizer=BYTE_TOKENIZER) as writer:
        writer.add(make_sample(1))
    with pytest.raises(UserError, match="the autoencoder changed from a2 to a1"):
        PreparedSet(tmp_path / "a", tmp_path / "c")
