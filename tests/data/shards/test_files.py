import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_jax.core.errors import DataError, StorageError, UserError
from sora_jax.data.shards import files
from sora_jax.data.shards.records import Prepared, decode_record, encode_record

HEADER = {
    "autoencoder": "a1",
    "text_encoder": "bytes-1",
    "latent_mean": [0.0, 1.0],
    "latent_scale": (1.0, 2.0),
    "strides": (4, 8),
    "channels": 2,
}


def make_sample(shape=(2, 3, 4, 2)):
    latent_THWC = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return Prepared(
        latent_THWC=latent_THWC,
        fps=24.0,
        captions=("a red square", "ein Quadrat \u2588\n"),
        source_id="folder/clip.mp4",
        pixel_shape=(5, 24, 32),
        trimmed_frames=3,
    )


def test_a_record_returns_what_was_put_in_with_the_latent_rounded_to_bfloat16():
    sample = make_sample()
    read = decode_record(encode_record(sample))
    assert read.latent_THWC.dtype == np.float32
    np.testing.assert_array_equal(read.latent_THWC, sample.latent_THWC.astype(ml_dtypes.bfloat16))
    for field in dataclasses.fields(Prepared):
        if field.name != "latent_THWC":
            assert getattr(read, field.name) == getattr(sample, field.name)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_flipped_bit_of_a_record_is_noticed(data):
    record = bytearray(encode_record(make_sample()))
    record[data.draw(st.integers(0, len(record) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ValueError, match="checksum"):
        decode_record(bytes(record))


def stored(*lengths):
    rng = np.random.default_rng(1)
    return tuple(
        {"text_BKE": rng.normal(size=(k, 3)).astype(ml_dtypes.bfloat16), "text_BKN": np.full((k, 1), k, np.int32)}
        for k in lengths
    )


def test_a_record_holds_what_is_stored_of_each_caption_at_its_own_length():
    sample = dataclasses.replace(make_sample(), texts=stored(5, 2))
    record = encode_record(sample)
    read = decode_record(record)
    np.testing.assert_array_equal(read.latent_THWC, decode_record(encode_record(make_sample())).latent_THWC)
    assert read.texts is not None
    for found, expected in zip(read.texts, stored(5, 2), strict=True):
        assert {name: array.dtype for name, array in found.items()} == {
            "text_BKE": ml_dtypes.bfloat16,
            "text_BKN": np.int32,
        }
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)
    longer = encode_record(dataclasses.replace(sample, texts=stored(6, 2)))
    assert len(longer) == len(record) + 3 * 2 + 4, "no caption is padded"


@pytest.mark.parametrize("texts", [None, stored(2, 1)])
@pytest.mark.parametrize("image", [None, np.ones((3, 5), np.float32)])
def test_a_record_holds_what_a_model_is_shown(texts, image):
    plain = dataclasses.replace(make_sample(), texts=texts)
    sample = dataclasses.replace(plain, shown_THWC=plain.latent_THWC + 1, image_ME=image)
    read = decode_record(encode_record(sample))
    assert read.shown_THWC is not None
    np.testing.assert_array_equal(read.shown_THWC, (plain.latent_THWC + 1).astype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(read.latent_THWC, decode_record(encode_record(plain)).latent_THWC)
    assert (read.image_ME is None) == (image is None)
    np.testing.assert_array_equal(read.image_ME, image)
    assert (read.texts is None) == (texts is None)


def test_shards_with_what_is_shown_are_of_a_format_that_older_programs_refuse(tmp_path):
    for name, header, expected in (("old", HEADER, 3), ("new", {**HEADER, "shown": "first"}, 4)):
        (tmp_path / name).mkdir()
        files.write_header(tmp_path / name, header)
        assert json.loads((tmp_path / name / files.HEADER_FILE).read_text())["format"] == expected
    with pytest.raises(UserError, match="way in which the model is shown frames changed from none to first"):
        files.check_same(tmp_path, files.read_header(tmp_path / "old"), {"shown": "first"})


def test_the_empty_text_is_written_once_and_noticed_when_damaged(tmp_path):
    assert files.read_empty_text(tmp_path) is None
    (first,), (second,) = stored(1), stored(2)
    files.write_empty_text(tmp_path, first)
    files.write_empty_text(tmp_path, second)
    found = files.read_empty_text(tmp_path)
    assert found is not None
    np.testing.assert_array_equal(found["text_BKE"], first["text_BKE"])
    path = tmp_path / files.EMPTY_TEXT_FILE
    contents = path.read_bytes()
    for damaged in (contents[:-1], b"", contents[:20] + b"x" + contents[21:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"empty_text\.bin is damaged"):
            files.read_empty_text(tmp_path)


def test_the_header_is_read_back_and_a_second_writer_must_agree(tmp_path):
    files.write_header(tmp_path, HEADER)
    assert files.read_header(tmp_path)["strides"] == [4, 8]
    files.write_header(tmp_path, HEADER)
    with pytest.raises(UserError, match="autoencoder's latent scale"):
        files.write_header(tmp_path, {**HEADER, "latent_scale": [1.0, 3.0]})


def test_a_header_of_another_format_or_damaged_is_refused(tmp_path):
    with pytest.raises(UserError, match="run prepare first"):
        files.read_header(tmp_path)
    path = tmp_path / files.HEADER_FILE
    path.write_text('{"format": 0}')
    with pytest.raises(UserError, match="is of format 0, and 2 to 5 are read here"):
        files.read_header(tmp_path)
    path.write_text('{"format": ')
    with pytest.raises(DataError, match=r"header\.json is damaged"):
        files.read_header(tmp_path)


def test_a_damaged_index_is_named(tmp_path):
    path = tmp_path / "data-000000.index.npz"
    files.write_index(path, [files.Entry.of(make_sample(), crc=1, text_tokens=[4, 4])])
    assert files.read_index(path)["text_tokens_M"].tolist() == [4, 4]
    contents = path.read_bytes()
    for damaged in (contents[:-30], b"", contents.replace(b"\x02\x00\x00\x00\x03\x00\x00\x00", b"\x09" * 8)):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"data-000000\.index\.npz is damaged"):
            files.read_index(path)


def test_what_the_disk_refuses_becomes_a_storage_error_with_the_path(tmp_path):
    with pytest.raises(StorageError, match=r"cannot write .*here"), files.storage(tmp_path / "here"):
        (tmp_path / "missing" / "file").write_bytes(b"")
