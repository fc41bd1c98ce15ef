"""ArrayRecord files as a source of clips."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from sora_jax.core.errors import StorageError, UserError
from sora_jax.data.clips import BadClip
from sora_jax.data.media.writer import write_clip
from sora_jax.data.sources.base import FolderSource, Source, fingerprint
from sora_jax.data.sources.records import RecordSource, Sample, write_records


def drawn(frames: int, value: int) -> np.ndarray:
    pixels_THWC = np.full((frames, 16, 24, 3), value, np.uint8)
    pixels_THWC[np.arange(frames), 0, np.arange(frames)] = 255
    return pixels_THWC


@pytest.fixture
def samples(tmp_path) -> list[Sample]:
    made = []
    for number, suffix in enumerate((".gif", ".mp4", ".png")):
        path = tmp_path / "open" / f"{number}{suffix}"
        write_clip(path, drawn(1 if suffix == ".png" else 4, 40 + number), fps=10.0)
        path.with_suffix(".txt").write_text(f"number {number}")
        made.append(Sample(path.name, path.read_bytes(), [f"number  {number}"]))
    return made


def write_pairs(path: Path, *records: object) -> Path:
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record if isinstance(record, bytes) else json.dumps(record).encode())
    writer.close()
    return path


def test_clips_are_those_of_the_same_files_in_a_folder(tmp_path, samples):
    assert write_records(tmp_path / "r" / "a.arrayrecord", samples) == 3
    packed: Source = RecordSource(tmp_path / "r")
    plain = FolderSource(tmp_path / "open")
    assert len(packed) == len(plain) == 3
    for index in (2, 0, 1):
        mine, other = packed[index], plain[index]
        assert mine.source_id == packed.source_id(index) == f"a.arrayrecord/{other.source_id}"
        assert (mine.fps, mine.captions) == (other.fps, other.captions)
        np.testing.assert_array_equal(mine.pixels_THWC, other.pixels_THWC)


def test_what_a_user_writes_in_five_lines_is_read(tmp_path, samples):
    path = tmp_path / "a.arrayrecord"
    file, data = samples[0][:2]
    write_pairs(path, {"file": file, "bytes": len(data), "caption": "one text"}, data)
    assert RecordSource(path)[0].captions == ("one text",)


def test_any_order_of_access_gives_the_same_clips_also_after_pickling(tmp_path, samples):
    for name in ("b", "a"):
        write_records(tmp_path / f"{name}.arrayrecord", samples)
    source = RecordSource(tmp_path)
    first = [source[i].pixels_THWC for i in range(6)]
    copy = pickle.loads(pickle.dumps(source))
    for index in (5, 0, 3):
        np.testing.assert_array_equal(source[index].pixels_THWC, first[index])
        np.testing.assert_array_equal(copy[index].pixels_THWC, first[index])
    assert fingerprint(copy) == fingerprint(source)


def test_limits_reach_the_decoder(tmp_path, samples):
    path = tmp_path / "a.arrayrecord"
    write_records(path, samples)
    assert len(RecordSource(path, max_frames=2)[0].pixels_THWC) == 2
    assert RecordSource(path, fps=2.0)[0].fps == 2.0
    with pytest.raises(BadClip, match="max_pixels"):
        RecordSource(path, max_pixels=100)[0]


def test_fingerprint_follows_captions_and_sizes(tmp_path, samples):
    path, seen = tmp_path / "a.arrayrecord", []
    file, data, captions = samples[0][:3]
    for sample in (samples[0], Sample(file, data, ["other"]), Sample(file, data + b"\0", captions), samples[0]):
        write_records(path, [sample])
        seen.append(fingerprint(RecordSource(path)))
    assert seen[0] == seen[3]
    assert len(set(seen)) == 3


def test_what_cannot_be_used_is_named(tmp_path, samples):
    file, data, captions = samples[0][:3]
    good = {"file": file, "bytes": len(data), "captions": captions}
    silent = {"file": "silent.gif", "bytes": len(data)}
    write_pairs(
        tmp_path / "a.arrayrecord", silent, data, good, data, b"no json", data, [1], data, {"file": 3}, data, good
    )
    (tmp_path / "b.arrayrecord").write_bytes(b"nothing")
    (tmp_path / "c.arrayrecord").write_bytes(b"noise" * 20000)
    source = RecordSource(tmp_path)
    assert len(source) == 1
    assert source.uncaptioned == ["a.arrayrecord/silent.gif"]
    expected = [
        "11 records, an odd number",
        "4 is not JSON",
        "6 must hold",
        "8 must hold",
        "b.arrayrecord holds no record that can be read: ArrayRecord file should be at least 64KB",
        "c.arrayrecord holds no record that can be read: Corrupted",
    ]
    for sentence, part in zip(source.damaged, expected, strict=True):
        assert part in sentence


def test_a_flipped_byte_costs_one_clip(tmp_path, samples):
    path = tmp_path / "a.arrayrecord"
    write_records(path, samples)
    written = bytearray(path.read_bytes())
    written[written.index(samples[1].data) + 10] ^= 255
    path.write_bytes(written)
    source = RecordSource(path)
    assert len(source) == 3
    np.testing.assert_array_equal(source[0].pixels_THWC, drawn(4, 40))
    with pytest.raises(BadClip, match="record 3 cannot be read"):
        source[1]
    written[written.index(b'"2.png"') + 3] ^= 255
    path.write_bytes(written)
    source = RecordSource(path)
    assert len(source) == 2
    assert "record 4 is damaged" in source.damaged[0]


def test_weights_are_written_read_and_count_in_the_fingerprint(tmp_path, samples):
    path, seen = tmp_path / "a.arrayrecord", set()
    file, data = samples[0][:2]
    for weights in (None, [3.0, 1.0], [1.0, 3.0]):
        write_records(path, [Sample(file, data, ["one", "two"], weights)])
        source = RecordSource(path)
        assert (source[0].captions, source[0].weights) == (("one", "two"), weights and tuple(weights))
        seen.add(fingerprint(source))
    assert len(seen) == 3


def test_weights_that_are_none_cost_one_clip(tmp_path, samples):
    file, data = samples[0][:2]
    rows = [{"weights": [1]}, {"weights": [2, -1]}, {"weight": "much"}, {"weights": 3}, {"weight": 2}]
    headers = [{"file": file, "bytes": len(data), "caption": ["one", "two"], **row} for row in rows]
    path = write_pairs(tmp_path / "a.arrayrecord", *(record for header in headers for record in (header, data)))
    source = RecordSource(path)
    assert (len(source), source[0].weights) == (1, None)
    for sentence, part in zip(
        source.damaged, ("[1] for 2", "'-1': make it", "'much': make it", "3 for 2"), strict=True
    ):
        assert part in sentence
    with pytest.raises(UserError, match=r"sample 1, '0\.gif', has the weight '0': make it a number above 0"):
        write_records(path, [Sample(file, data, ["one"], [0])])


def test_another_length_than_announced_is_a_bad_clip(tmp_path, samples):
    file, data = samples[0][:2]
    path = write_pairs(tmp_path / "a.arrayrecord", {"file": file, "bytes": len(data) + 1, "caption": "text"}, data)
    with pytest.raises(BadClip, match=f"{len(data)} bytes where {len(data) + 1} were announced"):
        RecordSource(path)[0]


def test_a_file_that_disappears_gives_a_bad_clip(tmp_path, samples):
    path = tmp_path / "a.arrayrecord"
    write_records(path, samples)
    source = RecordSource(path)
    path.unlink()
    with pytest.raises(BadClip, match="No such file"):
        source[0]


def test_a_pipe_is_not_waited_for(tmp_path, samples):
    write_records(tmp_path / "r" / "a.arrayrecord", samples)
    os.mkfifo(tmp_path / "r" / "b.arrayrecord")
    source = RecordSource(tmp_path / "r")
    assert (len(source), source.damaged) == (3, ["b.arrayrecord holds no record that can be read: it is no file"])
    with pytest.raises(UserError, match=r"hold no captioned clip \(the first problem: b.arrayrecord holds no record"):
        RecordSource(tmp_path / "r" / "b.arrayrecord")


def test_mistakes_are_one_sentence(tmp_path, samples):
    (tmp_path / "empty").mkdir()
    write_records(tmp_path / "none" / "a.arrayrecord", [])
    for name, message in (
        ("nowhere", "does not exist: pass --config.data.path=FILE"),
        ("empty", "holds no .arrayrecord file"),
        ("none", "hold no captioned clip"),
    ):
        with pytest.raises(UserError, match=message):
            RecordSource(tmp_path / name)


def test_what_could_not_be_read_back_is_not_written(tmp_path, samples):
    for path, sample, message in (
        ("a.tar", samples[0], "the ending must be .arrayrecord"),
        ("a.arrayrecord", Sample("a.txt", b"", ["text"]), "sample 1, 'a.txt', must end in one of"),
        ("a.arrayrecord", Sample("a.gif", b"", "text"), "must be a list of texts"),
    ):
        with pytest.raises(UserError, match=message):
            write_records(tmp_path / path, [sample])
        assert os.listdir(tmp_path) == ["open"]
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        write_records(tmp_path / "file" / "a.arrayrecord", samples)


def test_two_clips_of_one_name_are_two_clips(tmp_path, samples):
    path = tmp_path / "a.arrayrecord"
    write_records(path, [Sample("clip.gif", samples[0].data, ["same"])] * 2 + [Sample("2:clip.gif", b"x", ["same"])])
    source = RecordSource(path)
    names = [source.source_id(index) for index in range(len(source))]
    assert names == ["a.arrayrecord/clip.gif", "a.arrayrecord/2:clip.gif", "a.arrayrecord/4:2:clip.gif"]
    np.testing.assert_array_equal(source[1].pixels_THWC, drawn(4, 40))
