"""Embeddings beside captions: stored beside the shards, found again, left out by chance, and nothing else changed."""

import dataclasses

import numpy as np
import pytest

from sora_jax.core.errors import DataError, UserError
from sora_jax.data.packing.embeddings import ClipEmbeddings
from sora_jax.data.packing.pipeline import PackingConfig, RowDataset
from sora_jax.data.shards.embeddings import EmbeddedBy, find_maker, read_embeddings, write_embeddings
from sora_jax.data.shards.prepared import PreparedSet, ShardWriter
from sora_jax.data.tokens import BYTE_TOKENIZER
from tests.data.packing.test_pipeline import HEADER, PATCH, TIME_RATE, assert_equal, make_sample

WIDTH, CLIPS = 4, 40
PACKING = PackingConfig(tokens=64, text_tokens=40, segments=6, rows=4, window=24)
MAKER = EmbeddedBy(digest="a" * 64, folder="runs/captions")


def embedding_of(numbers):
    """Returns vectors of length 1 that tell clips apart."""
    angle_N = np.array(numbers, np.float32) / CLIPS
    columns = (np.cos(angle_N), np.sin(angle_N), np.zeros(len(numbers)), np.zeros(len(numbers)))
    return np.stack(columns, axis=1).astype(np.float32)


@pytest.fixture
def directory(tmp_path):
    with ShardWriter(tmp_path, header=HEADER, tokenizer=BYTE_TOKENIZER, records_per_shard=15) as writer:
        for number in range(CLIPS):
            sample = make_sample(number)
            writer.add(sample if number % 2 else dataclasses.replace(sample, captions=()))
    return tmp_path


def test_each_clip_finds_its_own_and_none_is_made_twice(directory):
    prepared, asked = PreparedSet(directory), []

    def embed(numbers):
        asked.extend(numbers)
        return embedding_of(numbers)

    with pytest.raises(UserError, match=r"transformer.embedding is 4, and 40 of 40 prepared clips have no embedding"):
        read_embeddings(prepared, width=WIDTH)
    assert find_maker(directory) is None
    assert write_embeddings(prepared, embed, MAKER) == CLIPS
    assert write_embeddings(PreparedSet(directory), embed, MAKER) == 0
    assert sorted(asked) == list(range(CLIPS))
    found_NE, made_by = read_embeddings(PreparedSet(directory), width=WIDTH)
    np.testing.assert_array_equal(found_NE, embedding_of(range(CLIPS)))
    assert made_by == find_maker(directory) == MAKER


def test_clips_that_were_added_are_embedded_alone(directory):
    write_embeddings(PreparedSet(directory), embedding_of, MAKER)
    with ShardWriter(directory, header=HEADER, tokenizer=BYTE_TOKENIZER, name="more") as writer:
        writer.add(make_sample(CLIPS))
    grown = PreparedSet(directory)
    with pytest.raises(UserError, match="1 of 41 prepared clips have no embedding: run prepare with --embeddings=RUN"):
        read_embeddings(grown, width=WIDTH)
    assert write_embeddings(grown, embedding_of, MAKER) == 1
    assert len(read_embeddings(grown, width=WIDTH)[0]) == CLIPS + 1


def test_another_captioner_and_another_width_are_refused_by_name(directory):
    prepared = PreparedSet(directory)
    write_embeddings(prepared, embedding_of, MAKER)
    other = EmbeddedBy(digest="b" * 64, folder="runs/other")
    said = (
        r"has embeddings by the captioner aaaaaaaaaaaa of runs/captions, and here is the captioner bbbbbbbbbbbb of runs"
    )
    with pytest.raises(UserError, match=said):
        write_embeddings(prepared, embedding_of, other)
    with pytest.raises(UserError, match=r"have 4 numbers, and transformer.embedding is 8: set it to 4"):
        read_embeddings(prepared, width=8)
    (first, *_) = sorted(directory.glob("*.embeddings.npz"))
    first.write_bytes(first.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"is damaged .*: remove it, and run prepare --embeddings again"):
        read_embeddings(prepared, width=WIDTH)


def rows_of(prepared, embeddings, *, seed=0):
    options = {"patch": PATCH, "time_rate": TIME_RATE, "tokenizer": BYTE_TOKENIZER, "seed": seed}
    return RowDataset(prepared, PACKING, **options, embeddings=embeddings)


def test_packs_have_what_is_drawn_and_are_otherwise_what_they_were(directory):
    prepared, embedding_NE = PreparedSet(directory), embedding_of(range(CLIPS))
    plain = rows_of(prepared, None)
    known = ClipEmbeddings(embedding_NE=embedding_NE, made_by=MAKER, dropout=(0.5, 0.1))
    rows = rows_of(prepared, known)
    has = {True: [], False: []}  # by whether there is a caption
    for number in range(160):
        row, without = rows[number], plain[number]
        told = {name: row.pop(name) for name in ("embedding_BSE", "has_embedding_BS")}
        assert_equal(row, without)
        for slot, sample in enumerate(row["sample_BS"].tolist()):
            there = bool(told["has_embedding_BS"][slot])
            expected = embedding_NE[sample] if there else np.zeros(WIDTH)
            np.testing.assert_array_equal(told["embedding_BSE"][slot], expected)
            assert sample >= 0 or not there
            if sample >= 0:
                has[bool(sample % 2)].append(there)
    assert min(map(len, has.values())) > 250
    assert np.mean(has[True]) == pytest.approx(0.5, abs=0.1)
    assert np.mean(has[False]) == pytest.approx(0.9, abs=0.06)
    again = rows_of(prepared, known)[7]
    np.testing.assert_array_equal(again["has_embedding_BS"], rows[7]["has_embedding_BS"])
    facts = {"captioner": MAKER.digest, "dropout": [0.5, 0.1]}
    assert rows.fingerprint() == {**plain.fingerprint(), "embeddings": facts}
